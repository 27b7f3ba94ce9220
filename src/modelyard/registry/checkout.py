"""Checkout: a version becomes a folder, whole or not at all.

Files are copied, by reflink where the disk can, or hard-linked with `link`; either way every byte is hashed and compared
before the folder appears under its name, but for linked files that this boot has verified. Knows files, and where an adapter
says what its base is; not models.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import blake3

from modelyard.digest import Digest
from modelyard.errors import ConflictError, InputError, IntegrityError, ModelError, NoSpaceError, YardError
from modelyard.registry.names import check_paths
from modelyard.registry.verified import Verified
from modelyard.store.hashing import READ, Hashing

if TYPE_CHECKING:
    from modelyard.registry.model import FileEntry, Version
    from modelyard.store.base import Store

__all__ = ["checkout", "fill", "hash_path"]

_ADAPTER_CONFIG = "adapter_config.json"
_FICLONE = 0x40049409  # ioctl of Linux: share the source's blocks
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def checkout(
    store: Store,
    version: Version,
    folder: Path,
    *,
    link: bool = False,
    base: Version | None = None,
    verified: Verified | None = None,
) -> list[Path]:
    """Write a version's files into `folder`, which is new or empty; returns their paths in the order of their names.

    Args:
        store: Where the files are.
        version: What is written.
        folder: Where to.
        link: Read-only hard links, where that is possible.
        base: What an adapter was made on: goes into a folder inside, which `adapter_config.json` then names.
        verified: What need not be hashed before it is linked.

    Raises:
        ConflictError: `folder` holds something, or is not a folder.
        IntegrityError: A stored file is damaged or missing; nothing is left behind.
        NoSpaceError: The disk is full; nothing is left behind.
    """
    _check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:80]}.", suffix=".checkout", dir=folder.parent))
    written = [entry.path for entry in version.files]
    try:
        # mkdtemp is private; a checkout is as open as any folder that its user makes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        fill(store, version, temporary, link=link, verified=verified)
        if base is not None:
            inside = _free_name(version)
            fill(store, base, temporary / inside, link=link, verified=verified)
            _name_base(temporary, folder.absolute() / inside)
            written += [f"{inside}/{entry.path}" for entry in base.files]
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise ConflictError(
                    f"`{folder}` was filled by somebody else meanwhile", hint="choose a new folder"
                ) from error
            raise
    except OSError as error:
        raise _meaning(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [folder / path for path in written]


def _free_name(version: Version) -> str:
    """A folder that none of the adapter's own files lies in."""
    taken = {entry.path.partition("/")[0].casefold() for entry in version.files}
    return next(name for at in count() if (name := f"base-{at}" if at else "base") not in taken)


def _name_base(folder: Path, base: Path) -> None:
    """Make the adapter's configuration, our own copy of it, name its base by a path that exists."""
    path = folder / _ADAPTER_CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the adapter's {_ADAPTER_CONFIG} cannot be read: {error}", hint="--no-base") from error
    if not isinstance(config, dict):
        raise ModelError(f"the adapter's {_ADAPTER_CONFIG} is not a JSON object", hint="--no-base")
    # What is there may be a link to the stored file, which stays as it is.
    path.unlink()
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}, indent=2) + "\n", "utf-8")


def _check_target(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConflictError(f"`{folder}` is there already and is no folder", hint="choose a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConflictError(f"`{folder}` is not empty", hint="choose a new or empty folder")
    if not folder.name:
        raise InputError(f"`{folder}` cannot be made", hint="choose a new folder")


def fill(store: Store, version: Version, folder: Path, *, link: bool, verified: Verified | None = None) -> None:
    """Put every file of a version into an empty folder, verified."""
    check_paths(entry.path for entry in version.files)
    for entry in version.files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if link and _link(store, entry.blake3, target, verified or Verified(None)):
            continue
        if not _copy(store, entry, target):
            # Damaged: written anew where its segments are held elsewhere, else the error says so.
            store.verify_file(entry.blake3)
            target.unlink()
            if not _copy(store, entry, target):
                raise _damaged(entry.blake3)


def _link(store: Store, digest: Digest, target: Path, verified: Verified) -> bool:
    """Hard-link a stored file, verified; False where the file systems cannot."""
    path = store.file_path(digest)
    if not verified.knows(path, digest):
        store.verify_file(digest)
    before = path.lstat()
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    after = target.lstat()
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
        raise _damaged(digest)
    # Linking is a change of the inode by itself.
    verified.note(target, digest)
    return True


def _copy(store: Store, entry: FileEntry, target: Path) -> bool:
    """Copy a stored file and hash, in a thread beside the disk, what arrives; whether that is it."""
    # SHA-256 follows from the bytes that BLAKE3 vouches for.
    with (
        store.open_file(entry.blake3) as source,
        target.open("xb", buffering=0) as sink,
        Hashing(sha256=entry.sha256) as hashing,
    ):
        cloned = _reflink(source.fileno() if _has_descriptor(source) else None, sink.fileno())
        while chunk := source.read(READ):
            hashing.update(chunk)
            rest = memoryview(b"" if cloned else chunk)
            while rest:
                rest = rest[sink.write(rest) :]
        return hashing.digests().blake3 == entry.blake3


def _has_descriptor(stream: object) -> bool:
    """Whether a stream is a real file; a store in memory gives others."""
    import io

    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, io.UnsupportedOperation):
        return False
    return True


def _reflink(source: int | None, sink: int) -> bool:
    if source is None:
        return False
    try:
        import fcntl

        fcntl.ioctl(sink, _FICLONE, source)
    except (ImportError, OSError):
        return False  # another file system, or one that cannot: copied instead
    return True


def hash_path(path: Path) -> Digest:
    """The digest of a file's bytes."""
    hasher = blake3.blake3()
    hasher.update_mmap(path)
    return Digest(hasher.hexdigest())


def _damaged(digest: Digest) -> IntegrityError:
    return IntegrityError(
        f"the stored file {digest.short} is damaged", hint="yard check --read-data", digest=str(digest)
    )


def _meaning(error: OSError, folder: Path) -> YardError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(f"the disk is full: `{folder}` was not written", hint="free some space and try again")
    return YardError(f"`{folder}` cannot be written: {error.strerror}", hint="check that its parent may be written")
