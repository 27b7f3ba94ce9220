"""A write transaction: one sequence number per change, its audit row and its outbox row.

Writers take turns (SQLite's BEGIN IMMEDIATE; on PostgreSQL a lock on the counter row), so what a transaction reads
stays true until it ends, on both databases alike. This module knows rows and sequence numbers, not what they mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from modelyard.catalog.schema import audit, counters, outbox
from modelyard.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Entry", "Transaction", "discard", "dump", "moment", "pending"]

SEQUENCE = "seq"
ENTRY_FORMAT = "modelyard/journal/1"


# Built once: a statement costs more to put together than to run.
_NEXT = (
    update(counters)
    .where(counters.c.name == bindparam("counter"))
    .values(value=counters.c.value + 1)
    .returning(counters.c.value)
)
_AUDIT, _OUTBOX = insert(audit), insert(outbox)
_DISCARD = delete(outbox).where(outbox.c.seq.in_(bindparam("seqs", expanding=True)))
_PENDING = select(outbox.c.seq, outbox.c.entry).order_by(outbox.c.seq)


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal entry: its place in the catalog's sequence and the canonical bytes that are published."""

    seq: int
    data: bytes


@dataclass
class Transaction:
    """An open write transaction.

    Attributes:
        connection: Where statements run.
        author: Who does it.
        at: When, for people; nothing is ordered by it.
        entries: What was recorded so far, to be published once the transaction is committed.
    """

    connection: Connection
    author: str
    at: str
    entries: list[Entry] = field(default_factory=list)

    def lock(self) -> None:
        """Wait for the turn to write; SQLite's BEGIN IMMEDIATE did already."""
        if self.connection.dialect.name == "postgresql":
            self.connection.execute(select(counters.c.value).where(counters.c.name == SEQUENCE).with_for_update())

    def next(self, counter: str = SEQUENCE) -> int:
        """The next number of a counter, starting at 1; it is taken only if the transaction commits."""
        value = self.connection.execute(_NEXT, {"counter": counter}).scalar_one_or_none()
        if value is None:
            raise InternalError(f"the catalog has no counter `{counter}`")
        return int(value)

    def record(
        self,
        action: str,
        *,
        repo: tuple[int, str, str] | None = None,
        ref: str | None = None,
        version: str | None = None,
        previous: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        """Write one change as an audit row and an outbox row; returns its sequence number.

        Args:
            action: What happened, such as `commit` or `promote`.
            repo: The repo's row id, type and name.
            ref: The name that moved.
            version: What it points to now.
            previous: What it pointed to before.
            detail: Whatever else a rebuild needs; plain JSON values.
        """
        seq = self.next()
        row = {"seq": seq, "at": self.at, "author": self.author, "action": action}
        row |= {"repo_id": repo[0] if repo else None, "ref": ref, "version_id": version, "previous_id": previous}
        self.connection.execute(_AUDIT, row | {"detail": dump(detail or {})})
        entry = {"format": ENTRY_FORMAT, "seq": seq, "at": self.at, "author": self.author, "action": action}
        named = {"ref": ref, "version": version, "previous": previous, "detail": detail or None}
        entry |= {key: value for key, value in named.items() if value is not None}
        if repo:
            entry |= {"repo_type": repo[1], "repo": repo[2]}
        text = dump(entry)
        self.connection.execute(_OUTBOX, {"seq": seq, "entry": text})
        self.entries.append(Entry(seq, text.encode()))
        return seq


def pending(connection: Connection) -> list[Entry]:
    """The entries that may not have been published yet, oldest first."""
    rows = connection.execute(_PENDING)
    return [Entry(row.seq, row.entry.encode()) for row in rows]


def discard(tx: Transaction, seqs: Iterable[int]) -> None:
    """Forget outbox rows that were published."""
    published = list(seqs)
    if published:
        tx.connection.execute(_DISCARD, {"seqs": published})


def dump(value: Mapping[str, Any] | list[Any]) -> str:
    """JSON text with sorted keys: the same value is the same text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def moment(at: datetime) -> str:
    """A point in time as the catalog keeps it: UTC, microseconds, one width."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
