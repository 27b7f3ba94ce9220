"""Segments as rows: how each is encoded, in which pack, and what it is made from. Knows no codec and no bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, select, text

from modelyard.catalog import candidates
from modelyard.catalog.lists import chunks
from modelyard.catalog.schema import file_segments, files, segment_inputs, segments
from modelyard.catalog.schema import packs as packs_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.catalog.transaction import Transaction

__all__ = [
    "SegmentRow",
    "all_homes",
    "closure",
    "find",
    "forget",
    "forget_packs",
    "homes",
    "packs",
    "place",
    "place_all",
    "record_pack",
    "users",
]

# One statement on both databases; SQLAlchemy's own spelling of it needs one dialect's module or the other's.
_PLACE = text(
    'INSERT INTO segments (digest, size, encoding, pack, "offset", length, params, depth) '
    "VALUES (:digest, :size, :encoding, :pack, :offset, :length, :params, :depth) "
    "ON CONFLICT (digest) DO UPDATE SET encoding = excluded.encoding, pack = excluded.pack, "
    '"offset" = excluded."offset", length = excluded.length, params = excluded.params, depth = excluded.depth'
)
_INPUT = text('INSERT INTO segment_inputs (segment, "position", input) VALUES (:segment, :position, :input)')
_PACK = text("INSERT INTO packs (digest, size) VALUES (:digest, :size) ON CONFLICT (digest) DO NOTHING")


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment. `encoding` and `pack` are None while it is only in whole files; `params` is JSON text.

    `offset` and `length` are its payload in the pack; `depth` is 0 without inputs, else 1 + the deepest input's.
    """

    digest: str
    size: int
    encoding: str | None = None
    pack: str | None = None
    offset: int = 0
    length: int = 0
    params: str = "{}"
    depth: int = 0
    inputs: tuple[str, ...] = ()


def find(connection: Connection, digests: Iterable[str]) -> dict[str, SegmentRow]:
    """The rows of these segments by digest; unknown ones are left out."""
    found: dict[str, SegmentRow] = {}
    for some in chunks(digests):
        for row in connection.execute(select(segments).where(segments.c.digest.in_(some))):
            found[row.digest] = SegmentRow(
                row.digest, row.size, row.encoding, row.pack, row.offset, row.length, row.params, row.depth
            )
        made: dict[str, list[str]] = {}
        query = select(segment_inputs).where(segment_inputs.c.segment.in_(some))
        for row in connection.execute(query.order_by(segment_inputs.c.segment, segment_inputs.c.position)):
            made.setdefault(row.segment, []).append(row.input)
        for digest, inputs in made.items():
            found[digest] = replace(found[digest], inputs=tuple(inputs))
    return found


def place(tx: Transaction, row: SegmentRow) -> None:
    """Write how a segment is held, over what was said before; its inputs (which have rows) are replaced."""
    place_all(tx, [row])


def place_all(tx: Transaction, rows: Iterable[SegmentRow]) -> None:
    """Place many segments. An input may be among them, in any order."""
    placed = list(rows)
    if not placed:
        return
    for some in chunks(row.digest for row in placed):
        # Needed until now: a mark from before that says nothing any more (`catalog.removal`).
        left = select(segments.c.pack).where(segments.c.digest.in_(some), segments.c.pack.is_not(None)).distinct()
        candidates.unmark(tx, [("packs", pack) for pack in tx.connection.execute(left).scalars()])
    tx.connection.execute(
        _PLACE,
        [
            {"digest": row.digest, "size": row.size, "encoding": row.encoding, "pack": row.pack}
            | {"offset": row.offset, "length": row.length, "params": row.params, "depth": row.depth}
            for row in placed
        ],
    )
    for some in chunks(row.digest for row in placed):
        tx.connection.execute(delete(segment_inputs).where(segment_inputs.c.segment.in_(some)))
    made = [
        {"segment": row.digest, "position": position, "input": digest}
        for row in placed
        for position, digest in enumerate(row.inputs)
    ]
    if made:
        tx.connection.execute(_INPUT, made)


def homes(connection: Connection, digests: Iterable[str]) -> dict[str, tuple[str, int]]:
    """For each of these segments that lies in a whole file: such a file's digest and where in it the segment starts.

    Of several places the one with the smallest file digest and start, so that everybody reads the same one.
    """
    return {segment: places[0] for segment, places in all_homes(connection, digests).items()}


def all_homes(connection: Connection, digests: Iterable[str]) -> dict[str, list[tuple[str, int]]]:
    """As `homes`, every place: for whoever finds that the one which everybody reads is damaged or gone."""
    found: dict[str, list[tuple[str, int]]] = {}
    for some in chunks(digests):
        query = (
            select(file_segments.c.segment, file_segments.c.file, file_segments.c.start)
            .join(files, files.c.digest == file_segments.c.file)
            .where(file_segments.c.segment.in_(some), files.c.whole == 1)
            .order_by(file_segments.c.file, file_segments.c.start)
        )
        for row in connection.execute(query):
            found.setdefault(row.segment, []).append((row.file, row.start))
    return found


def closure(connection: Connection, digests: Iterable[str]) -> dict[str, SegmentRow]:
    """These segments with everything that they are made from, and that from, to the end; it ends in spite of cycles."""
    found: dict[str, SegmentRow] = {}
    wanted = set(digests)
    while wanted:
        level = find(connection, wanted)
        found |= level
        wanted = {digest for row in level.values() for digest in row.inputs} - found.keys()
    return found


def users(connection: Connection, segment: str) -> tuple[list[str], list[str]]:
    """Who has a segment: the files that it lies in, and the segments that are made from it; both sorted."""
    lies = select(file_segments.c.file).where(file_segments.c.segment == segment).distinct()
    made = select(segment_inputs.c.segment).where(segment_inputs.c.input == segment).distinct()
    return sorted(connection.execute(lies).scalars()), sorted(connection.execute(made).scalars())


def forget(tx: Transaction, digests: Iterable[str]) -> None:
    """Remove the rows of segments that no file has, and that nothing outside of these is made from."""
    wanted = list(chunks(digests))
    for some in wanted:
        tx.connection.execute(delete(segment_inputs).where(segment_inputs.c.segment.in_(some)))
    for some in wanted:
        tx.connection.execute(delete(segments).where(segments.c.digest.in_(some)))


def record_pack(tx: Transaction, digest: str, size: int) -> None:
    """Write a pack of `size` bytes; one that is known stays."""
    tx.connection.execute(_PACK, {"digest": digest, "size": size})


def packs(connection: Connection) -> dict[str, int]:
    """Every pack's digest and size in bytes."""
    return {row.digest: row.size for row in connection.execute(select(packs_table))}


def forget_packs(tx: Transaction, digests: Iterable[str]) -> None:
    """Remove the rows of packs; no segment may be in one any more."""
    for some in chunks(digests):
        tx.connection.execute(delete(packs_table).where(packs_table.c.digest.in_(some)))
