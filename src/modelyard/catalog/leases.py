"""Leases as rows: who is at work, since which point of the catalog's own sequence. Knows no clock that matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, insert, select, update

from modelyard.catalog.schema import leases

if TYPE_CHECKING:
    from modelyard.catalog.transaction import Transaction

__all__ = ["LeaseRecord", "acquire", "beat", "listing", "observe", "release"]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease: `seq` is when it was taken and `heartbeat_seq` when it last lived, both in the catalog's sequence.

    `observed_seq` is the heartbeat that a collection saw last, at `observed_at`; None before one looked.
    """

    id: str
    seq: int
    purpose: str
    owner: str
    heartbeat_seq: int
    acquired_at: str
    observed_seq: int | None = None
    observed_at: str | None = None


def acquire(tx: Transaction, lease_id: str, *, purpose: str, owner: str) -> None:
    """Write a lease."""
    seq = tx.next("lease")
    row = {"id": lease_id, "seq": seq, "purpose": purpose, "owner": owner, "heartbeat_seq": seq, "acquired_at": tx.at}
    tx.connection.execute(insert(leases).values(**row))


def beat(tx: Transaction, lease_id: str) -> bool:
    """Move a lease's heartbeat to now; False when the lease is gone."""
    query = update(leases).where(leases.c.id == lease_id).values(heartbeat_seq=tx.next("lease"))
    return tx.connection.execute(query).rowcount == 1


def observe(tx: Transaction, lease_id: str, at: str) -> bool:
    """Note that a collection saw the lease's present heartbeat at a time (as `transaction.moment` writes it).

    A second look at the same heartbeat keeps the time of the first one, so the difference is how long it stood still.
    False when the lease is gone.
    """
    found = tx.connection.execute(
        select(leases.c.heartbeat_seq, leases.c.observed_seq).where(leases.c.id == lease_id)
    ).first()
    if found is None:
        return False
    if found.observed_seq != found.heartbeat_seq:
        seen = {"observed_seq": found.heartbeat_seq, "observed_at": at}
        tx.connection.execute(update(leases).where(leases.c.id == lease_id).values(**seen))
    return True


def release(tx: Transaction, lease_id: str) -> None:
    """Remove a lease; removing one that is gone changes nothing."""
    tx.connection.execute(delete(leases).where(leases.c.id == lease_id))


def listing(connection: Connection) -> list[LeaseRecord]:
    """Every lease, the oldest first."""
    rows = connection.execute(select(leases).order_by(leases.c.seq))
    return [
        LeaseRecord(
            row.id,
            row.seq,
            row.purpose,
            row.owner,
            row.heartbeat_seq,
            row.acquired_at,
            row.observed_seq,
            row.observed_at,
        )
        for row in rows
    ]
