"""Packs of whose payload more than half is dead: what is live in them moves into a new pack, as it is.

Knows which segments are live and where their payloads lie; decodes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.catalog import liveness, segments
from modelyard.catalog.usage import all_segments, in_pack
from modelyard.digest import Digest
from modelyard.registry.encoding import Encoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from modelyard.catalog.segments import SegmentRow
    from modelyard.registry.packages import Indexes

__all__ = ["half_dead", "live_content"]


def half_dead(connection: Connection, indexes: Indexes) -> dict[str, list[SegmentRow]]:
    """The packs more than half of whose payload no live segment needs, with the rows of those that are; none that is dead wholly."""
    live = liveness.live_segments(connection)
    payload: dict[str, int] = {}
    for line in all_segments(connection):
        if line.pack is not None and line.digest in live:
            payload[line.pack] = payload.get(line.pack, 0) + line.length
    found: dict[str, list[SegmentRow]] = {}
    for pack, size in sorted(segments.packs(connection).items()):
        # The index is part of the size, so this says yes too often; what the index says decides.
        if pack not in payload or 2 * payload[pack] >= size:
            continue
        index = indexes.of(pack)
        if index is not None and 2 * payload[pack] < sum(record.length for record in index.segments):
            rows = segments.find(connection, [name for name in in_pack(connection, pack) if name in live])
            found[pack] = list(rows.values())
    return found


def live_content(indexes: Indexes, rows: list[SegmentRow]) -> Iterator[tuple[SegmentRow, Encoded]]:
    """These segments of one pack in the encoding in which they are, in the order of their payloads."""
    index = indexes.of(str(rows[0].pack)) if rows else None
    records = {str(record.digest): record for record in index.segments} if index is not None else {}
    for row in sorted(rows, key=lambda row: (row.offset, row.digest)):
        record = records.get(row.digest)
        if record is None:
            continue
        payload = indexes.raw.read_range("packs", Digest(str(row.pack)), row.offset, row.offset + row.length)
        inputs = tuple(str(source) for source in record.inputs)
        yield row, Encoded(row.digest, row.size, record.encoding, payload, record.params, inputs)
