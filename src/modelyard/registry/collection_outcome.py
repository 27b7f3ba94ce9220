"""What a collection did, as plain values. Knows areas and numbers; not how anything is collected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.store.base import ObjectArea

__all__ = ["AREAS", "Collection", "Waiting"]

AREAS: tuple[ObjectArea, ...] = ("files", "packs", "manifests", "reports")
"""The store's objects."""


@dataclass(frozen=True)
class Waiting:
    """A lease that a collection waits for, or did not wait for any longer: what for, and whose (`host:pid:started`)."""

    purpose: str
    owner: str
    since: str


@dataclass(frozen=True)
class Collection:
    """What a collection did, or with `dry_run` would do.

    Attributes:
        marked: Objects that nothing needs and that were not marked before.
        removed: How many objects went, by area; `links` and `scratch` are folders beside the store, `tmp` is what dead
            writers left.
        freed: Bytes of the objects that went; one that is linked elsewhere too frees nothing yet.
        left: Objects that are marked and wait for the grace period or for leases.
        collected: Ids of the deleted versions that cannot come back any more.
        waiting: The leases that kept objects from going.
        future: Marks from the future, by this machine's clock: they were made anew.
        dry_run: Whether nothing was done.
    """

    marked: int
    removed: dict[str, int]
    freed: int
    left: int
    collected: tuple[str, ...]
    waiting: tuple[Waiting, ...]
    future: int
    dry_run: bool

    @property
    def objects(self) -> int:
        """How many of the store's objects went."""
        return sum(self.removed.get(area, 0) for area in AREAS)

    def to_dict(self) -> dict[str, Any]:
        """The collection as plain JSON values."""
        return {
            "marked": self.marked,
            "removed": dict(self.removed),
            "objects": self.objects,
            "freed": self.freed,
            "left": self.left,
            "collected": list(self.collected),
            "waiting": [{"purpose": w.purpose, "owner": w.owner, "since": w.since} for w in self.waiting],
            "future": self.future,
            "dry_run": self.dry_run,
        }
