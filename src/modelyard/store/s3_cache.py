"""A folder of files that were read from far away, bounded in bytes.

An entry is called by the digest of its bytes, which were verified when it was put there; nothing in it matters, it may be
removed as a whole. Several processes share one folder. What is used longest ago goes first, but nothing that a living process was
given the path of, and nothing that has a second hard link, whose removal would free nothing. Knows files and digests; does
not know where they come from.

::

    files/ab/<digest>   the entries, mode 0444
    seen/<digest>       the ETag of the object that the entry equals; its time of change is when the entry was last used
    users/<random>      locked by a process for as long as it lives: the digests whose paths it was given, with the time
    fill/ab             locked while an entry that begins so is fetched: the second who wants it waits instead
    tmp/<random>        entries on their way in
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from modelyard.digest import Digest
from modelyard.store import reading
from modelyard.store.filesystem import FileSystem, TmpFile
from modelyard.store.oserrors import explained
from modelyard.store.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from modelyard.store.writing import IncomingFile

__all__ = ["ReadCache"]

_PIN_SECONDS = 24 * 3600
"""How long a path that was given out is kept for a process that lives on: whatever it opened or linked, it has by then."""

_REPIN_SECONDS = 3600
_FOLDERS = ("files", "seen", "users", "fill", "tmp")


class _Entry(NamedTuple):
    used: float
    size: int
    digest: Digest
    links: int


class ReadCache:
    """See the module; safe to share between threads and processes.

    Args:
        root: The folder; made when it is first written to.
        bound: Bytes that entries may take together. What is in use may exceed it, and so may a single larger file.
    """

    def __init__(self, root: Path, bound: int) -> None:
        self.root = root
        self.bound = bound
        self._fs = FileSystem()
        self._writer = Writer(root / "tmp", [], self._fs)
        self._lock = threading.Lock()
        self._user: TmpFile | None = None
        self._pinned: dict[str, float] = {}
        self._total: int | None = None
        self._added = 0

    def prepare(self) -> None:
        """Make the folders, and remove what dead processes left."""
        with explained(self.root, "make"):
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        self._writer.remove_leftovers()
        for path in (self.root / "users").iterdir():
            self._fs.unlink_stale(path)

    # -- looking -------------------------------------------------------------------------------------------------------

    def open(self, digest: Digest) -> int | None:
        """A descriptor on the entry, or None when there is none. It outlives the entry's removal."""
        path = self._path(digest)
        if not reading.is_regular(path):
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        self._touch(digest)
        return fd

    def take(self, digest: Digest) -> Path | None:
        """The entry's path, kept while this process lives (a day at most); None when there is no entry, which is kept once it is."""
        with self._locked(exclusive=False):
            self._pin(digest)
            path = self._path(digest)
            found = reading.is_regular(path)
        if found:
            self._touch(digest)
        return path if found else None

    def etag(self, digest: Digest) -> str | None:
        """The ETag of the object that the entry equals; None where that was not recorded, or there is no entry."""
        try:
            found = (self.root / "seen" / digest).read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return None
        return found or None if reading.is_regular(self._path(digest)) else None

    # -- changing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def filling(self, digest: Digest) -> Iterator[None]:
        """Hold the right to fetch an entry; look once more whether it is there, somebody else may have been faster."""
        fd = os.open(self.root / "fill" / digest[:2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def incoming(self) -> AbstractContextManager[IncomingFile]:
        """A new file on its way in, for `keep`."""
        return self._writer.incoming()

    def keep(self, file: IncomingFile, digest: Digest, size: int) -> Path:
        """Make the file an entry, and keep it as `take` does; its bytes have this digest, as the caller has seen."""
        with self._locked(exclusive=False):
            self._pin(digest)
        self._make_room(size)
        path = self._path(digest)
        file.publish(path, size)
        with self._lock:
            self._added += size
        self._touch(digest)
        return path

    def record(self, digest: Digest, etag: str) -> None:
        """Note the ETag of the object that the entry equals."""
        with suppress(OSError):  # without it, the entry is compared with the object once more
            (self.root / "seen" / digest).write_text(etag, "utf-8")

    def drop(self, digest: Digest) -> None:
        """Remove an entry; one that is not there is fine."""
        with explained(self._path(digest), "remove"):
            for path in (self.root / "seen" / digest, self._path(digest)):
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()

    def size(self) -> int:
        """Bytes that all entries take together."""
        return sum(entry.size for entry in self._entries())

    # -- how it is done ------------------------------------------------------------------------------------------------

    def _path(self, digest: Digest) -> Path:
        return self.root / "files" / digest[:2] / digest

    def _touch(self, digest: Digest) -> None:
        # Not the entry's own times: whoever remembers that an inode was verified looks at those.
        path = self.root / "seen" / digest
        with suppress(OSError):
            if path.exists():
                os.utime(path)
            else:
                path.touch()

    def _pin(self, digest: Digest) -> None:
        now = time.time()
        with self._lock:
            if now - self._pinned.get(digest, -_REPIN_SECONDS) < _REPIN_SECONDS:
                return
            if self._user is None:
                self._user = self._fs.create_tmp(self.root / "users")
                weakref.finalize(self, _leave, self._fs, self._user)
            self._fs.write(self._user, f"{int(now)} {digest}\n".encode())
            self._pinned[digest] = now

    @contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[None]:
        fd = os.open(self.root / "users", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago until `size` bytes more are within the bound."""
        with self._lock:
            # Counting takes a look at every entry: done when it may matter, and now and then for what others add.
            known = self._total is not None and self._added < self.bound // 16
            if known and (self._total or 0) + self._added + size <= self.bound:
                return
        with self._locked(exclusive=True):
            total = 0
            entries = sorted(self._entries())
            total = sum(entry.size for entry in entries)
            pinned = self._pins() if total + size > self.bound else set()
            for entry in entries:
                if total + size <= self.bound:
                    break
                if entry.links == 1 and entry.digest not in pinned:
                    self.drop(entry.digest)
                    total -= entry.size
        with self._lock:
            self._total, self._added = total, 0

    def _entries(self) -> Iterator[_Entry]:
        for shard in (self.root / "files").iterdir():
            for path in shard.iterdir():
                with suppress(FileNotFoundError, ValueError):
                    found = path.lstat()
                    try:
                        used = (self.root / "seen" / path.name).stat().st_mtime
                    except FileNotFoundError:
                        used = 0.0
                    yield _Entry(used, found.st_size, Digest(path.name), found.st_nlink)

    def _pins(self) -> set[str]:
        """What living processes were given the path of."""
        pins = set()
        oldest = time.time() - _PIN_SECONDS
        for path in (self.root / "users").iterdir():
            if self._fs.unlink_stale(path):
                continue
            with suppress(FileNotFoundError):
                for line in path.read_text("utf-8").splitlines():
                    at, _, digest = line.partition(" ")
                    if at.isdecimal() and int(at) >= oldest:
                        pins.add(digest)
        return pins


def _leave(filesystem: FileSystem, user: TmpFile) -> None:
    with suppress(OSError):
        filesystem.unlink(user.path)
    filesystem.close(user)
