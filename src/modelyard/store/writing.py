"""Writing files so that they are there, whole and durable, or not at all.

Implements "Publication of a file" of `docs/design/store-format.md`. Knows `tmp/` and the names it is given; does not know
digests, areas, or what is in a file.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from modelyard.digest import FileDigests, read_chunks
from modelyard.errors import YardError
from modelyard.store.hashing import hash_chunks
from modelyard.store.oserrors import explain, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from modelyard.store.filesystem import FileSystem, TmpFile

__all__ = ["IncomingFile", "Writer"]

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What a file system answers that has no hard links."""

_NOT_TRIED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.ENOENT, errno.ENOTDIR})
"""What opening a folder fails with, before anything was synced: trying again is sound."""


class Writer:
    """Everything that changes one yard's folder.

    Args:
        tmp: The folder for bytes on their way in.
        folders: Folders that are durable already; others are made as they are needed.
        filesystem: What makes the system calls.
    """

    def __init__(self, tmp: Path, folders: Iterable[Path], filesystem: FileSystem) -> None:
        self._tmp = tmp
        self._durable = set(folders)
        self._fs = filesystem
        self._refusal: str | None = None

    def check(self) -> None:
        """Refuse (`YardError`, code ``read_only``) once a folder could not be made durable."""
        if self._refusal is not None:
            raise YardError(
                f"the yard `{self._tmp.parent}` takes no more changes from this process: {self._refusal}",
                hint="look at the disk (`dmesg`), then run the command again; reading still works",
                code="read_only",
                path=str(self._tmp.parent),
            )

    @contextmanager
    def incoming(self) -> Iterator[IncomingFile]:
        """A new file on its way in, gone at the end of the block unless it was published."""
        with explained(self._tmp, "create a file in"):
            tmp = self._fs.create_tmp(self._tmp)
        with self._on_its_way(tmp) as file:
            yield file

    @contextmanager
    def adopted(self, path: Path, source: int) -> Iterator[IncomingFile | None]:
        """The file at `path`, open as `source`, by a second name; None where the disk cannot. As it was unless it was published."""
        tmp = self._fs.adopt(self._tmp, path, source)
        if tmp is None:
            yield None
            return
        with self._on_its_way(tmp) as file:
            yield file

    @contextmanager
    def _on_its_way(self, tmp: TmpFile) -> Iterator[IncomingFile]:
        try:
            yield IncomingFile(self, self._fs, tmp)
        finally:
            # A name that cannot be removed harms nobody, a later process sweeps it, and the error that led here, if any,
            # matters more.
            with suppress(OSError):
                if tmp.temporary:
                    self._fs.unlink(tmp.path)
            self._fs.close(tmp)

    def remove_leftovers(self) -> int:
        """Remove files in `tmp/` whose writers are dead; how many those were."""
        with explained(self._tmp, "list"):
            leftovers = list(self._tmp.iterdir())
        return sum(self._fs.unlink_stale(path) for path in leftovers)

    def remove(self, path: Path) -> None:
        """Remove a name, durably; one that is not there is fine."""
        # It may be missing because of a call that was killed after the first line: the second is taken in any case.
        with explained(path, "remove"), suppress(FileNotFoundError):
            self._fs.unlink(path)
        if path.parent.is_dir():
            self.sync_folder(path.parent)

    def make_folder(self, path: Path) -> None:
        """Make a folder unless it is there; `sync_folder` on its parent makes it durable."""
        with explained(path, "make"):
            self._fs.mkdir(path)

    def ensure_folder(self, path: Path) -> None:
        """Make sure that a folder, whose parent is durable, is there and durable.

        One that is there was perhaps made a moment ago by a process that has not synced its parent yet, so that is done once
        in the life of a writer in any case.
        """
        if path not in self._durable:
            self.make_folder(path)
            self.sync_folder(path.parent)
            self._durable.add(path)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable; after a failure `check` refuses.

        The names stay: another process may count on them already. But whether they are durable nobody can tell any more,
        since a second fsync would succeed whatever happened to the pages of the first. Not so where the folder could not even be opened.
        """
        try:
            self._fs.fsync_dir(path)
        except OSError as error:
            reason = explain(error, path, "make durable the names in")
            if error.errno not in _NOT_TRIED:
                self._refusal = reason.message
            raise reason from error


class IncomingFile:
    """A file on its way in: made by `Writer.incoming`, written, then published."""

    def __init__(self, writer: Writer, filesystem: FileSystem, tmp: TmpFile) -> None:
        self._writer = writer
        self._fs = filesystem
        self._tmp = tmp
        self._finished = False

    def write(self, data: bytes) -> None:
        """Append `data`."""
        with explained(self._tmp.path, "write"):
            self._fs.write(self._tmp, data)

    def clone(self, source: int) -> bool:
        """Share the blocks of the open file `source` where the disk can; whether it could."""
        return self._fs.clone(self._tmp, source)

    def digests(self, observe: Callable[[bytes], object] | None = None) -> FileDigests:
        """Read back what is in the file; `observe` is given its bytes."""
        with explained(self._tmp.path, "read"), os.fdopen(self._tmp.fd, "rb", buffering=0, closefd=False) as stream:
            stream.seek(0)
            return hash_chunks(read_chunks(stream), observe)

    def publish(self, target: Path, size: int, check: Callable[[], None] | None = None) -> None:
        """Make the file, which must be `size` bytes long, durable and visible at `target`, replacing what is there.

        `check` has the last word before it is visible.
        """
        self._finish(size)
        if check is not None:
            check()
        # After the file's own fsync, which on most disks has taken a new folder along, so that this costs little.
        self._writer.ensure_folder(target.parent)
        with explained(target, "create"):
            self._fs.rename(self._tmp, target)
        self._writer.sync_folder(target.parent)

    def publish_new(self, target: Path, size: int) -> bool:
        """As `publish`, but never over something; whether the name was free."""
        self._finish(size)
        with explained(target, "create"):
            try:
                self._fs.link(self._tmp, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if os.path.lexists(target):
                    return False
                self._fs.rename(self._tmp, target)
        self._writer.sync_folder(target.parent)
        return True

    def _finish(self, size: int) -> None:
        if self._finished:
            return
        with explained(self._tmp.path, "write"):
            if self._tmp.size() != size:
                raise YardError(
                    f"`{self._tmp.path}` came out {self._tmp.size()} bytes long instead of {size}",
                    hint="the disk lost a write: look at `dmesg`",
                    code="io_failed",
                )
            self._fs.protect(self._tmp)
            # Fails once and for all: the kernel may have dropped the pages, and a second fsync would call them safe.
            self._fs.fsync(self._tmp)
        self._finished = True
