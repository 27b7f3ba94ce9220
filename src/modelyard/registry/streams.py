"""Contents by name as `Files`: bytes, paths and streams that become the files of a version.

A stream is read once, into a temporary folder, when it is first asked for; a folder whose process died is removed by the next
one that makes one. Knows bytes and names; does not judge either.

>>> with spool_folder(None) as folder:
...     files = Contents({"a.txt": b"hello", "b.txt": iter([b"wor", b"ld"])}, folder)
...     files.names(), files.size("b.txt"), files.read("b.txt")
(['a.txt', 'b.txt'], 5, b'world')
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from modelyard.errors import InputError, ModelError, NoSpaceError, NotFoundError, near_match
from modelyard.weights.files import READ_LIMIT, FolderFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Content", "Contents", "spool_folder"]

Content = bytes | Path | BinaryIO | Iterable[bytes]
"""What becomes a file: its bytes, where they lie, or what yields them, once."""

_PREFIX = ".stream."
_CHUNK = 1 << 20


class Contents:
    """See the module; `weights.Files`."""

    def __init__(self, contents: Mapping[str, Content], folder: Path) -> None:
        self.label = "the files given"
        self._contents, self._folder = contents, folder
        self._written: dict[str, Path] = {}

    def names(self) -> list[str]:
        """Every name, sorted by bytes."""
        return sorted(self._contents, key=lambda name: name.encode("utf-8", "surrogateescape"))

    def size(self, name: str) -> int:
        """A file's size in bytes; a stream is read for it."""
        return self.path(name).stat().st_size

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """A whole file; `ModelError` when it is larger than `limit` bytes."""
        if (size := self.size(name)) > limit:
            raise ModelError(f"`{name}` has {size} bytes, more than the {limit} expected", code="file_too_large")
        return self.path(name).read_bytes()

    def path(self, name: str) -> Path:
        """A regular file with the content.

        Raises:
            NotFoundError: There is none of this name.
            InputError: The content is none of `Content`, or a stream that yields something else than bytes.
            NoSpaceError: The disk is full.
        """
        if name not in self._contents:
            meant = near_match(name, self._contents)
            raise NotFoundError(f"no file `{name}` was given", hint=f"did you mean `{meant}`?" if meant else None)
        content = self._contents[name]
        if isinstance(content, Path):
            return FolderFiles(content.parent).path(content.name)
        if name not in self._written:
            self._written[name] = self._write(name, content)
        return self._written[name]

    def is_ours(self, name: str) -> bool:
        """Whether the file is a temporary one, which nobody else has and which may be taken instead of copied."""
        return not isinstance(self._contents[name], Path)

    def _write(self, name: str, content: bytes | BinaryIO | Iterable[bytes]) -> Path:
        path = self._folder / str(len(self._written))
        with path.open("xb") as sink:
            for chunk in _chunks(name, content):
                try:
                    sink.write(chunk)
                except OSError as error:
                    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                        raise
                    raise NoSpaceError(
                        f"the disk is full: `{name}` was not read to its end", hint="free some space and try again"
                    ) from error
        return path


def _chunks(name: str, content: object) -> Iterator[bytes]:
    read = getattr(content, "read", None)
    if isinstance(content, bytes):
        yield content
    elif callable(read):
        yield from (_bytes(name, chunk) for chunk in iter(lambda: read(_CHUNK), b""))
    elif isinstance(content, Iterable) and not isinstance(content, str):
        yield from (_bytes(name, chunk) for chunk in content)
    else:
        raise InputError(f"`{name}` is {type(content).__name__}, not bytes, a path or a stream", hint="give bytes")


def _bytes(name: str, chunk: object) -> bytes:
    # A text stream yields text, and at its end "", for ever: refused at the first chunk.
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise InputError(f"`{name}` yields {type(chunk).__name__}, not bytes", hint="open it in binary mode")
    return bytes(chunk)


@contextmanager
def spool_folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder in `parent`, or where the system has them; gone when the block ends, or by the next one's leave."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_stale(parent: Path) -> None:
    """Remove the folders of processes that died: nobody holds their lock."""
    for folder in parent.glob(_PREFIX + "*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # its owner has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody is at work
        finally:
            os.close(descriptor)
