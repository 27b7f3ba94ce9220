"""Taking files in: each is cut and hashed in the pass that stores it, and what is stored already is not stored again.

A file most of whose bytes are new is stored whole. Of a file most of whose segments are held, only the new ones go, raw, into
a pack that all files of one commit share. To know which it is without reading everything twice, a few segments are looked up
first; a wrong guess costs a pass or some bytes, never a wrong file. Nothing here is referred to until `record` has run in the
commit's transaction. Knows no versions and no names.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO, Self

import blake3

from modelyard.catalog import files, segments, versions
from modelyard.catalog.files import FileRow, Piece
from modelyard.catalog.segments import SegmentRow
from modelyard.digest import Digest, FileDigests, digest_bytes, read_chunks
from modelyard.errors import InputError, IntegrityError
from modelyard.registry.cuts import Cut, find_cut
from modelyard.registry.presence import held
from modelyard.store.hashing import CHUNK, Segmenting, hash_chunks
from modelyard.store.packs import FileRecord, PackIndex, PackWriter
from modelyard.store.reading import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from modelyard.catalog import Catalog, Transaction
    from modelyard.store.base import Store

__all__ = ["Pack", "Taken", "Taking", "record"]

_SAMPLES = 8
_LEAST_SAMPLES = 3
_GLANCE = 4096  # bytes of a stored file that are compared in each of a few places
_CANDIDATES = 16  # files of one size that are compared so
_SAMPLED_SHARE = 20  # at most a twentieth of a file is read to guess, unless three segments are more


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that is in the store: its hashes, its cut, its segments in order, and whether it lies there whole."""

    digests: FileDigests
    cut: str
    pieces: tuple[Piece, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that was stored: its digest, its size in bytes, and what is in it."""

    digest: Digest
    size: int
    index: PackIndex


class Taking:
    """Takes in the files of one commit; leave the `with` block without `close`, and its pack is not stored.

    Args:
        raw: Where bytes go.
        catalog: What says which bytes are held.
        sha256_of: Tells the SHA-256 of bytes that somebody else recorded, another yard say; None where it is not known.
    """

    def __init__(
        self, raw: Store, catalog: Catalog, *, sha256_of: Callable[[Digest], str | None] | None = None
    ) -> None:
        self._raw, self._catalog, self._sha256_of = raw, catalog, sha256_of
        self._writer: PackWriter | None = None
        self._packed: set[str] = set()
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def take(self, path: Path, *, link: bool = False) -> Taken:
        """Store the regular file at `path`, or those of its segments that are not held.

        Args:
            path: The file.
            link: Allow a hard link to the original; see `Store.import_file`.

        Raises:
            NotFoundError: There is no such file.
            InputError: It is not a regular file, or changed while it was read.
            NoSpaceError: The disk is full.
        """
        with source(path) as stream:
            before = os.fstat(stream.fileno())
            taken = self._find_same(stream, path, before.st_size) or self._take(path, find_cut(path), link=link)
        # The cut was found in an earlier read: it has to be of the very bytes that were stored.
        after = path.stat()
        if _identity(before) != _identity(after):
            raise _changed(path)
        return taken

    def close(self) -> Pack | None:
        """Store the pack, if any file needed one."""
        if self._writer is None:
            return None
        digest, index = self._writer.close()
        return Pack(digest, self._raw.file_size(digest, area="packs"), index)

    def find(self, digest: Digest) -> Taken | None:
        """A file that is held, whole and not damaged or in segments that are all there, without reading another copy."""
        with self._catalog.read() as connection:
            row = files.find(connection, [digest]).get(digest)
            if row is None or row.cut is None:
                return None
            # How a whole file is cut is known, and of no concern here.
            pieces = () if row.whole else tuple(files.pieces(connection, digest))
            names = {piece.segment for piece in pieces}
            if not row.whole and held(connection, self._raw, names) != names:
                return None
        if row.whole:
            try:
                self._raw.verify_file(digest)
            except IntegrityError:
                return None  # stored again, over the damaged one
        return Taken(FileDigests(row.size, digest, row.sha256, row.git_blob), row.cut, pieces, row.whole)

    def _find_same(self, stream: BinaryIO, path: Path, size: int) -> Taken | None:
        """The very file, where a whole one of this size agrees in a few places: no header is parsed to find that out."""
        if size <= _GLANCE * _SAMPLES:
            return None
        with self._catalog.read() as connection:
            rows = [
                row for row in files.of_size(connection, size, limit=_CANDIDATES) if row.whole and row.cut is not None
            ]
        for row in rows:
            if self._agrees(stream, path, row) and (same := self._find_agreeing(path, Digest(row.digest))) is not None:
                return same
        return None

    def _find_agreeing(self, path: Path, digest: Digest) -> Taken | None:
        """The stored file, if the one at `path` is it: both are read at once, and hashed on two cores."""
        with ThreadPoolExecutor(1, "hash") as pool:
            found = pool.submit(self.find, digest)
            if _hash_file(path) != digest:
                return None
            return found.result()

    def _agrees(self, stream: BinaryIO, path: Path, row: FileRow) -> bool:
        for part in range(_SAMPLES):
            start = (row.size - _GLANCE) * part // (_SAMPLES - 1)
            try:
                stored = self._raw.read_range("files", Digest(row.digest), start, start + _GLANCE)
            except IntegrityError:
                return False
            if b"".join(_range(stream, path, start, _GLANCE)) != stored:
                return False
        return True

    def _take(self, path: Path, cut: Cut, *, link: bool) -> Taken:
        sampled = _hash_ranges(path, _sample(cut))
        with self._catalog.read() as connection:
            known = held(connection, self._raw, sampled)
        if not known:
            return self._store_whole(path, cut, link=link)
        if known == set(sampled):
            # Probably the very file: one pass of BLAKE3 tells, where a pass with every hash takes several times as long.
            digest = sampled[0] if len(cut.sizes) == 1 else _hash_file(path)
            if (same := self.find(digest)) is not None:
                return same
        return self._store_new(path, cut, link=link)

    def _store_whole(self, path: Path, cut: Cut, *, link: bool) -> Taken:
        segmenting = Segmenting(cut.sizes)
        digests = self._raw.import_file(path, sha256_of=self._recorded, observe=segmenting.update, link=link)
        return Taken(digests, cut.name, _pieces(cut, segmenting.digests()), whole=True)

    def _store_new(self, path: Path, cut: Cut, *, link: bool) -> Taken:
        """Hash everything, then store what is not held: the file, or only some segments."""
        segmenting = Segmenting(cut.sizes)
        with source(path) as stream:
            digests = hash_chunks(read_chunks(stream, CHUNK), segmenting.update)
        pieces = _pieces(cut, segmenting.digests())
        with self._catalog.read() as connection:
            known = held(connection, self._raw, [piece.segment for piece in pieces]) | self._packed
        new = {piece.segment: piece for piece in pieces if piece.segment not in known}
        # A pack says how a file is cut that is not whole, and one without any new segment is not written.
        if not (new or self._writer) or 2 * sum(piece.size for piece in new.values()) > digests.size:
            stored = self._raw.import_file(path, sha256_of={digests.blake3: digests.sha256}.get, link=link)
            if stored.blake3 != digests.blake3:
                raise _changed(path)
            return Taken(digests, cut.name, pieces, whole=True)
        self._pack(path, new.values())
        names = tuple(Digest(piece.segment) for piece in pieces)
        record = FileRecord(digests.blake3, digests.size, digests.sha256, cut.name, names, digests.git_blob)
        self._open_pack().add_file(record)
        return Taken(digests, cut.name, pieces, whole=False)

    def _pack(self, path: Path, new: Iterable[Piece]) -> None:
        writer = self._open_pack()
        with source(path) as stream:
            for piece in new:
                data = b"".join(_range(stream, path, piece.start, piece.size))
                if digest_bytes(data) != piece.segment:
                    raise _changed(path)
                writer.add(Digest(piece.segment), piece.size, "raw", data)
                self._packed.add(piece.segment)

    def _open_pack(self) -> PackWriter:
        if self._writer is None:
            self._writer = self._exits.enter_context(PackWriter(self._raw))
        return self._writer

    def _recorded(self, digest: Digest) -> str | None:
        with self._catalog.read() as connection:
            row = files.find(connection, [digest]).get(digest)
            known = row.sha256 if row is not None else versions.recorded_sha256(connection, digest)
        return known if known is not None or self._sha256_of is None else self._sha256_of(digest)


def record(tx: Transaction, taken: Iterable[Taken], pack: Pack | None) -> None:
    """Write the rows of files that were taken and of the pack they share, in the transaction that refers to them.

    Segments are placed in this pack even if somebody else placed them meanwhile: the bytes are the same, the other place may
    be one that is lost, and what is in two packs is in one after the next compaction.
    """
    found = {each.digests.blake3: each for each in taken}
    files.record(
        tx,
        [
            FileRow(d.blake3, d.size, d.sha256, d.git_blob, each.cut, each.whole)
            for each in found.values()
            if (d := each.digests)
        ],
    )
    for digest, each in found.items():
        files.record_pieces(tx, digest, each.pieces)
    if pack is not None:
        segments.record_pack(tx, pack.digest, pack.size)
        segments.place_all(
            tx,
            [
                SegmentRow(each.digest, each.size, each.encoding, pack.digest, each.offset, each.length)
                for each in pack.index.segments
            ],
        )


def _sample(cut: Cut) -> list[tuple[int, int]]:
    """A few segments, as start and size, spread over the bytes; those that a twentieth of the file pays for.

    A header is none of them: two versions often share it and nothing else.
    """
    starts = list(accumulate(cut.sizes, initial=0))
    total = starts[-1]
    first = 0 if cut.name in {"whole/1", "cdc/1"} or len(cut.sizes) == 1 else 1
    picked = {bisect_right(starts, total * (2 * part + 1) // (2 * _SAMPLES)) - 1 for part in range(_SAMPLES)}
    chosen: list[tuple[int, int]] = []
    spent = 0
    for at in sorted(picked, key=lambda at: cut.sizes[at] if at < len(cut.sizes) else 0):
        if not first <= at < len(cut.sizes):
            continue
        if len(chosen) >= _LEAST_SAMPLES and spent + cut.sizes[at] > total // _SAMPLED_SHARE:
            break
        chosen.append((starts[at], cut.sizes[at]))
        spent += cut.sizes[at]
    return chosen


def _hash_ranges(path: Path, ranges: Iterable[tuple[int, int]]) -> list[Digest]:
    found = []
    with source(path) as stream:
        for start, size in ranges:
            hasher = blake3.blake3()
            for chunk in _range(stream, path, start, size):
                hasher.update(chunk)
            found.append(Digest(hasher.hexdigest()))
    return found


def _range(stream: BinaryIO, path: Path, start: int, size: int) -> Iterator[bytes]:
    stream.seek(start)
    while size:
        chunk = stream.read(min(CHUNK, size))
        if not chunk:
            raise _changed(path)
        size -= len(chunk)
        yield chunk


def _hash_file(path: Path) -> Digest:
    hasher = blake3.blake3()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with source(path) as stream:
        while count := stream.readinto(buffer):  # type: ignore[attr-defined]  # a raw file has it
            hasher.update(view[:count])
    return Digest(hasher.hexdigest())


def _pieces(cut: Cut, digests: Sequence[Digest]) -> tuple[Piece, ...]:
    starts = accumulate(cut.sizes, initial=0)
    return tuple(
        Piece(position, str(digest), start, size)
        for position, (digest, start, size) in enumerate(zip(digests, starts, cut.sizes, strict=False))
    )


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _changed(path: Path) -> InputError:
    return InputError(
        f"`{path}` changed while it was read",
        hint="try again when nothing writes to it",
        code="changed",
        path=str(path),
    )
