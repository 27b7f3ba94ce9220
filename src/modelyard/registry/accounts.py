"""Who needs which stored bytes: every unit of storage with the one version that needs it, or the note that several do.

A unit is a whole file, or a segment's payload in a pack. A version *has* the files it was committed with, their segments, and
no more; it *needs* the inputs of those as well, and the whole files in which such a segment lies and nowhere else. The rules are
those of `docs/design/catalog.md`, "What is live". Tables are read row by row, once; what stays in memory is one
entry for each file and segment. Knows digests and numbers only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.catalog import liveness
from modelyard.catalog.usage import FileLine, SegmentLine, all_files, all_inputs, all_pieces, all_segments, owners

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection

__all__ = ["SEVERAL", "Accounts", "Claims"]

SEVERAL = -1
"""In place of an owner: more than one."""


@dataclass
class Claims:
    """The one owner of each file and segment, or `SEVERAL`: by what is had, and by what is needed."""

    had_files: dict[str, int] = field(default_factory=dict)
    had_segments: dict[str, int] = field(default_factory=dict)
    needed_files: dict[str, int] = field(default_factory=dict)
    needed_segments: dict[str, int] = field(default_factory=dict)


@dataclass
class Accounts:
    """The catalog's rows, as far as accounts need them.

    Attributes:
        files: Every file.
        segments: Every segment, the deepest first.
        pieces: The segments of each file, each once.
        inputs: What segments are made from.
        having: The files of each version, deleted ones included.
        live: The versions whose bytes are kept for their own sake.
    """

    files: dict[str, FileLine]
    segments: dict[str, SegmentLine]
    pieces: dict[str, list[str]]
    inputs: dict[str, list[str]]
    having: dict[int, list[str]]
    live: set[int]

    @classmethod
    def read(cls, connection: Connection) -> Accounts:
        """Everything, as of one transaction."""
        pieces: dict[str, dict[str, None]] = {}
        for file, segment in all_pieces(connection):
            pieces.setdefault(file, {})[segment] = None
        inputs: dict[str, list[str]] = {}
        for segment, source in all_inputs(connection):
            inputs.setdefault(segment, []).append(source)
        having: dict[int, list[str]] = {}
        for version, file in owners(connection):
            having.setdefault(version, []).append(file)
        return cls(
            {line.digest: line for line in all_files(connection)},
            {line.digest: line for line in all_segments(connection)},
            {file: list(those) for file, those in pieces.items()},
            inputs,
            having,
            liveness.live_versions(connection),
        )

    def claims(self, owner_of: Mapping[int, int]) -> Claims:
        """Who has and who needs what; `owner_of` says for whom each live version counts, itself or its repo."""
        found = Claims()
        for version in self.live:
            for file in self.having.get(version, ()):
                _claim(found.had_files, file, owner_of[version])
        for file, owner in found.had_files.items():
            for segment in self.pieces.get(file, ()):
                _claim(found.had_segments, segment, owner)
        found.needed_files, found.needed_segments = dict(found.had_files), dict(found.had_segments)
        # The deepest first, so that a segment's own owner is final before its inputs are told.
        for name in self.segments:
            owner_or_none = found.needed_segments.get(name)
            for source in self.inputs.get(name, ()) if owner_or_none is not None else ():
                _claim(found.needed_segments, source, owner_or_none or 0)
        self._claim_homes(found)
        return found

    def _claim_homes(self, found: Claims) -> None:
        """A segment that is nowhere but in the whole files of one owner keeps those for whoever needs it."""
        homes: dict[str, list[str]] = {}
        for file, line in self.files.items():
            for segment in self.pieces.get(file, ()) if line.whole else ():
                if segment in found.needed_segments and self.segments[segment].encoding is None:
                    homes.setdefault(segment, []).append(file)
        had = dict(found.had_files)
        for segment, files in homes.items():
            owners = {had[file] for file in files if file in had}
            if len(owners) > 1 or SEVERAL in owners:
                continue  # whichever owner goes, another's file is left
            for file in files:
                if file in had or not owners:
                    _claim(found.needed_files, file, found.needed_segments[segment])

    def units(self, files: Iterable[str]) -> tuple[set[str], set[str]]:
        """What is stored of these files: those that are whole, and those of their segments that have a payload."""
        whole = {file for file in files if (line := self.files.get(file)) is not None and line.whole}
        segments = {segment for file in files for segment in self.pieces.get(file, ())}
        return whole, {segment for segment in segments if self.segments[segment].encoding is not None}

    def size(self, whole: Iterable[str], segments: Iterable[str]) -> int:
        """Bytes of whole files and payloads."""
        return sum(self.files[file].size for file in whole) + sum(self.segments[each].length for each in segments)

    def owned(self, files: Mapping[str, int], segments: Mapping[str, int]) -> Counter[int]:
        """Bytes of the units that one owner has alone, by owner; those of `SEVERAL` under that number."""
        found: Counter[int] = Counter()
        for file, owner in files.items():
            line = self.files.get(file)
            if line is not None and line.whole:
                found[owner] += line.size
        for segment, owner in segments.items():
            if self.segments[segment].encoding is not None:
                found[owner] += self.segments[segment].length
        return found

    def encodings(self, files: Iterable[str]) -> dict[str, int]:
        """The bytes of these files by how they are kept; `elsewhere` is in another whole file."""
        found: Counter[str] = Counter()
        for file in files:
            line = self.files.get(file)
            if line is None or line.whole:
                found["whole"] += line.size if line is not None else 0
                continue
            for segment in self.pieces.get(file, ()):
                row = self.segments[segment]
                found[row.encoding or "elsewhere"] += row.size
        return {kind: size for kind, size in sorted(found.items()) if size}

    def made_from(self, files: Iterable[str]) -> dict[int, int]:
        """The live versions that have segments made from segments of these files: how many, by version."""
        own = {segment for file in files for segment in self.pieces.get(file, ())}
        made = {segment for segment, sources in self.inputs.items() if not own.isdisjoint(sources)} - own
        found: Counter[int] = Counter()
        if made:
            for version in sorted(self.live):
                theirs = {segment for file in self.having.get(version, ()) for segment in self.pieces.get(file, ())}
                if count := len(theirs & made):
                    found[version] = count
        return dict(found)


def _claim(claims: dict[str, int], name: str, owner: int) -> None:
    if claims.setdefault(name, owner) != owner:
        claims[name] = SEVERAL
