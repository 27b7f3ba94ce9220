"""Reading files without trusting the folder they lie in.

Knows paths and digests; does not know areas or how anything got there.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import blake3

from modelyard.digest import Digest, digest_bytes
from modelyard.errors import InputError, IntegrityError, InternalError, NotFoundError
from modelyard.store.hashing import CHUNK, READ
from modelyard.store.oserrors import explain, explained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "CHUNK",
    "changed",
    "check_unchanged",
    "exact_range",
    "fits",
    "is_regular",
    "open_regular",
    "read_exactly",
    "read_object",
    "regular_size",
    "source",
    "verify",
]


def open_regular(path: Path) -> int:
    """A descriptor on the regular file at `path`; `IntegrityError` when it is missing, a link, a pipe or anything else."""
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(error, path) from error
    try:
        with explained(path, "look at"):
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if not regular:
            raise _wrong_kind(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def regular_size(path: Path) -> int:
    """Size in bytes of the regular file at `path`; errors as `open_regular`."""
    try:
        found = path.lstat()
    except OSError as error:
        raise _unreadable(error, path) from error
    if not stat.S_ISREG(found.st_mode):
        raise _wrong_kind(path)
    return found.st_size


def is_regular(path: Path) -> bool:
    """Whether there is a regular file at `path`, links not followed."""
    with explained(path, "look at"):
        try:
            return stat.S_ISREG(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def verify(path: Path, digest: Digest) -> None:
    """Read the file at `path`; `IntegrityError` unless it is regular and its bytes have this digest."""
    fd = open_regular(path)
    hasher = blake3.blake3()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with os.fdopen(fd, "rb", buffering=0) as stream, explained(path, "read"):
        while count := stream.readinto(buffer):
            hasher.update(view[:count])
    if hasher.hexdigest() != digest:
        raise _damaged(path, hasher.hexdigest())


def fits(path: Path, digest: Digest, size: int) -> bool:
    """Whether the file at `path` is there, regular, `size` bytes long and of this digest."""
    try:
        if regular_size(path) != size:
            return False
        verify(path, digest)
    except IntegrityError:
        return False
    return True


def read_object(path: Path, digest: Digest | None = None) -> bytes:
    """All bytes of the regular file at `path`, verified where a digest is given."""
    with os.fdopen(open_regular(path), "rb", buffering=0) as stream, explained(path, "read"):
        data = stream.read()
    if digest is not None and (found := digest_bytes(data)) != digest:
        raise _damaged(path, found)
    return data


def exact_range(stream: BinaryIO, name: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a stream; `IntegrityError` that says `name` when it ends before that.

    >>> import io
    >>> exact_range(io.BytesIO(b"abcdef"), "`x`", 2, 4)
    b'cd'
    """
    if not 0 <= start <= end:
        raise InternalError(f"{start} to {end} is no range of bytes")
    stream.seek(start)
    parts, missing = [], end - start
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    if missing:
        raise IntegrityError(
            f"{name} is damaged: it ends {missing} bytes before byte {end}",
            hint="`yard check --read-data` finds what else is damaged",
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def source(path: Path) -> Iterator[BinaryIO]:
    """The regular file at `path` (links followed), open for reading; `InputError` at the end if it was changed meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no file `{path}`", path=str(path)) from None
    except OSError as error:
        raise explain(error, path, "read") from error
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        os.close(fd)
        raise InputError(f"`{path}` is not a regular file", hint="only regular files can be stored", path=str(path))
    with os.fdopen(fd, "rb", buffering=0) as stream:
        yield stream
        check_unchanged(fd, before, path)


def check_unchanged(fd: int, before: os.stat_result, path: Path) -> None:
    """`InputError` (code ``changed``) unless the open file is as long as before and nobody wrote to it."""
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed(path)


def read_exactly(stream: BinaryIO, path: Path, size: int) -> Iterator[bytes]:
    """The chunks of a file that was `size` bytes long when it was opened; `InputError` at the first byte beyond."""
    # Without the bound, a file that grows as fast as it is read would never end.
    with explained(path, "read"):
        while chunk := stream.read(READ):
            size -= len(chunk)
            if size < 0:
                raise changed(path)
            yield chunk


def changed(path: Path) -> InputError:
    """The error for a file that somebody wrote to."""
    return InputError(
        f"`{path}` changed while it was read",
        hint="try again when nothing writes to it",
        code="changed",
        path=str(path),
    )


def _unreadable(error: OSError, path: Path) -> Exception:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return IntegrityError(
            f"`{path.name[:12]}` is not in the store: `{path}` is missing{_put_aside(path)}",
            hint="commit the file again, or copy it from a backup of the yard",
            code="missing",
            path=str(path),
        )
    if error.errno == errno.ELOOP:
        return _wrong_kind(path)
    return explain(error, path, "open")


def _wrong_kind(path: Path) -> IntegrityError:
    what = "a symbolic link" if path.is_symlink() else "not a regular file"
    return IntegrityError(f"`{path}` is {what}", hint="remove it, then commit or copy the file again", path=str(path))


def _damaged(path: Path, found: str) -> IntegrityError:
    return IntegrityError(
        f"`{path}` is damaged: its bytes have the digest {found[:12]}, not {path.name[:12]}",
        hint="commit the file again, or copy it from a backup of the yard",
        path=str(path),
        found=found,
    )


def _put_aside(path: Path) -> str:
    """Where `check --repair` moved a damaged object, in words; nothing where it did not."""
    # An object lies in its area's folder or one below.
    for area in path.parents[:2]:
        aside = area.parent / "quarantine" / f"{area.name}-{path.name}"
        if aside.exists():
            return f"; it was damaged, and lies in `{aside}`"
    return ""
