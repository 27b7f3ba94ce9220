"""Files as rows: what a file is by digest, whether it is whole, and which segments it is cut into.

A row says how a file is held, never where: paths of versions are `catalog.versions`, packs are `catalog.segments`. This
module knows no bytes; it believes what the registry tells it, in the transaction in which it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, bindparam, delete, select, text, update

from modelyard.catalog import candidates
from modelyard.catalog.lists import chunks
from modelyard.catalog.schema import file_segments, files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelyard.catalog.transaction import Transaction

__all__ = [
    "FileRow",
    "Piece",
    "find",
    "forget",
    "of_size",
    "pieces",
    "pieces_of",
    "record",
    "record_pieces",
    "set_whole",
    "touch",
]

# Built once: a statement costs more to put together than to run.
_FIND = select(files).where(files.c.digest.in_(bindparam("digests", expanding=True)))
# One statement on both databases; SQLAlchemy's own spelling of it needs one dialect's module or the other's.
_RECORD = text(
    "INSERT INTO files (digest, size, sha256, git_blob, cut, whole, used_at) "
    "VALUES (:digest, :size, :sha256, :git_blob, :cut, :whole, :used_at) "
    "ON CONFLICT (digest) DO UPDATE SET "
    "whole = CASE WHEN excluded.whole = 1 THEN 1 ELSE files.whole END, "
    "cut = coalesce(files.cut, excluded.cut), git_blob = coalesce(files.git_blob, excluded.git_blob), "
    "used_at = coalesce(excluded.used_at, files.used_at)"
)
# By the driver's own words and in tuples: SQLAlchemy takes three times as long for a model of 18,000 tensors.
_SEGMENT = (
    'INSERT INTO segments (digest, size, "offset", length, params, depth) '
    "VALUES ({0}, {0}, 0, 0, '{{}}', 0) ON CONFLICT (digest) DO NOTHING"
)
_PIECE = 'INSERT INTO file_segments (file, "position", segment, start, size) VALUES ({0}, {0}, {0}, {0}, {0})'


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file that some version has or had. `cut` is None before it was cut; `whole`: `files/<digest>` may be counted on."""

    digest: str
    size: int
    sha256: str
    git_blob: str | None = None
    cut: str | None = None
    whole: bool = True
    used_at: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a segment lies in a file: `size` bytes from `start`."""

    position: int
    segment: str
    start: int
    size: int


def find(connection: Connection, digests: Iterable[str]) -> dict[str, FileRow]:
    """The rows of these files by digest; unknown ones are left out."""
    found: dict[str, FileRow] = {}
    for some in chunks(digests):
        for row in connection.execute(_FIND, {"digests": some}):
            found[row.digest] = FileRow(
                row.digest, row.size, row.sha256, row.git_blob, row.cut, bool(row.whole), row.used_at
            )
    return found


def of_size(connection: Connection, size: int, *, limit: int) -> list[FileRow]:
    """Up to `limit` files of this size in bytes, whole ones first, else in order of their digests."""
    query = select(files).where(files.c.size == size).order_by(files.c.whole.desc(), files.c.digest).limit(limit)
    return [
        FileRow(row.digest, row.size, row.sha256, row.git_blob, row.cut, bool(row.whole), row.used_at)
        for row in connection.execute(query)
    ]


def record(tx: Transaction, rows: Iterable[FileRow]) -> None:
    """Write files. Where one has a row already it stays whole if it was, and keeps the cut and git blob that are known."""
    values = [
        {"digest": row.digest, "size": row.size, "sha256": row.sha256, "git_blob": row.git_blob}
        | {"cut": row.cut, "whole": int(row.whole), "used_at": row.used_at}
        for row in rows
    ]
    if values:
        tx.connection.execute(_RECORD, values)


def pieces(connection: Connection, file: str) -> list[Piece]:
    """The segments of a file in order; empty for a file that is not cut yet, that is empty, or that is unknown."""
    return pieces_of(connection, [file]).get(file, [])


def pieces_of(connection: Connection, digests: Iterable[str]) -> dict[str, list[Piece]]:
    """The segments of these files in order; files without any are left out."""
    found: dict[str, list[Piece]] = {}
    for some in chunks(digests):
        query = select(file_segments).where(file_segments.c.file.in_(some))
        for row in connection.execute(query.order_by(file_segments.c.file, file_segments.c.position)):
            found.setdefault(row.file, []).append(Piece(row.position, row.segment, row.start, row.size))
    return found


def record_pieces(tx: Transaction, file: str, pieces: Sequence[Piece]) -> None:
    """Write how a file (which has a row) is cut; segments that have no row get one, with no encoding.

    A file that has pieces keeps them: a cut follows from the bytes, so those of a second one are the same.
    """
    known = select(file_segments.c.position).where(file_segments.c.file == file).limit(1)
    if not pieces or tx.connection.execute(known).first() is not None:
        return
    mark = "?" if tx.connection.dialect.paramstyle == "qmark" else "%s"
    # In the index's own order: faster, and two commits at once wait for each other instead of for ever.
    segments = sorted({(piece.segment, piece.size) for piece in pieces})
    tx.connection.exec_driver_sql(_SEGMENT.format(mark), segments)
    rows = [(file, piece.position, piece.segment, piece.start, piece.size) for piece in pieces]
    tx.connection.exec_driver_sql(_PIECE.format(mark), rows)


def set_whole(tx: Transaction, digests: Iterable[str], whole: bool) -> None:
    """Say whether `files/<digest>` may be counted on, for files that have a row."""
    for some in chunks(digests):
        tx.connection.execute(update(files).where(files.c.digest.in_(some)).values(whole=int(whole)))
        # Needed until now, or from now on: a mark from before that says nothing any more (`catalog.removal`).
        candidates.unmark(tx, [("files", digest) for digest in some])


def touch(tx: Transaction, digests: Iterable[str], at: str) -> None:
    """Note that files were used at a time, as `catalog.transaction.moment` writes it."""
    for some in chunks(digests):
        tx.connection.execute(update(files).where(files.c.digest.in_(some)).values(used_at=at))


def forget(tx: Transaction, digests: Iterable[str]) -> None:
    """Remove the rows of files and of their pieces; segments keep theirs."""
    for some in chunks(digests):
        tx.connection.execute(delete(file_segments).where(file_segments.c.file.in_(some)))
        tx.connection.execute(delete(files).where(files.c.digest.in_(some)))
