"""Checkout: a version becomes a folder, whole or not at all.

Files are copied, by reflink where the disk can, or hard-linked with `link`; either way every byte is hashed and compared
before the folder appears under its name. Knows files, not models.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import blake3

from modelyard.digest import Digest
from modelyard.errors import ConflictError, InputError, IntegrityError, NoSpaceError, YardError
from modelyard.registry.names import check_paths

if TYPE_CHECKING:
    from modelyard.registry.model import Version
    from modelyard.store.base import Store

__all__ = ["checkout", "fill", "hash_path"]

_CHUNK = 4 << 20
_FICLONE = 0x40049409  # ioctl of Linux: share the source's blocks
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def checkout(store: Store, version: Version, folder: Path, *, link: bool = False) -> list[Path]:
    """Write a version's files into `folder`, which is new or empty; returns their paths in the order of their names.

    Raises:
        ConflictError: `folder` holds something, or is not a folder.
        IntegrityError: A stored file is damaged or missing; nothing is left behind.
        NoSpaceError: The disk is full; nothing is left behind.
    """
    _check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:80]}.", suffix=".checkout", dir=folder.parent))
    try:
        # mkdtemp is private; a checkout is as open as any folder that its user makes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        fill(store, version, temporary, link=link)
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
    return [folder / entry.path for entry in version.files]


def _check_target(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConflictError(f"`{folder}` is there already and is no folder", hint="choose a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConflictError(f"`{folder}` is not empty", hint="choose a new or empty folder")
    if not folder.name:
        raise InputError(f"`{folder}` cannot be made", hint="choose a new folder")


def fill(store: Store, version: Version, folder: Path, *, link: bool) -> None:
    """Put every file of a version into an empty folder, verified."""
    check_paths(entry.path for entry in version.files)
    for entry in version.files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if link and _link(store, entry.blake3, target):
            continue
        _copy(store, entry.blake3, target)


def _link(store: Store, digest: Digest, target: Path) -> bool:
    """Hard-link a stored file, verified; False where the file systems cannot."""
    try:
        os.link(store.file_path(digest), target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    if hash_path(target) != digest:
        raise _damaged(digest)
    return True


def _copy(store: Store, digest: Digest, target: Path) -> None:
    """Copy a stored file and hash what arrives."""
    with store.open_file(digest) as source, target.open("xb") as sink:
        if _reflink(source.fileno() if _has_descriptor(source) else None, sink.fileno()):
            hasher = blake3.blake3()
            while chunk := source.read(_CHUNK):
                hasher.update(chunk)
        else:
            hasher = blake3.blake3()
            while chunk := source.read(_CHUNK):
                hasher.update(chunk)
                sink.write(chunk)
    if hasher.hexdigest() != digest:
        raise _damaged(digest)


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
