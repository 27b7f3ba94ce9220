"""Large objects in pieces: up as multipart uploads, down as ranges, a few at a time, so that memory stays flat.

An upload that its process did not live to end is recorded in a folder, by a file that is locked for as long as the process lives:
the next one aborts it. Knows names, bytes and pieces; does not know areas.
"""

from __future__ import annotations

import io
import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from modelyard.errors import IntegrityError, YardError
from modelyard.store.filesystem import FileSystem
from modelyard.store.oserrors import explained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from modelyard.store.s3_bucket import Bucket, Head

__all__ = ["PIECE", "ObjectReader", "abort_leftovers", "piece_size", "pieces", "read_pieces", "upload"]

PIECE = 8 << 20
"""Bytes sent or fetched in one request; what is no longer than this is sent whole."""

_PARTS = 10_000
"""Parts that a multipart upload may have."""

_AT_ONCE = 4


def piece_size(size: int) -> int:
    """Bytes of each part of an upload of `size` bytes: whole MiB, and no more parts than there may be.

    >>> piece_size(5 << 30) == PIECE, piece_size(1 << 40) % (1 << 20)
    (True, 0)
    >>> -(-(1 << 40) // piece_size(1 << 40)) <= 10_000
    True
    """
    mib = 1 << 20
    return max(PIECE, -(-size // _PARTS // mib) * mib + mib if size > _PARTS * PIECE else PIECE)


def read_pieces(stream: BinaryIO, size: int, piece: int) -> Iterator[bytes]:
    """The first `size` bytes of a stream in pieces of `piece` bytes but for the last; fewer where the stream ends.

    >>> list(read_pieces(io.BytesIO(b"abcdefg"), 5, 2))
    [b'ab', b'cd', b'e']
    """
    while size > 0:
        parts: list[bytes] = []
        missing = min(size, piece)
        while missing and (part := stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        if not parts:
            return
        size -= piece
        yield b"".join(parts)


def upload(bucket: Bucket, name: str, parts: Iterable[bytes], *, digest: str, begun: Path) -> None:
    """Store the concatenation of `parts` (each but the last of `piece_size` bytes) under `name`: whole, or not at all.

    Args:
        bucket: Where.
        name: Under what.
        parts: Read one after another; an exception out of them is passed on, and nothing is stored.
        digest: Of all bytes; kept beside the object.
        begun: A folder for records of uploads that are under way.
    """
    id_ = bucket.begin(name, digest=digest)
    with _recorded(begun, name, id_):
        etags: dict[int, str] = {}
        waiting: dict[Future[str], int] = {}

        def collect(done: Iterable[Future[str]]) -> None:
            for each in done:
                etags[waiting.pop(each)] = each.result()

        try:
            with ThreadPoolExecutor(_AT_ONCE, "upload") as pool:
                try:
                    for number, part in enumerate(parts, 1):
                        while len(waiting) >= _AT_ONCE:
                            collect(wait(waiting, return_when=FIRST_COMPLETED).done)
                        waiting[pool.submit(bucket.put_part, name, id_, number, part)] = number
                    collect(wait(waiting).done)
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            bucket.complete(name, id_, etags)
        except BaseException:
            with suppress(
                YardError
            ):  # what led here matters more; the record, or the endpoint's own rule, takes care of it
                bucket.abort(name, id_)
            raise


def abort_leftovers(bucket: Bucket, begun: Path) -> int:
    """Abort the uploads that dead processes on this machine left; how many those were."""
    count = 0
    filesystem = FileSystem()
    for path in begun.iterdir():
        with suppress(FileNotFoundError):
            text = path.read_text("utf-8")
            if filesystem.unlink_stale(path):
                name, _, id_ = text.partition("\n")
                if name and id_.endswith("\n"):
                    bucket.abort(name, id_.rstrip("\n"))
                    count += 1
    return count


@contextmanager
def _recorded(begun: Path, name: str, id_: str) -> Iterator[None]:
    filesystem = FileSystem()
    with explained(begun, "create a file in"):
        record = filesystem.create_tmp(begun)
    try:
        filesystem.write(record, f"{name}\n{id_}\n".encode())
        yield
    finally:
        with suppress(OSError):
            filesystem.unlink(record.path)
        filesystem.close(record)


def pieces(bucket: Bucket, name: str, head: Head, start: int = 0) -> Iterator[bytes]:
    """The bytes under `name` from `start` on, in pieces that are fetched ahead; `IntegrityError` when the object changes meanwhile."""
    ranges = deque((at, min(at + PIECE, head.size)) for at in range(start, head.size, PIECE))
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, "download") as pool:
        try:
            while ranges or ahead:
                while ranges and len(ahead) < _AT_ONCE:
                    ahead.append(pool.submit(_piece, bucket, name, *ranges.popleft(), head.etag))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _piece(bucket: Bucket, name: str, start: int, end: int, etag: str) -> bytes:
    data = bucket.read(name, start, end, etag)
    if data is None or len(data) != end - start:
        raise IntegrityError(f"`{name}` changed while it was read", hint="run the command again", code="changed")
    return data


class ObjectReader(io.RawIOBase):
    """An object as a file open for reading: pieces ahead while it is read on, a range where it is sought."""

    def __init__(self, bucket: Bucket, name: str, head: Head) -> None:
        super().__init__()
        self._bucket = bucket
        self._name = name
        self._head = head
        self._at = 0
        self._piece = b""
        self._piece_start = 0
        self._ahead: Iterator[bytes] | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; costs nothing until the next read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._head.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill the buffer from the position on, as far as one piece goes."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        if self._at >= self._head.size or not view:
            return 0
        end = self._piece_start + len(self._piece)
        if not self._piece_start <= self._at < end:
            self._fetch(sequential=self._at == end)
        offset = self._at - self._piece_start
        taken = self._piece[offset : offset + len(view)]
        view[: len(taken)] = taken
        self._at += len(taken)
        return len(taken)

    def close(self) -> None:
        """Give up what was fetched ahead."""
        self._stop()
        super().close()

    def _fetch(self, *, sequential: bool) -> None:
        if sequential and self._ahead is None:
            self._ahead = pieces(self._bucket, self._name, self._head, self._at)
        elif not sequential:
            self._stop()
        if self._ahead is not None:
            self._piece = next(self._ahead)
        else:
            end = min(self._at + PIECE, self._head.size)
            self._piece = _piece(self._bucket, self._name, self._at, end, self._head.etag)
        self._piece_start = self._at

    def _stop(self) -> None:
        ahead, self._ahead = self._ahead, None
        close = getattr(ahead, "close", None)
        if close is not None:
            close()
