"""The few calls by which a store changes a disk.

Everything that writes goes through one `FileSystem`, so that tests can record the calls, fail the n-th of them, or kill the
process between two (`modelyard.store.faults`). Knows files and folders; does not know digests, areas or the layout.
All methods raise `OSError` as the system does: the store gives the error its words.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FileSystem", "TmpFile", "lock_folder"]

_FICLONE = 0x40049409
"""Linux's request to share another file's blocks (`ioctl_ficlone(2)`); btrfs, xfs and a few others have it."""


_PUSH = 8 << 20
"""Bytes after which the disk is asked to begin writing: it works while the rest is hashed, and `fsync` finds little left."""


@dataclass(eq=False)
class TmpFile:
    """A file on its way in: open for writing, locked against cleaners, named at random.

    Attributes:
        path: Its name in `tmp/`.
        fd: Its descriptor, or -1 once closed.
        temporary: Whether it still has that name.
        mode: The mode to give back if it is not published: somebody else's file that was adopted.
        written: Bytes written so far.
        pushed: Bytes that the disk was asked to write so far.
    """

    path: Path
    fd: int
    temporary: bool = True
    mode: int | None = None
    written: int = 0
    pushed: int = 0

    def size(self) -> int:
        """The file's length in bytes, as the system has it."""
        return os.fstat(self.fd).st_size


class FileSystem:
    """The operating system's own files; the subclasses in `faults` record or fail."""

    def create_tmp(self, folder: Path) -> TmpFile:
        """Create a new file with a random name in `folder`, mode 0600, and hold its lock until `close`.

        The lock tells `unlink_stale` that somebody is alive behind the file. A cleaner may have come between the creation and
        the lock; then the file is given up and another one made.
        """
        while True:
            path = folder / secrets.token_hex(16)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink == 1:
                    return TmpFile(path, fd)
            except BlockingIOError:
                pass  # a cleaner holds it and will remove it
            except BaseException:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
            os.close(fd)

    def adopt(self, folder: Path, path: Path, source: int) -> TmpFile | None:
        """Give the file at `path`, open as `source`, a second, random name in `folder`, and hold its lock until `close`.

        None where that cannot be: another disk, no hard links, somebody else's file, or one that is locked or not at `path` any more.
        """
        found = os.fstat(source)
        name = folder / secrets.token_hex(16)
        if os.geteuid() not in {0, found.st_uid}:
            return None  # its mode could not be changed
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            # Before the name is there, so that no cleaner finds it unlocked.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(path.resolve(), name, follow_symlinks=False)
            file = TmpFile(name, fd, mode=stat.S_IMODE(found.st_mode))
            linked = name.lstat()
            if os.path.samestat(found, linked) and os.path.samestat(found, os.fstat(fd)):
                return file
            name.unlink()
        except OSError:
            pass  # whatever the reason, the caller copies instead
        if fd >= 0:
            os.close(fd)
        return None

    def write(self, file: TmpFile, data: bytes) -> None:
        """Append all of `data`, however many calls that takes."""
        written = os.write(file.fd, data)
        if written < len(data):
            rest = memoryview(data)[written:]
            while rest:
                rest = rest[os.write(file.fd, rest) :]
        file.written += len(data)
        if file.written - file.pushed >= _PUSH and sys.platform == "linux":
            # Linux starts writing what is dirty; it is a hint, and an error that it meets comes back from `fsync`.
            os.posix_fadvise(file.fd, file.pushed, file.written - file.pushed, os.POSIX_FADV_DONTNEED)
            file.pushed = file.written

    def clone(self, file: TmpFile, source: int) -> bool:
        """Make the (empty) file share the blocks of the open file `source`; False where the disk cannot."""
        if sys.platform != "linux":
            return False
        try:
            fcntl.ioctl(file.fd, _FICLONE, source)
        except OSError:
            # Not supported, another disk, a swap file...: whatever the reason, the caller copies instead, and an error
            # that matters comes back there.
            return False
        return True

    def protect(self, file: TmpFile) -> None:
        """Make the file read-only, mode 0444."""
        os.fchmod(file.fd, 0o444)

    def fsync(self, file: TmpFile) -> None:
        """Make the file's bytes and mode durable; after a failure the descriptor must not be synced again."""
        _sync(file.fd)

    def close(self, file: TmpFile) -> None:
        """Close the file, which gives up its lock; closing twice does nothing."""
        fd, file.fd = file.fd, -1
        if fd >= 0:
            if file.temporary and file.mode is not None:
                with suppress(OSError):
                    if stat.S_IMODE(os.fstat(fd).st_mode) != file.mode:
                        os.fchmod(fd, file.mode)
            os.close(fd)

    def rename(self, file: TmpFile, target: Path) -> None:
        """Give the file its final name, replacing what had it."""
        file.path.replace(target)
        file.temporary = False

    def link(self, file: TmpFile, target: Path) -> None:
        """Give the file its final name beside the temporary one; `FileExistsError` where that is taken."""
        os.link(file.path, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def unlink_stale(self, path: Path) -> bool:
        """Remove a file that `create_tmp` made if nobody holds its lock, so that its writer is dead; whether it was removed.

        Anything that is no regular file, or that we may not open, is not ours to remove. The lock is held across the removal,
        so a writer that comes between finds out in `create_tmp`.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.unlink(path)
        except OSError:
            # Locked by a living writer, renamed to its final name since, or on a disk that takes no changes.
            return False
        else:
            return True
        finally:
            os.close(fd)

    def mkdir(self, path: Path) -> None:
        """Make one folder; one that is there already is fine."""
        try:
            path.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(fd)
        finally:
            os.close(fd)


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Hold the lock of a folder: one process and thread at a time, where the disk has locks for folders (NFS has none)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        # There, fsync stops at the drive's own cache.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)
