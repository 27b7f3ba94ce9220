"""What a compaction saved, in bytes. Knows numbers only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelyard.catalog.segments import SegmentRow
    from modelyard.digest import Digest

__all__ = ["Compaction", "Tally"]


@dataclass(frozen=True)
class Compaction:
    """What a compaction did, or in a dry run would do.

    Attributes:
        dry_run: Nothing was changed.
        files: How many files need not be whole any more.
        segments: How many segments took each encoding.
        before: Bytes before, by how they were kept: `whole` files that are not needed any more, and payloads in packs.
        after: Bytes of the new payloads, by encoding.
        packs: The new packs.
        packs_size: Their bytes, indexes included.
        refused: Segments that stay as they were although they were encoded, and why.
        notes: What lineage did not offer, and why.
    """

    dry_run: bool
    files: int = 0
    segments: Mapping[str, int] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)
    packs: tuple[Digest, ...] = ()
    packs_size: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def saved(self) -> int:
        """Bytes that a collection can free, less what the new packs take."""
        return sum(self.before.values()) - self.packs_size

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "dry_run": self.dry_run,
            "files": self.files,
            "segments": dict(self.segments),
            "before": dict(self.before),
            "after": dict(self.after),
            "packs": [str(pack) for pack in self.packs],
            "packs_size": self.packs_size,
            "saved": self.saved,
            "refused": dict(self.refused),
            "notes": list(self.notes),
        }


@dataclass
class Tally:
    """What was counted so far; see `Compaction`."""

    files: int = 0
    segments: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    packs_size: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def count(self, placed: Sequence[tuple[str, int, SegmentRow]], released: Sequence[int], size: int) -> None:
        """Count segments (encoding, payload, row before), files that need not be whole, and a pack of `size` bytes."""
        for encoding, length, before in placed:
            self.segments[encoding] += 1
            self.after[encoding] += length
            if before.encoding is not None:
                self.before[before.encoding] += before.length
        self.files += len(released)
        self.before["whole"] += sum(released)
        self.packs_size += size

    def result(self, packs: Sequence[Digest], notes: Sequence[str], *, dry_run: bool) -> Compaction:
        """What was counted, as a value."""
        return Compaction(
            dry_run,
            self.files,
            dict(sorted(self.segments.items())),
            {kind: size for kind, size in sorted(self.before.items()) if size},
            dict(sorted(self.after.items())),
            tuple(packs),
            self.packs_size,
            dict(self.refused),
            tuple(notes),
        )
