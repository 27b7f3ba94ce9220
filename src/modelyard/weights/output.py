"""Writing a new model folder so that it is there whole or not at all.

Everything is written into a hidden folder beside the target, made durable, and moved into place by one rename. An error or
an interruption leaves no target; what a killed process leaves is the hidden folder only. Knows files and bytes, nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import blake3

from modelyard.digest import Digest
from modelyard.errors import ConflictError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from modelyard.weights.files import Files

__all__ = ["HashingWriter", "copy_file", "fresh_folder", "write_file"]

_CHUNK = 4 << 20


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        ConflictError: `out` exists and is not an empty folder.
        NoSpaceError: The disk filled up; nothing is left behind.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConflictError(f"`{out}` exists already", code="exists", hint="give a folder that does not exist yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield work
        work.chmod(0o777 & ~_umask())
        _sync_folder(work)
        work.rename(out)
        _sync_folder(out.parent)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(f"no space left to write `{out}`", hint="free some space and run it again") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


class HashingWriter:
    """A new file that is hashed as it is written, and durable once the block ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = blake3.blake3()
        self.size = 0

    def __enter__(self) -> HashingWriter:
        self._stream = self._path.open("xb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`."""
        self._hash.update(data)
        left = memoryview(data)
        self.size += len(left)
        while left:
            left = left[self._stream.write(left) :]

    def digest(self) -> Digest:
        """The digest of everything written."""
        return Digest(self._hash.hexdigest())


def write_file(path: Path, data: bytes) -> Digest:
    """Write a small file durably and return its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with HashingWriter(path) as writer:
        writer.write(data)
    return writer.digest()


def copy_file(files: Files, name: str, folder: Path) -> Digest:
    """Copy `name` from `files` to the same name below `folder`, durably, and return its digest."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.path(name).open("rb") as source, HashingWriter(target) as writer:
        while chunk := source.read(_CHUNK):
            writer.write(chunk)
    return writer.digest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
