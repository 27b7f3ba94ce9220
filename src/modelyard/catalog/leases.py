"""Leases as rows: who is at work, since which point of the catalog's own sequence. Knows no clock that matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, insert, select, update

from modelyard.catalog.schema import leases

if TYPE_CHECKING:
    from modelyard.catalog.transaction import Transaction

__all__ = ["LeaseRecord", "acquire", "beat", "listing", "release"]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease: `seq` is when it was taken and `heartbeat_seq` when it last lived, both in the catalog's sequence."""

    id: str
    seq: int
    purpose: str
    owner: str
    heartbeat_seq: int
    acquired_at: str


def acquire(tx: Transaction, lease_id: str, *, purpose: str, owner: str) -> None:
    """Write a lease."""
    seq = tx.next("lease")
    row = {"id": lease_id, "seq": seq, "purpose": purpose, "owner": owner, "heartbeat_seq": seq, "acquired_at": tx.at}
    tx.connection.execute(insert(leases).values(**row))


def beat(tx: Transaction, lease_id: str) -> bool:
    """Move a lease's heartbeat to now; False when the lease is gone."""
    query = update(leases).where(leases.c.id == lease_id).values(heartbeat_seq=tx.next("lease"))
    return tx.connection.execute(query).rowcount == 1


def release(tx: Transaction, lease_id: str) -> None:
    """Remove a lease; removing one that is gone changes nothing."""
    tx.connection.execute(delete(leases).where(leases.c.id == lease_id))


def listing(connection: Connection) -> list[LeaseRecord]:
    """Every lease, the oldest first."""
    rows = connection.execute(select(leases).order_by(leases.c.seq))
    return [LeaseRecord(row.id, row.seq, row.purpose, row.owner, row.heartbeat_seq, row.acquired_at) for row in rows]
