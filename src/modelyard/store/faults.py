"""Disks that fail, processes that die, and what a power loss leaves: for tests of everything that is built on the store.

`RecordingFileSystem` notes every change of the disk; `crash_states` says what a power loss after them may leave;
`FailingFileSystem` does something nasty at the n-th call, in the way that `failpoint` reads from a text. None of this is in the
way of a store that was not given one. Knows folders and files; does not know what a store is.

>>> import tempfile
>>> from pathlib import Path
>>> with tempfile.TemporaryDirectory() as folder:
...     disk = RecordingFileSystem(Path(folder))
...     file = disk.create_tmp(Path(folder))
...     disk.write(file, b"bytes")
...     disk.close(file)
>>> [operation.name for operation in disk.operations]
['create_tmp', 'write']
>>> sorted(len(state) for state in crash_states(disk.operations))  # lost; there with none, some, garbled or all of its bytes
[0, 1, 1, 1, 1]
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.errors import InputError
from modelyard.store.filesystem import FileSystem, TmpFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "POINTS",
    "FailingFileSystem",
    "Operation",
    "RecordingFileSystem",
    "State",
    "WatchedFileSystem",
    "crash_states",
    "failpoint",
]

POINTS = ("create_tmp", "adopt", "write", "clone", "protect", "fsync", "rename", "link", "unlink", "mkdir", "fsync_dir")
"""The calls that change a disk, each a point at which it can fail."""

State = dict[str, bytes | None]
"""What is on a disk: paths to bytes, folders to None."""

_EXHAUSTIVE = 8
"""Up to so many un-synced changes of names, every subset of them is tried."""


@dataclass(frozen=True)
class Operation:
    """One change of the disk.

    Attributes:
        name: One of `POINTS`, or ``mark`` for a note of the test's own.
        path: What was changed.
        target: The other path of a rename or link.
        data: The bytes of a write, clone or adoption.
    """

    name: str
    path: str
    target: str = ""
    data: bytes = b""


class WatchedFileSystem(FileSystem):
    """A file system whose every change passes `before` and `after`."""

    def before(self, name: str) -> None:
        """Called before each change, with one of `POINTS`."""

    def after(self, operation: Operation) -> None:
        """Called after each change that succeeded."""

    def create_tmp(self, folder: Path) -> TmpFile:
        """As `FileSystem.create_tmp`."""
        self.before("create_tmp")
        file = super().create_tmp(folder)
        self.after(Operation("create_tmp", str(file.path)))
        return file

    def adopt(self, folder: Path, path: Path, source: int) -> TmpFile | None:
        """As `FileSystem.adopt`."""
        self.before("adopt")
        file = super().adopt(folder, path, source)
        if file is not None:
            self.after(Operation("adopt", str(file.path), data=path.read_bytes()))
        return file

    def write(self, file: TmpFile, data: bytes) -> None:
        """As `FileSystem.write`."""
        self.before("write")
        super().write(file, data)
        self.after(Operation("write", str(file.path), data=bytes(data)))

    def clone(self, file: TmpFile, source: int) -> bool:
        """As `FileSystem.clone`."""
        self.before("clone")
        done = super().clone(file, source)
        if done:
            self.after(Operation("clone", str(file.path), data=file.path.read_bytes()))
        return done

    def protect(self, file: TmpFile) -> None:
        """As `FileSystem.protect`."""
        self.before("protect")
        super().protect(file)
        self.after(Operation("protect", str(file.path)))

    def fsync(self, file: TmpFile) -> None:
        """As `FileSystem.fsync`."""
        self.before("fsync")
        super().fsync(file)
        self.after(Operation("fsync", str(file.path)))

    def rename(self, file: TmpFile, target: Path) -> None:
        """As `FileSystem.rename`."""
        self.before("rename")
        super().rename(file, target)
        self.after(Operation("rename", str(file.path), str(target)))

    def link(self, file: TmpFile, target: Path) -> None:
        """As `FileSystem.link`."""
        self.before("link")
        super().link(file, target)
        self.after(Operation("link", str(file.path), str(target)))

    def unlink(self, path: Path) -> None:
        """As `FileSystem.unlink`."""
        self.before("unlink")
        super().unlink(path)
        self.after(Operation("unlink", str(path)))

    def mkdir(self, path: Path) -> None:
        """As `FileSystem.mkdir`."""
        self.before("mkdir")
        new = not path.exists()
        super().mkdir(path)
        if new:
            self.after(Operation("mkdir", str(path)))

    def fsync_dir(self, path: Path) -> None:
        """As `FileSystem.fsync_dir`."""
        self.before("fsync_dir")
        super().fsync_dir(path)
        self.after(Operation("fsync_dir", str(path)))


class RecordingFileSystem(WatchedFileSystem):
    """Notes every change below `root`, paths relative to it, in `operations`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.operations: list[Operation] = []

    def after(self, operation: Operation) -> None:
        """Note the operation."""
        path = os.path.relpath(operation.path, self._root)
        target = os.path.relpath(operation.target, self._root) if operation.target else ""
        self.operations.append(Operation(operation.name, path, target, operation.data))

    def mark(self, note: str) -> None:
        """Add a note of the test's own, such as that a call was acknowledged."""
        self.operations.append(Operation("mark", note))


class FailingFileSystem(WatchedFileSystem):
    """Runs `action` before the call number `count` (from 1) of the method `name`, and once only.

    >>> FailingFileSystem("fsync", 1, lambda: None).calls["fsync"]
    0
    """

    def __init__(self, name: str, count: int, action: Callable[[], None]) -> None:
        self._name, self._count, self._action = name, count, action
        self.calls = dict.fromkeys(POINTS, 0)

    def before(self, name: str) -> None:
        """Count, and strike when it is time."""
        self.calls[name] += 1
        if name == self._name and self.calls[name] == self._count:
            self._action()


def failpoint(text: str) -> FailingFileSystem:
    """The file system that a text like ``fsync:1:EIO`` asks for: `POINT:NUMBER:ACTION`.

    ACTION is ``kill`` (the process dies at once, as by `kill -9`) or the name of an error number. `InputError` for any other text.

    >>> failpoint("write:2:kill").calls["write"]
    0
    """
    name, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    number = getattr(errno, action, None)
    if (
        name not in POINTS
        or not count.isdecimal()
        or int(count) < 1
        or not (action == "kill" or isinstance(number, int))
    ):
        raise InputError(
            f"`{text}` is no failpoint", hint=f"POINT:NUMBER:ACTION, like fsync:1:EIO; points: {', '.join(POINTS)}"
        )

    def strike() -> None:
        if number is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(number, os.strerror(number))

    return FailingFileSystem(name, int(count), strike)


@dataclass(eq=False)
class _Inode:
    """A file's bytes: those that are safe, and those that a power loss may take."""

    safe: bytes = b""
    now: bytes = b""

    def after_crash(self) -> list[bytes]:
        """What may be left: as synced; all; half of the rest; the new length with the rest unwritten."""
        rest = len(self.now) - len(self.safe)
        if rest <= 0:
            return [self.now]
        return [self.safe, self.now, self.now[: len(self.safe) + rest // 2], self.safe + bytes(rest)]


@dataclass(frozen=True)
class _Change:
    """A change of one folder's names that is not yet durable: `path` now means `what`, or nothing."""

    folder: str
    path: str
    what: _Inode | str | None  # a file, "folder", or removed


@dataclass
class _Disk:
    safe: dict[str, _Inode | str] = field(default_factory=dict)
    now: dict[str, _Inode | str] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        path, target = operation.path, operation.target
        if operation.name == "create_tmp":
            self._name(path, _Inode())
        elif operation.name == "adopt":
            # Nobody ever synced the original.
            self._name(path, _Inode(now=operation.data))
        elif operation.name in {"write", "clone"}:
            self._inode(path).now += operation.data
        elif operation.name == "fsync":
            self._inode(path).safe = self._inode(path).now
        elif operation.name in {"rename", "link"}:
            self._name(target, self._inode(path))
        elif operation.name == "mkdir":
            self._name(path, "folder")
        elif operation.name == "fsync_dir":
            self._sync(path)
        if operation.name in {"rename", "unlink"}:
            self._name(path, None)

    def states(self) -> Iterator[State]:
        for chosen in _choices(len(self.pending)):
            names = dict(self.safe)
            for change, kept in zip(self.pending, chosen, strict=True):
                if kept:
                    _set(names, change)
            inodes = list({id(item): item for item in names.values() if isinstance(item, _Inode)}.values())
            for contents in itertools.product(*(inode.after_crash() for inode in inodes)):
                bytes_of = {id(inode): content for inode, content in zip(inodes, contents, strict=True)}
                yield {path: bytes_of.get(id(item)) for path, item in names.items()}

    def _name(self, path: str, what: _Inode | str | None) -> None:
        change = _Change(os.path.dirname(path) or ".", path, what)  # noqa: PTH120  relative texts, not paths of this machine
        self.pending.append(change)
        _set(self.now, change)

    def _inode(self, path: str) -> _Inode:
        found = self.now.get(path)
        if not isinstance(found, _Inode):
            # It was there before the recording began, so it is safe and its bytes do not matter here.
            found = self.safe[path] = self.now[path] = _Inode()
        return found

    def _sync(self, folder: str) -> None:
        for change in self.pending:
            if change.folder == folder:
                _set(self.safe, change)
        self.pending = [change for change in self.pending if change.folder != folder]


def crash_states(operations: Sequence[Operation]) -> Iterator[State]:
    """Every state in which a power loss right after `operations` may leave the disk, duplicates left out.

    The disk is as unkind as POSIX lets it be. Bytes that were not synced are kept, lost, torn or zero; names whose folder was not
    synced are kept or lost each by itself, so that a rename may leave both names or neither. Only names that
    the operations changed are in the states. With many names pending, not all subsets but the telling ones are tried: none, all, the
    first half, the second, and all but one.
    """
    disk = _Disk()
    for operation in operations:
        disk.apply(operation)
    seen: set[frozenset[tuple[str, bytes | None]]] = set()
    for state in disk.states():
        key = frozenset(state.items())
        if key not in seen:
            seen.add(key)
            yield state


def _set(names: dict[str, _Inode | str], change: _Change) -> None:
    if change.what is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.what


def _choices(count: int) -> Iterator[tuple[bool, ...]]:
    if count <= _EXHAUSTIVE:
        yield from itertools.product([False, True], repeat=count)
        return
    half = count // 2
    yield (False,) * count
    yield (True,) * count
    yield (True,) * half + (False,) * (count - half)
    yield (False,) * half + (True,) * (count - half)
    for lost in range(count):
        yield tuple(index != lost for index in range(count))
