"""Runs as rows, by key: the digest of everything that decides a step's outcome. Knows no steps and no processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, insert, select

from modelyard.catalog.schema import runs

if TYPE_CHECKING:
    from modelyard.catalog.transaction import Transaction

__all__ = ["RunRow", "find", "listing", "save"]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run; `inputs` and `outputs` are JSON text, `owner` the process that last worked on it."""

    key: str
    step: str
    state: str
    attempt: int
    owner: str
    inputs: str
    outputs: str
    error: str | None
    started_at: str
    finished_at: str | None


_COLUMNS = [column for column in runs.c if column.name != "seq"]


def find(connection: Connection, key: str) -> RunRow | None:
    """The run of this key, or None."""
    row = connection.execute(select(*_COLUMNS).where(runs.c.key == key)).one_or_none()
    return RunRow(*row) if row else None


def save(tx: Transaction, row: RunRow) -> None:
    """Write a run over the one of the same key, if there was one."""
    tx.connection.execute(delete(runs).where(runs.c.key == row.key))
    values = {column.name: getattr(row, column.name) for column in _COLUMNS}
    tx.connection.execute(insert(runs).values(seq=tx.next("run"), **values))


def listing(connection: Connection, *, limit: int | None = None) -> list[RunRow]:
    """Runs, the last written first."""
    query = select(*_COLUMNS).order_by(runs.c.seq.desc())
    return [RunRow(*row) for row in connection.execute(query if limit is None else query.limit(limit))]
