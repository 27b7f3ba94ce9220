"""Refs: names for versions in a repo, the stack of an alias's former holders, and gates as stored text.

Moving is compare-and-swap: the caller read the holder inside the same write transaction. Knows no rules about which
name may move when; those are the registry's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, func, insert, select, update

from modelyard.catalog.schema import alias_history, gates, refs, versions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.catalog.transaction import Transaction

__all__ = [
    "RefRecord",
    "find",
    "forget_version",
    "former",
    "former_holders",
    "gate",
    "in_repo",
    "names_of",
    "point",
    "pop",
    "push",
    "remove",
    "set_gate",
]


# Built once: a statement costs more to put together than to run.
_ROWS = (
    select(refs, versions.c.id, versions.c.number)
    .join(versions, versions.c.seq == refs.c.version_seq)
    .order_by(refs.c.name)
)
_BY_NAME = _ROWS.where(refs.c.repo_id == bindparam("repo"), refs.c.name == bindparam("ref"))


@dataclass(frozen=True, slots=True)
class RefRecord:
    """A name, its type (`branch`, `tag`, `alias`) and the version it names."""

    name: str
    type: str
    version_seq: int
    version_id: str
    number: int


def find(connection: Connection, repo_id: int, name: str) -> RefRecord | None:
    """The ref of this name, or None."""
    return next(iter(_records(connection.execute(_BY_NAME, {"repo": repo_id, "ref": name}))), None)


def in_repo(connection: Connection, repo_id: int) -> list[RefRecord]:
    """A repo's refs in order of name."""
    return _select(connection, refs.c.repo_id == repo_id)


def names_of(connection: Connection, version_seq: int) -> list[RefRecord]:
    """The refs that name this version."""
    return _select(connection, refs.c.version_seq == version_seq)


def _select(connection: Connection, *conditions: ColumnElement[bool]) -> list[RefRecord]:
    return _records(connection.execute(_ROWS.where(*conditions)))


def _records(rows: Iterable[Row[Any]]) -> list[RefRecord]:
    return [RefRecord(row.name, row.type, row.version_seq, row.id, row.number) for row in rows]


def point(tx: Transaction, repo_id: int, name: str, ref_type: str, version_seq: int) -> None:
    """Make the name point at the version, creating it if there is none."""
    moved = tx.connection.execute(
        update(refs).where(refs.c.repo_id == repo_id, refs.c.name == name).values(version_seq=version_seq)
    )
    if moved.rowcount == 0:
        tx.connection.execute(insert(refs).values(repo_id=repo_id, name=name, type=ref_type, version_seq=version_seq))


def remove(tx: Transaction, repo_id: int, name: str) -> None:
    """Remove the name; for an alias, its former holders too."""
    tx.connection.execute(delete(refs).where(refs.c.repo_id == repo_id, refs.c.name == name))
    tx.connection.execute(
        delete(alias_history).where(alias_history.c.repo_id == repo_id, alias_history.c.alias == name)
    )


def push(tx: Transaction, repo_id: int, alias: str, version_seq: int) -> None:
    """Remember a holder that a promotion replaced."""
    top = select(func.coalesce(func.max(alias_history.c.position), 0)).where(
        alias_history.c.repo_id == repo_id, alias_history.c.alias == alias
    )
    position = tx.connection.execute(top).scalar_one() + 1
    tx.connection.execute(
        insert(alias_history).values(repo_id=repo_id, alias=alias, position=position, version_seq=version_seq)
    )


def former(connection: Connection, repo_id: int, alias: str) -> list[int]:
    """The versions that held an alias before, the last one first."""
    query = select(alias_history.c.version_seq).where(
        alias_history.c.repo_id == repo_id, alias_history.c.alias == alias
    )
    return list(connection.execute(query.order_by(alias_history.c.position.desc())).scalars())


def pop(tx: Transaction, repo_id: int, alias: str) -> None:
    """Forget the last former holder: a rollback made it the holder again."""
    mine = (alias_history.c.repo_id == repo_id, alias_history.c.alias == alias)
    top = select(func.max(alias_history.c.position)).where(*mine).scalar_subquery()
    tx.connection.execute(delete(alias_history).where(*mine, alias_history.c.position == top))


def former_holders(connection: Connection, version_seq: int) -> list[str]:
    """The aliases that a rollback would return to this version, now or further back."""
    query = select(alias_history.c.alias).where(alias_history.c.version_seq == version_seq).distinct()
    return sorted(connection.execute(query).scalars())


def forget_version(tx: Transaction, version_seq: int) -> None:
    """Take a version out of every alias's former holders."""
    tx.connection.execute(delete(alias_history).where(alias_history.c.version_seq == version_seq))


def set_gate(tx: Transaction, repo_id: int, alias: str, text: str | None) -> None:
    """Store an alias's gate; None removes it."""
    mine = (gates.c.repo_id == repo_id, gates.c.alias == alias)
    tx.connection.execute(delete(gates).where(*mine))
    if text is not None:
        tx.connection.execute(insert(gates).values(repo_id=repo_id, alias=alias, gate=text))


def gate(connection: Connection, repo_id: int, alias: str) -> str | None:
    """An alias's gate as it was stored, or None."""
    return connection.execute(
        select(gates.c.gate).where(gates.c.repo_id == repo_id, gates.c.alias == alias)
    ).scalar_one_or_none()
