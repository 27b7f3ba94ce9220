"""Writing a new model folder so that it is there whole or not at all.

Everything is written into a hidden folder beside the target, made durable, and moved into place by one rename. An error or
an interruption leaves no target; what a killed process leaves is the hidden folder only. In a `resumable_folder` the same command goes on there, file by
file. Knows files and bytes, nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import blake3

from modelyard.digest import Digest, digest_bytes
from modelyard.errors import BusyError, ConflictError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from modelyard.weights.files import Files

__all__ = [
    "Digested",
    "HashingWriter",
    "Work",
    "copy_file",
    "digest_of",
    "format_json",
    "fresh_folder",
    "hash_file",
    "key_of",
    "resumable_folder",
    "write_file",
]

_CHUNK = 4 << 20
_SYNCED = 64 << 20
_PROGRESS = "progress.json"
_FORMAT = "modelyard/progress/1"
_KEY_DIGITS = 24  # of the key in the folder's name, which must fit 255 bytes; the whole key is in `progress.json`


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        ConflictError: `out` exists and is not an empty folder.
        NoSpaceError: The disk filled up; nothing is left behind.
    """
    _refuse_existing(out)
    _make_parent(out)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        with _typed_full_disk(out):
            yield work
            _move_into_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Work:
    """A folder that is being written, and what of it is finished: made by `resumable_folder`.

    Attributes:
        folder: Where to write; a name that `finished` gave None for is free.
    """

    def __init__(self, folder: Path, key: str, done: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self._key = key
        self._done = done

    def finished(self, name: str) -> dict[str, Any] | None:
        """The note of a file that an earlier run finished, and whose bytes still are what they were: read and hashed here.

        None when it must be written; nothing is there under its name then.
        """
        known = self._done.get(name)
        path = self.folder / name
        if known is not None and path.is_file() and hash_file(path) == known["digest"]:
            return dict(known["note"])
        self._done.pop(name, None)
        path.unlink(missing_ok=True)
        return None

    def digest(self, name: str) -> Digest:
        """The digest that `name` was finished with; `KeyError` where it was not."""
        return Digest(self._done[name]["digest"])

    def finish(self, name: str, digest: Digest, note: Mapping[str, Any] | None = None) -> None:
        """Remember, durably, that the file `name` is complete and durable, and what else is to be known about it.

        Args:
            name: Relative to `folder`.
            digest: Of its bytes, as they were hashed while they were written.
            note: Plain JSON: what `finished` gives a later run instead of the work.
        """
        self._done[name] = {"digest": str(digest), "note": dict(note or {})}
        state = {"format": _FORMAT, "key": self._key, "files": self._done}
        fresh = self.folder / f"{_PROGRESS}.new"
        fresh.unlink(missing_ok=True)
        write_file(fresh, json.dumps(state).encode())
        fresh.replace(self.folder / _PROGRESS)
        _sync_folder(self.folder)


@contextlib.contextmanager
def resumable_folder(out: Path, key: str) -> Iterator[Work]:
    """As `fresh_folder`, except that an interruption keeps what was finished, for the next block with the same `key`.

    The hidden folder's name follows from `out` and `key`. When the block is left by Ctrl-C, by `SystemExit` or by the process's
    death, the folder stays; an error of the operation (any `Exception`) removes it, since it would come again.

    Args:
        out: The target; it appears when the block ends well.
        key: What the result follows from: `key_of`. Other keys have folders of their own, which are not touched.

    Raises:
        ConflictError: `out` exists and is not an empty folder.
        BusyError: Another process works on this very result.
        NoSpaceError: The disk filled up; nothing is left behind.
    """
    _refuse_existing(out)
    _make_parent(out)
    folder = out.parent / f".{out.name}.{key[:_KEY_DIGITS]}.partial"
    with _held(folder, out), _typed_full_disk(out):
        try:
            yield Work(folder, key, _clear_unfinished(folder, key))
            (folder / _PROGRESS).unlink(missing_ok=True)
            _move_into_place(folder, out)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@runtime_checkable
class Digested(Protocol):
    """`Files` that know their files' digests without reading them, as those of a yard do."""

    def digest(self, name: str) -> Digest:
        """The digest of one file's bytes."""
        ...


def key_of(operation: str, options: Mapping[str, Any], *sources: Files) -> str:
    """What a result follows from, as 64 hex digits: the operation, its options and every file of its sources.

    A file counts by its digest where the source knows it (`Digested`), else by name, size, modification time and inode.

    >>> key_of("rewrite", {"dtype": "float16"}) == key_of("rewrite", {"dtype": "bfloat16"})
    False
    """
    inputs = [[_identity(source, name) for name in source.names()] for source in sources]
    covered = {"operation": operation, "options": dict(options), "inputs": inputs}
    return str(digest_bytes(json.dumps(covered, sort_keys=True, default=str).encode()))


class HashingWriter:
    """A new file that is hashed as it is written, and durable once the block ended.

    A large one is made durable all along, by a thread of its own: the disk works while the next bytes are computed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = blake3.blake3()
        self._syncer: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None
        self._asked = 0
        self.size = 0

    def __enter__(self) -> HashingWriter:
        self._stream = self._path.open("xb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._syncer is not None:
                self._syncer.shutdown(cancel_futures=True)
            if kind is None:
                if self._syncing is not None and not self._syncing.cancelled():
                    self._syncing.result()  # an error of the disk is told to the call that met it, and to no later one
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
        if self.size - self._asked >= _SYNCED:
            self._sync_behind()

    def digest(self) -> Digest:
        """The digest of everything written."""
        return Digest(self._hash.hexdigest())

    def _sync_behind(self) -> None:
        """Let the disk take what was written so far, unless it is still busy with what came before."""
        if self._syncer is None:
            self._syncer = ThreadPoolExecutor(1)
        if self._syncing is not None:
            if not self._syncing.done():
                return
            self._syncing.result()
        self._asked = self.size
        self._syncing = self._syncer.submit(os.fsync, self._stream.fileno())


def format_json(value: Mapping[str, Any]) -> bytes:
    """JSON as the libraries write a model's files: two spaces, a line break at the end, names as they are."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


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


def hash_file(path: Path) -> Digest:
    """The digest of a file's bytes, read a few MiB at a time."""
    made = blake3.blake3()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            made.update(buffer[:count])
    return Digest(made.hexdigest())


def digest_of(files: Files, name: str) -> Digest:
    """The digest of one of `files`: as they know it (`Digested`), else its bytes are read and hashed."""
    return files.digest(name) if isinstance(files, Digested) else hash_file(files.path(name))


def _identity(source: Files, name: str) -> list[Any]:
    if isinstance(source, Digested):
        return [name, str(source.digest(name))]
    status = source.path(name).stat()
    return [name, status.st_size, status.st_mtime_ns, status.st_ino]


def _refuse_existing(out: Path) -> None:
    if out.name in {"", ".."}:  # `.` and `/` too: what is there cannot be replaced by a rename
        raise ConflictError(f"`{out}` exists already", code="exists", hint="give a folder that does not exist yet")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConflictError(f"`{out}` exists already", code="exists", hint="give a folder that does not exist yet")


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConflictError(
            f"`{out}` cannot be made: a part of its path is a file", code="exists", hint="give a folder in a folder"
        ) from error


@contextlib.contextmanager
def _typed_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise NoSpaceError(
                f"`{out}`: a file of it is larger than this file system or this process may write",
                hint="ask for smaller ones (--shard-size 2GB), or raise the limit (ulimit -f)",
            ) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(f"no space left to write `{out}`", hint="free some space and run it again") from error
        raise


def _move_into_place(folder: Path, out: Path) -> None:
    folder.chmod(0o777 & ~_umask())
    _sync_folder(folder)
    folder.rename(out)
    _sync_folder(out.parent)


@contextlib.contextmanager
def _held(folder: Path, out: Path) -> Iterator[None]:
    """`folder`, made where it is not there, locked for this process: the lock is on the folder itself, so that no file of it is left over."""
    busy = BusyError(f"another process is writing `{out}`", hint="wait for it, or give another folder")
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise busy from None  # it finished between the two calls
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        held = os.fstat(descriptor)
        try:
            there = folder.stat()
        except FileNotFoundError:
            raise busy from None
        if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
            raise busy
        yield
    finally:
        os.close(descriptor)


def _clear_unfinished(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    """What is finished in `folder`, by name; everything else in it is removed."""
    done = _read_progress(folder / _PROGRESS, key)
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name != _PROGRESS and name not in done:
            path.unlink()
    return done


def _read_progress(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """What `Work.finish` wrote for this key; nothing where it is not that, since all of it can be made again."""
    try:
        state = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(state, dict) or (state.get("format"), state.get("key")) != (_FORMAT, key):
        return {}
    files = state.get("files")
    kinds = {"digest": str, "note": dict}
    sound = isinstance(files, dict) and all(
        isinstance(each, dict) and all(isinstance(each.get(name), kind) for name, kind in kinds.items())
        for each in files.values()
    )
    return files if isinstance(files, dict) and sound else {}


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
