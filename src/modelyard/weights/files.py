"""`Files`: a model's files by name, wherever they live.

`FolderFiles` is the plain one. It trusts nothing about the folder: a symbolic link, FIFO, socket or device is refused
when it is met, never followed or opened, so listing and reading can neither leave the folder nor hang. This module does
not know what is inside a file.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> _ = (folder / "config.json").write_text("{}")
>>> files = FolderFiles(folder)
>>> files.names(), files.size("config.json"), files.read("config.json")
(['config.json'], 2, b'{}')
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from modelyard.errors import ModelError, NotFoundError, near_match

__all__ = ["READ_LIMIT", "Files", "FolderFiles", "SingleFile", "check_name", "show_name"]

READ_LIMIT = 64 << 20
"""What `read` returns at most, in bytes, unless it is told otherwise."""

_SKIPPED = frozenset({".git", ".cache", "__pycache__"})
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@runtime_checkable
class Files(Protocol):
    """Names to readable, mappable files. Names are relative POSIX paths; nothing about them is a host path."""

    label: str
    """What messages call this set of files."""

    def names(self) -> list[str]:
        """Every file's name, sorted by its UTF-8 bytes."""
        ...

    def size(self, name: str) -> int:
        """The file's size in bytes; `NotFoundError` if there is no such file."""
        ...

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """The whole file; `ModelError` when it is larger than `limit` bytes, before anything is read."""
        ...

    def path(self, name: str) -> Path:
        """A regular file with these bytes, which the caller may map and must not write."""
        ...


class FolderFiles:
    """The regular files of a folder, `.git`, `.cache` and `__pycache__` left out.

    Args:
        folder: The folder; it may itself be reached through a link.
        links_within: Follow links whose target lies inside this folder. None follows no link, except in a snapshot of a
            hub's cache (`snapshots/<id>/config.json` links to `blobs/` beside `snapshots`): there, those into the repo's
            own cache folder.

    Raises:
        ModelError: `not_a_folder`, when `folder` is not one.
    """

    def __init__(self, folder: Path | str, *, links_within: Path | None = None) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ModelError(f"`{folder}` {what}", code="not_a_folder", hint="give the folder that holds config.json")
        self.label = str(folder)
        self._folder = folder.resolve()
        if links_within is None and self._folder.parent.name == "snapshots":
            repo = self._folder.parent.parent
            links_within = repo if (repo / "blobs").is_dir() else None
        self._within = links_within.resolve() if links_within is not None else None

    def names(self) -> list[str]:
        """Every regular file's name, sorted by bytes; `ModelError` at the first link, FIFO, socket or device."""
        found: list[str] = []
        self._walk("", found)
        return sorted(found, key=lambda name: name.encode("utf-8", "surrogateescape"))

    def size(self, name: str) -> int:
        """See `Files.size`."""
        return self.path(name).stat().st_size

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See `Files.read`."""
        path = self.path(name)
        # NONBLOCK, because a FIFO put there since the check would otherwise hang the open.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._refusal(name, "is a symbolic link") from None
            raise ModelError(f"`{show_name(name)}` in `{self.label}` cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise self._refusal(name, "is not a regular file")
            if status.st_size > limit:
                raise ModelError(
                    f"`{show_name(name)}` in `{self.label}` has {status.st_size} bytes, more than the {limit} expected",
                    code="file_too_large",
                )
            return stream.read(limit + 1)[:limit]

    def path(self, name: str) -> Path:
        """See `Files.path`; `NotFoundError` for a missing file, `ModelError` for a link, FIFO, socket or device."""
        check_name(name, self.label)
        path = self._folder
        for part in PurePosixPath(name).parts:
            path = self._step(path / part, name)
        if not path.is_file():
            raise self._refusal(name, "is a folder, not a file")
        return path

    def _step(self, path: Path, name: str) -> Path:
        """One component down, with links refused or resolved as the constructor was told."""
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            meant = near_match(name, self.names())
            raise NotFoundError(
                f"no file `{show_name(name)}` in `{self.label}`", hint=f"did you mean `{meant}`?" if meant else None
            ) from None
        if stat.S_ISLNK(status.st_mode):
            return self._follow(path, name)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            what = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
            # A copy would hold it again: `cp -r` makes another FIFO of a FIFO.
            raise self._refusal(name, f"is {what}", hint=f"remove it: rm {shlex.quote(str(path))}")
        return path

    def _follow(self, path: Path, name: str) -> Path:
        target = Path(os.path.realpath(path))
        if self._within is not None and target.is_relative_to(self._within) and target.is_file():
            return target
        outside = not target.is_relative_to(self._folder)
        raise self._refusal(name, "is a symbolic link out of the folder" if outside else "is a symbolic link")

    def _walk(self, prefix: str, found: list[str]) -> None:
        with os.scandir(self._folder / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SKIPPED:
                        self._walk(name + "/", found)
                    continue
                check_name(name, self.label)
                if not entry.is_file(follow_symlinks=False):
                    self._step(Path(entry.path), name)  # follows an allowed link, refuses everything else
                found.append(name)

    def _refusal(self, name: str, what: str, hint: str | None = None) -> ModelError:
        return ModelError(
            f"`{show_name(name)}` in `{self.label}` {what}; only regular files are read",
            code="not_a_regular_file",
            hint=hint or f"make a plain copy: cp -rL {self.label} COPY",
        )


class SingleFile:
    """The one regular file at `path`, of a folder that may hold more.

    Raises:
        ModelError: Its folder is none.
    """

    def __init__(self, path: Path) -> None:
        self._folder = FolderFiles(path.parent)
        self._name = path.name
        self.label = str(path)

    def names(self) -> list[str]:
        """The one name; `NotFoundError` or `ModelError` where it is no regular file."""
        self._folder.path(self._name)
        return [self._name]

    def size(self, name: str) -> int:
        """See `Files.size`."""
        return self._folder.size(name)

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See `Files.read`."""
        return self._folder.read(name, limit)

    def path(self, name: str) -> Path:
        """See `Files.path`."""
        return self._folder.path(name)


def check_name(name: str, label: str) -> None:
    """Refuse a file name that could leave its folder or mean another file on another system.

    Raises:
        ModelError: `unsafe_path`, for an empty, absolute, drive or UNC name, a `.` or `..` part, a backslash, or
            a control character.
    """
    parts = name.split("/")
    drive = len(name) > 1 and name[1] == ":"
    unsafe = any(part in {"", ".", ".."} for part in parts) or "\\" in name or drive
    if unsafe or any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in name):
        raise ModelError(
            f"`{show_name(name)}` in `{label}` is not a safe file name",
            code="unsafe_path",
            hint="file names are relative, with `/` between parts and no `..`",
        )


def show_name(name: str) -> str:
    r"""A name as it may be printed: printable ASCII as it is, everything else escaped, at most 120 characters.

    >>> show_name("a" + chr(27) + "[31m")
    'a\\x1b[31m'
    """
    shown = name.encode("unicode_escape", "backslashreplace").decode("ascii") if not name.isascii() else name
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= 120 else shown[:117] + "..."
