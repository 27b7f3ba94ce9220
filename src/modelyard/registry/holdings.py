"""Holdings: a store in which every file that is held can be read, whether it lies there whole or in segments.

A file that is not whole is rebuilt, segment by segment, each verified (`registry.decoding`); memory stays at a few segments.
Whoever needs a path gets a whole file: it is written, durably, and the catalog says so before the path is handed out.
A whole file that turns out damaged is written anew where its segments are held elsewhere. Everything that is not a file is
the store's beneath. Knows which bytes make up which file; not what is in them, nor who wants them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import blake3

from modelyard.catalog import files
from modelyard.digest import Digest
from modelyard.errors import BusyError, IntegrityError
from modelyard.points import reach
from modelyard.registry.decoding import catalog_decoder
from modelyard.registry.presence import held
from modelyard.registry.rebuilt import RebuiltFile, decoder_without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

    from modelyard.catalog import Catalog
    from modelyard.catalog.files import FileRow, Piece
    from modelyard.digest import FileDigests
    from modelyard.registry.decoding import Decoder
    from modelyard.store.base import Area, ByteArea, ObjectArea, Store

__all__ = ["Holdings"]

_ATTEMPTS = 5  # how often a file that is collected while it is made whole is written again


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a file that may not be whole is put together from."""

    row: FileRow
    pieces: tuple[Piece, ...]


class Holdings:
    """See the module; a `Store`.

    Args:
        raw: The store beneath.
        catalog: What says how files are held.
        author: Who makes files whole, for the catalog.
        clock: The time, for people.
    """

    def __init__(self, raw: Store, catalog: Catalog, *, author: str, clock: Callable[[], datetime]) -> None:
        self.raw = raw
        self._catalog, self._author, self._clock = catalog, author, clock
        self._decoder = catalog_decoder(raw, catalog)

    # -- files, whole or not ---------------------------------------------------------------------------------------------

    def has_file(self, digest: Digest, *, area: ByteArea = "files") -> bool:
        """Whether a file is held, whole or in segments; says nothing about its bytes."""
        if self.raw.has_file(digest, area=area):
            return True
        plan = self._plan(digest) if area == "files" else None
        return plan is not None and self._is_held(plan)

    def is_whole(self, digest: Digest) -> bool:
        """Whether a file lies in the store beneath."""
        return self.raw.has_file(digest)

    def open_file(self, digest: Digest, *, area: ByteArea = "files") -> BinaryIO:
        """Open a file or pack for reading, in any order; bytes that are rebuilt are verified, others are not.

        Raises:
            IntegrityError: It is not held; while reading, a segment is damaged.
        """
        try:
            return self.raw.open_file(digest, area=area)
        except IntegrityError as error:
            plan = self._plan_for(digest, area, error)
            return cast("BinaryIO", io.BufferedReader(RebuiltFile(plan.pieces, self._decoder), 1 << 16))

    def read_range(self, area: ByteArea, digest: Digest, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file or pack; see `open_file`."""
        try:
            return self.raw.read_range(area, digest, start, end)
        except IntegrityError as error:
            plan = self._plan_for(digest, area, error)
        if not 0 <= start <= end <= plan.row.size:
            raise IntegrityError(f"file `{digest[:12]}` has {plan.row.size} bytes, and {start} to {end} were asked for")
        with io.BufferedReader(RebuiltFile(plan.pieces, self._decoder), 1 << 16) as stream:
            stream.seek(start)
            return stream.read(end - start)

    def file_size(self, digest: Digest, *, area: ByteArea = "files") -> int:
        """Length of a file or pack in bytes."""
        try:
            return self.raw.file_size(digest, area=area)
        except IntegrityError as error:
            return self._plan_for(digest, area, error).row.size

    def file_path(self, digest: Digest) -> Path:
        """A real, read-only file with these bytes; made whole first where it was not. They are not verified."""
        self.make_whole([digest])
        return self.raw.file_path(digest)

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        """Read a file or pack; a damaged whole file is written anew from its segments where they are held elsewhere.

        Raises:
            IntegrityError: Its bytes do not have this digest, and nothing that is held makes them again.
        """
        try:
            self.raw.verify_file(digest, area=area)
        except IntegrityError as error:
            plan = self._plan_for(digest, area, error, damaged=True)
            if plan.row.whole:
                self._restore(digest, plan, error)
            else:
                self._check(digest, _chunks(plan, self._decoder))

    def make_whole(self, digests: Iterable[str]) -> None:
        """See that files lie in the store whole, durably, and that the catalog says so; those that do cost a look.

        Raises:
            IntegrityError: A file is not held, or a segment of it is damaged.
            NoSpaceError: The disk is full; what was held before still is.
        """
        wanted = list(dict.fromkeys(digests))
        with self._catalog.read() as connection:
            rows = files.find(connection, wanted)
        for name in wanted:
            row, digest = rows.get(name), Digest(name)
            present = self.raw.has_file(digest)
            if present and (row is None or row.whole):
                continue
            plan = self._plan(digest)
            if plan is None:
                raise _missing(digest)
            self._make_whole(digest, plan)

    def _make_whole(self, digest: Digest, plan: _Plan) -> None:
        """Write a file whole, then its row: in the same transaction in which no collection can have taken it again."""
        # A file that ought to be whole and is gone is no place to look for its own segments.
        decoder = decoder_without(self.raw, self._catalog, digest) if plan.row.whole else self._decoder
        for _ in range(_ATTEMPTS):
            self._write(digest, _chunks(plan, decoder))
            reach("whole.written")
            with self._catalog.write(author=self._author, at=self._clock()) as tx:
                # Looked at whatever `collections` says: a sweep that was killed after it unlinked the file has not counted.
                if self.raw.has_file(digest):
                    files.set_whole(tx, [digest], True)
                    return
        raise BusyError(
            f"file `{digest[:12]}` is collected as fast as it is written",
            hint="run the command again",
            file=str(digest),
        )

    def _restore(self, digest: Digest, plan: _Plan, error: IntegrityError) -> None:
        """Write a damaged whole file anew from elsewhere; the error as it was where that cannot be done."""
        decoder = decoder_without(self.raw, self._catalog, digest)
        try:
            self._check(digest, _chunks(plan, decoder))
        except IntegrityError:
            raise error from None
        self._write(digest, _chunks(plan, decoder))

    def _write(self, digest: Digest, chunks: Iterator[bytes]) -> None:
        made = self.raw.put_file(chunks).blake3
        if made != digest:
            raise IntegrityError(
                f"the segments of file `{digest[:12]}` make another file, `{made[:12]}`", hint="yard check --read-data"
            )

    def _check(self, digest: Digest, chunks: Iterator[bytes]) -> None:
        hasher = blake3.blake3()
        for chunk in chunks:
            hasher.update(chunk)
        if hasher.hexdigest() != digest:
            raise IntegrityError(
                f"the segments of file `{digest[:12]}` do not make it", hint="yard check --read-data", file=str(digest)
            )

    def _plan(self, digest: Digest) -> _Plan | None:
        """How the catalog says that a file is made; None when it does not know its segments."""
        with self._catalog.read() as connection:
            row = files.find(connection, [digest]).get(digest)
            pieces = files.pieces(connection, digest) if row is not None else []
        if row is None or sum(piece.size for piece in pieces) != row.size or (row.size and row.cut is None):
            return None
        return _Plan(row, tuple(pieces))

    def _plan_for(self, digest: Digest, area: ByteArea, error: IntegrityError, *, damaged: bool = False) -> _Plan:
        """The plan for a file that the store beneath could not read; its error where there is none."""
        plan = self._plan(digest) if area == "files" and (damaged or error.code == "missing") else None
        if plan is None:
            raise error
        return plan

    def _is_held(self, plan: _Plan) -> bool:
        names = {piece.segment for piece in plan.pieces}
        with self._catalog.read() as connection:
            return held(connection, self.raw, names) == names

    # -- everything else is the store's ----------------------------------------------------------------------------------

    def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
        """See `Store.put_file`."""
        return self.raw.put_file(chunks, area=area)

    def import_file(
        self,
        path: Path,
        *,
        sha256_of: Callable[[Digest], str | None] | None = None,
        observe: Callable[[bytes], object] | None = None,
        link: bool = False,
    ) -> FileDigests:
        """See `Store.import_file`."""
        return self.raw.import_file(path, sha256_of=sha256_of, observe=observe, link=link)

    def put(self, area: Area, data: bytes) -> Digest:
        """See `Store.put`."""
        return self.raw.put(area, data)

    def get(self, area: Area, digest: Digest) -> bytes:
        """See `Store.get`."""
        return self.raw.get(area, digest)

    def has(self, area: Area, digest: Digest) -> bool:
        """See `Store.has`."""
        return self.raw.has(area, digest)

    def digests(self, area: ObjectArea) -> Iterator[Digest]:
        """See `Store.digests`: what the store beneath lists, so files that are not whole are not among them."""
        return self.raw.digests(area)

    def remove(self, area: ObjectArea, digest: Digest) -> None:
        """See `Store.remove`."""
        self.raw.remove(area, digest)

    def publish_journal(self, seq: int, entry: bytes) -> None:
        """See `Store.publish_journal`."""
        self.raw.publish_journal(seq, entry)

    def journal(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """See `Store.journal`."""
        return self.raw.journal(after=after, damaged=damaged)

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return self.raw.free_bytes()


def _chunks(plan: _Plan, decoder: Decoder) -> Iterator[bytes]:
    return decoder.segments(piece.segment for piece in plan.pieces)


def _missing(digest: Digest) -> IntegrityError:
    return IntegrityError(
        f"file `{digest[:12]}` is not in the store, neither whole nor in segments",
        hint="commit the file again, or copy it from a backup of the yard",
        code="missing",
        file=str(digest),
    )
