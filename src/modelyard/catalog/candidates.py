"""Candidates: objects that a collection found to be garbage, and since when, in the catalog's own order.

A mark is a number of the lease counter, so that "every lease older than the mark has ended" is a comparison of numbers.
Areas and names are text here; it knows no store, and what is needed is `catalog.liveness`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, insert, select

from modelyard.catalog.schema import candidates

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.catalog.transaction import Transaction

__all__ = ["Candidate", "Name", "find", "listing", "mark", "unmark"]

Name = tuple[str, str]
"""An area and a name in it, such as `("files", digest)`."""

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object that a collection marked: `marked_seq` orders, `marked_at` is the collector's clock, for the grace period."""

    area: str
    name: str
    marked_seq: int
    marked_at: str


def listing(connection: Connection, area: str | None = None) -> list[Candidate]:
    """Every candidate, or those of one area, in the order in which they were marked."""
    query = select(candidates).order_by(candidates.c.marked_seq, candidates.c.area, candidates.c.name)
    if area is not None:
        query = query.where(candidates.c.area == area)
    return [Candidate(row.area, row.name, row.marked_seq, row.marked_at) for row in connection.execute(query)]


def find(connection: Connection, names: Iterable[Name]) -> dict[Name, Candidate]:
    """Those of these objects that are candidates."""
    by_area: dict[str, list[str]] = {}
    for area, name in names:
        by_area.setdefault(area, []).append(name)
    found: dict[Name, Candidate] = {}
    for area, wanted in by_area.items():
        for start in range(0, len(wanted), _CHUNK):
            chosen = candidates.c.name.in_(wanted[start : start + _CHUNK])
            for row in connection.execute(select(candidates).where(candidates.c.area == area, chosen)):
                found[area, row.name] = Candidate(area, row.name, row.marked_seq, row.marked_at)
    return found


def mark(tx: Transaction, names: Iterable[Name], at: str) -> int:
    """Make these objects candidates, all with one number, which is returned; one that was marked is marked anew.

    Args:
        tx: A write transaction.
        names: The objects.
        at: When, as `transaction.moment` writes it.
    """
    seq = tx.next("lease")
    wanted = sorted(set(names))
    unmark(tx, wanted)
    rows = [{"area": area, "name": name, "marked_seq": seq, "marked_at": at} for area, name in wanted]
    for start in range(0, len(rows), _CHUNK):
        tx.connection.execute(insert(candidates), rows[start : start + _CHUNK])
    return seq


def unmark(tx: Transaction, names: Iterable[Name]) -> None:
    """Forget these candidates; one that is none changes nothing."""
    by_area: dict[str, list[str]] = {}
    for area, name in names:
        by_area.setdefault(area, []).append(name)
    for area, wanted in by_area.items():
        for start in range(0, len(wanted), _CHUNK):
            chosen = candidates.c.name.in_(wanted[start : start + _CHUNK])
            tx.connection.execute(delete(candidates).where(candidates.c.area == area, chosen))
