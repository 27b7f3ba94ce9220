"""Reading a part of a file, wherever it lies: what headers need of a file that is not on this machine.

A `Files` may also have `open_range(name, start, end)`, which gives the bytes from `start` up to `end`. `open_stream` reads
through it where it is there, and through `Files.path` where not. Knows no protocol and no format.

>>> import tempfile
>>> from pathlib import Path
>>> from modelyard.weights.files import FolderFiles
>>> folder = Path(tempfile.mkdtemp())
>>> _ = (folder / "a").write_bytes(b"0123456789")
>>> with open_stream(FolderFiles(folder), "a") as stream:
...     _ = stream.seek(4)
...     stream.read(3)
b'456'
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast, runtime_checkable

from modelyard.weights.headers import Header, Limits, open_regular, parse_sized

if TYPE_CHECKING:
    from modelyard.weights.files import Files

__all__ = ["Ranged", "open_stream", "read_header_of"]

_BUFFER = 64 << 10  # bytes: what a reader of many small fields asks for at a time; the library's own reads are larger


@runtime_checkable
class Ranged(Protocol):
    """A `Files` that gives parts of its files."""

    def size(self, name: str) -> int:
        """The file's size in bytes."""
        ...

    def open_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, all of them."""
        ...


def open_stream(files: Files, name: str, *, buffered: bool = False) -> BinaryIO:
    """Open a file for reading and seeking from its beginning.

    Args:
        files: Where it is.
        name: Its name there.
        buffered: Read ahead by 64 KiB: for a reader of many small fields. Without it a remote file is asked for exactly
            the bytes that are read.

    Raises:
        NotFoundError, ModelError: As `files` raises them.
    """
    if not isinstance(files, Ranged):
        return open_regular(files.path(name))
    raw = _RangeStream(files, name)
    # What is buffered still reads and seeks like a file; there is just no descriptor behind it.
    return cast("BinaryIO", io.BufferedReader(raw, _BUFFER) if buffered else raw)


def read_header_of(files: Files, name: str, *, limits: Limits | None = None) -> Header:
    """Read and check a safetensors header, of a remote file by two requests for exactly its bytes.

    Raises:
        NotFoundError, ModelError: As `headers.read_header`.
    """
    label = f"{files.label}/{name}"
    with open_stream(files, name) as stream:
        size = files.size(name) if isinstance(files, Ranged) else os.fstat(stream.fileno()).st_size
        return parse_sized(stream, size, label, limits=limits)


class _RangeStream(io.RawIOBase):
    """A file over `open_range`, with a position."""

    def __init__(self, files: Ranged, name: str) -> None:
        self._files, self._name = files, name
        self._size = files.size(name)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        end = min(self._position + len(target), self._size)
        if end <= self._position:
            return 0
        data = self._files.open_range(self._name, self._position, end)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)
