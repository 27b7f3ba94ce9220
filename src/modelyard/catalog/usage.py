"""Who has which bytes: the same rows as `files` and `segments`, asked for many at once and across versions.

Compaction asks who else has a segment, and how deep the way through inputs would get; the accounts of what takes how
much read whole tables, row by row. It knows no bytes, and what is live is `catalog.liveness`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection, func, select

from modelyard.catalog.lists import chunks
from modelyard.catalog.schema import file_segments, files, segment_inputs, segments, version_files, versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "FileLine",
    "SegmentLine",
    "all_files",
    "all_inputs",
    "all_pieces",
    "all_segments",
    "first_versions",
    "in_pack",
    "owners",
    "repos_of",
    "users_of",
    "versions_with",
    "whole_files_with",
]


class FileLine(NamedTuple):
    """A file: whether it is whole, and its bytes."""

    digest: str
    size: int
    whole: bool


class SegmentLine(NamedTuple):
    """A segment: its bytes, how it is kept, and the bytes of its payload."""

    digest: str
    size: int
    encoding: str | None
    pack: str | None
    length: int
    depth: int


def users_of(connection: Connection, digests: Iterable[str]) -> dict[str, set[str]]:
    """For each of these segments that something is made from: the segments that are."""
    found: dict[str, set[str]] = {}
    for some in chunks(digests):
        query = select(segment_inputs.c.input, segment_inputs.c.segment).where(segment_inputs.c.input.in_(some))
        for row in connection.execute(query):
            found.setdefault(row.input, set()).add(row.segment)
    return found


def whole_files_with(connection: Connection, digests: Iterable[str]) -> dict[str, set[str]]:
    """For each of these segments that lies in a whole file: all whole files that it lies in."""
    found: dict[str, set[str]] = {}
    for some in chunks(digests):
        query = (
            select(file_segments.c.segment, file_segments.c.file)
            .join(files, files.c.digest == file_segments.c.file)
            .where(file_segments.c.segment.in_(some), files.c.whole == 1)
        )
        for row in connection.execute(query):
            found.setdefault(row.segment, set()).add(row.file)
    return found


def first_versions(connection: Connection, digests: Iterable[str], *, live: bool = True) -> dict[str, int]:
    """The `seq` of the first version that has each of these files; with `live`, deleted ones do not count."""
    found: dict[str, int] = {}
    for some in chunks(digests):
        query = (
            select(version_files.c.blake3, func.min(version_files.c.version_seq).label("seq"))
            .join(versions, versions.c.seq == version_files.c.version_seq)
            .where(version_files.c.blake3.in_(some))
            .group_by(version_files.c.blake3)
        )
        if live:
            query = query.where(versions.c.deleted == 0)
        found.update((row.blake3, row.seq) for row in connection.execute(query))
    return found


def versions_with(connection: Connection, digests: Iterable[str]) -> dict[str, set[int]]:
    """The `seq`s of the versions that have each of these files, deleted ones included."""
    found: dict[str, set[int]] = {}
    for some in chunks(digests):
        query = select(version_files.c.blake3, version_files.c.version_seq).where(version_files.c.blake3.in_(some))
        for row in connection.execute(query):
            found.setdefault(row.blake3, set()).add(row.version_seq)
    return found


def in_pack(connection: Connection, pack: str) -> list[str]:
    """The segments whose payload, or record, this pack holds; sorted."""
    query = select(segments.c.digest).where(segments.c.pack == pack).order_by(segments.c.digest)
    return list(connection.execute(query).scalars())


def owners(connection: Connection) -> Iterator[tuple[int, str]]:
    """Every version's `seq` with each of its files, deleted versions included."""
    query = select(version_files.c.version_seq, version_files.c.blake3).distinct()
    for row in connection.execute(query.order_by(version_files.c.version_seq)):
        yield row.version_seq, row.blake3


def repos_of(connection: Connection) -> dict[int, int]:
    """The repo's id of every version, by `seq`."""
    return {row.seq: row.repo_id for row in connection.execute(select(versions.c.seq, versions.c.repo_id))}


def all_files(connection: Connection) -> Iterator[FileLine]:
    """Every file."""
    for row in connection.execute(select(files.c.digest, files.c.size, files.c.whole)):
        yield FileLine(row.digest, row.size, bool(row.whole))


def all_pieces(connection: Connection) -> Iterator[tuple[str, str]]:
    """Every file with each of its segments, file by file."""
    query = select(file_segments.c.file, file_segments.c.segment).order_by(file_segments.c.file)
    for row in connection.execute(query):
        yield row.file, row.segment


def all_segments(connection: Connection) -> Iterator[SegmentLine]:
    """Every segment, the deepest first."""
    columns = (segments.c.digest, segments.c.size, segments.c.encoding, segments.c.pack)
    query = select(*columns, segments.c.length, segments.c.depth).order_by(segments.c.depth.desc())
    for row in connection.execute(query):
        yield SegmentLine(*row)


def all_inputs(connection: Connection) -> Iterator[tuple[str, str]]:
    """Every segment that is made from others, with each of them."""
    for row in connection.execute(select(segment_inputs.c.segment, segment_inputs.c.input)):
        yield row.segment, row.input
