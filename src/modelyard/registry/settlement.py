"""The transaction in which a pack's segments begin to count: everything that was true when they were encoded is asked again.

Writers take turns, so what holds here holds until the transaction ends. A segment that somebody else moved meanwhile, whose
inputs are gone, or that would be made from itself, stays as it was; so does a file that became hot. Nothing is unlinked.
Knows rows and whether objects are there; decodes nothing: the pack was read back before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelyard.catalog import counters, liveness, segments
from modelyard.catalog import files as files_table
from modelyard.catalog.segments import SegmentRow
from modelyard.catalog.usage import versions_with, whole_files_with
from modelyard.digest import Digest
from modelyard.errors import ConflictError
from modelyard.registry.inputs import InputGraph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from modelyard.catalog.transaction import Transaction
    from modelyard.store.base import ByteArea, Store
    from modelyard.store.packs import SegmentRecord

__all__ = ["KEPT_RAW", "Batch", "Settled", "release", "settle"]

KEPT_RAW = "{ }"
"""The params of a raw segment, which has none, as compaction spells them: the next one need not look at it again.

A commit writes `{}`. As JSON both are the same, so whoever compares a row with its pack's index sees no difference.
"""


@dataclass
class Batch:
    """What one transaction is about.

    Attributes:
        before: The rows of the segments as they were when they were encoded.
        left: Segments that stay raw where they are, because nothing makes them smaller.
        files: Files whose segments are all taken care of.
        used_since: Since when a use makes a file hot, as the catalog writes moments.
        collections: The counter when the lease began.
        homes: Segments and the other whole files in which they were read, and were sound.
    """

    used_since: str
    collections: int
    before: dict[str, SegmentRow] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    homes: dict[str, set[str]] = field(default_factory=dict)


@dataclass
class Settled:
    """What came of it: rows that were set, segments that were refused and why, and files that need not be whole any more."""

    placed: list[SegmentRow] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)


def settle(
    tx: Transaction, raw: Store, batch: Batch, *, pack: Digest, size: int, records: Sequence[SegmentRecord]
) -> Settled:
    """Let the segments of a published and verified pack count, as far as that is still right.

    Raises:
        ConflictError: The pack itself was collected.
    """
    present = _Presence(tx.connection, raw, batch.collections)
    if not present.object("packs", pack):
        raise ConflictError(f"pack `{pack[:12]}` was collected before it counted", hint="yard compact")
    settled = Settled()
    sources = {str(source) for record in records for source in record.inputs}
    now = segments.find(tx.connection, [record.digest for record in records])
    graph = InputGraph({})
    graph.extend(tx.connection, sources | now.keys())
    under = segments.closure(tx.connection, sources)
    unreadable = present.missing(under.values())
    rows: dict[str, SegmentRow] = {}
    placed: set[str] = set()
    for record in _inputs_first(records):
        problem = _changed(now.get(record.digest), batch.before.get(record.digest))
        for source in record.inputs if problem is None else ():
            if source not in placed and (source not in under or _meets(source, under, unreadable)):
                problem = f"`{source[:16]}`, which it is made from, is gone"
        problem = problem or graph.problem(record.digest, record.inputs)
        if problem is not None:
            settled.refused[record.digest] = problem
            continue
        row = _row(record, pack)
        rows[row.digest] = row
        placed.add(row.digest)
        depths = graph.put(record.digest, record.inputs)
        above = segments.find(tx.connection, depths.keys() - rows.keys())
        rows |= {digest: replace(found, depth=depths[digest]) for digest, found in above.items()}
        rows |= {digest: replace(rows[digest], depth=depths[digest]) for digest in depths.keys() & rows.keys()}
    if placed:
        segments.record_pack(tx, pack, size)
        segments.place_all(tx, rows.values())
    settled.placed = [rows[digest] for digest in sorted(placed)]
    _leave(tx, batch)
    settled.released = release(tx, raw, batch)
    return settled


def release(tx: Transaction, raw: Store, batch: Batch) -> list[str]:
    """Say of the batch's files that are cold, and whose segments are all held otherwise, that they are not whole any more.

    A segment that is in no pack is held by another whole file only if it was read there.
    """
    connection = tx.connection
    present = _Presence(connection, raw, batch.collections)
    hot = liveness.hot_versions(connection, used_since=batch.used_since)
    having = versions_with(connection, batch.files)
    rows = files_table.find(connection, batch.files)
    cold = [file for file in batch.files if file in rows and rows[file].whole and not having.get(file, set()) & hot]
    pieces = files_table.pieces_of(connection, cold)
    released: list[str] = []
    for file in cold:
        own = {piece.segment for piece in pieces.get(file, [])}
        if sum(piece.size for piece in pieces.get(file, [])) != rows[file].size:
            continue
        found = segments.find(connection, own)
        alone = {segment for segment in own if segment not in found or found[segment].encoding is None}
        others = whole_files_with(connection, alone)
        sound = {segment: others.get(segment, set()) & batch.homes.get(segment, set()) for segment in alone}
        if all(any(present.object("files", home) for home in homes - {file}) for homes in sound.values()):
            files_table.set_whole(tx, [file], False)
            released.append(file)
    return released


def _leave(tx: Transaction, batch: Batch) -> None:
    """Note which raw segments were looked at, where they are still as they were."""
    now = segments.find(tx.connection, batch.left)
    same = [row for row in now.values() if _changed(row, batch.before.get(row.digest)) is None]
    segments.place_all(tx, [replace(row, params=KEPT_RAW) for row in same])


def _row(record: SegmentRecord, pack: Digest) -> SegmentRow:
    params = KEPT_RAW if record.encoding == "raw" else json.dumps(dict(record.params), sort_keys=True)
    place = (record.encoding, str(pack), record.offset, record.length, params)
    return SegmentRow(record.digest, record.size, *place, 0, tuple(str(source) for source in record.inputs))


def _changed(now: SegmentRow | None, before: SegmentRow | None) -> str | None:
    """Why a segment is not as it was when it was encoded."""
    if now is None:
        return "it was collected meanwhile"
    if before is None or (now.encoding, now.pack) != (before.encoding, before.pack):
        return "somebody else moved it meanwhile"
    return None


def _meets(start: str, rows: Mapping[str, SegmentRow], unwanted: set[str]) -> bool:
    """Whether a way through inputs leads from `start` to one of `unwanted`, or to a segment without a row."""
    seen: set[str] = set()
    level = {start}
    while level:
        if level & unwanted or level - rows.keys():
            return True
        seen |= level
        level = {source for each in level for source in rows[each].inputs} - seen
    return False


def _inputs_first(records: Sequence[SegmentRecord]) -> list[SegmentRecord]:
    """The records so that each comes after those of its inputs that are among them; a ring is left in any order."""
    waiting = {str(record.digest): record for record in records}
    ordered: list[SegmentRecord] = []
    while waiting:
        ready = [record for record in waiting.values() if not waiting.keys() & set(record.inputs)]
        ordered.extend(waiting.pop(record.digest) for record in ready or list(waiting.values()))
    return ordered


class _Presence:
    """Whether objects are there: what the catalog says, and the store itself once a collection has removed anything."""

    def __init__(self, connection: Connection, raw: Store, collections: int) -> None:
        self._connection, self._raw = connection, raw
        self._quiet = counters.current(connection, "collections") == collections
        self._seen: dict[tuple[str, str], bool] = {}

    def object(self, area: ByteArea, name: str) -> bool:
        """Whether a pack or whole file is in the store."""
        if self._quiet:
            return True
        if (area, name) not in self._seen:
            self._seen[area, name] = self._raw.has_file(Digest(name), area=area)
        return self._seen[area, name]

    def missing(self, rows: Iterable[SegmentRow]) -> set[str]:
        """Of these segments, those that are kept nowhere."""
        listed = list(rows)
        homes = segments.all_homes(self._connection, [row.digest for row in listed])
        known = segments.packs(self._connection)
        gone: set[str] = set()
        for row in listed:
            if any(self.object("files", file) for file, _ in homes.get(row.digest, ())):
                continue
            packed = row.encoding is not None and row.pack is not None and row.pack in known
            if not (packed and self.object("packs", str(row.pack))):
                gone.add(row.digest)
        return gone
