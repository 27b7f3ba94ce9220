"""A version laid out as a folder of hard links into the store, so that loading copies nothing.

`links/<id>/` is built in a temporary folder beside it and appears by one rename. Every use hashes every byte again, and
checks that each entry still is the stored file itself (the same inode) and that nothing was added; a folder that is not
as it should be is built anew. Links share the stored bytes and cost none. Where the store is on another file system, or
in memory, the files are copies, and hashed as copies. Knows files; not tensors.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import IntegrityError, NoSpaceError, YardError
from modelyard.registry.checkout import fill, hash_path
from modelyard.registry.verification import Verification
from modelyard.registry.verified import Verified, notes_beside, verified_beside

if TYPE_CHECKING:
    from modelyard.digest import Digest
    from modelyard.registry.holdings import Holdings
    from modelyard.registry.model import Version
    from modelyard.store.base import Store

__all__ = ["linked_folder", "present_folder", "trusted_folder"]


def linked_folder(store: Store, links: Path, version: Version) -> Path:
    """The folder of a version's links, verified now and built when it is missing or not as it should be.

    Raises:
        IntegrityError: A stored file is damaged or missing.
        NoSpaceError: The disk is full.
    """
    folder = links / version.id
    if folder.exists():  # else every file is hashed when its link is made
        for entry in version.files:
            store.verify_file(entry.blake3)
    try:
        if not _is_faithful(store, folder, version):
            _build(store, links, folder, version)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(
                f"the disk is full: `{folder}` was not written", hint="free some space and try again"
            ) from error
        raise YardError(
            f"`{folder}` cannot be written: {error.strerror}", hint="check that the yard may be written"
        ) from error
    if not _is_faithful(store, folder, version):
        raise IntegrityError(f"`{folder}` changes while it is read", hint="nothing but modelyard should write there")
    return folder


def trusted_folder(store: Holdings, links: Path, version: Version) -> Path:
    """As `linked_folder`, but files are not hashed that this boot has verified and that nothing touched since."""
    folder = present_folder(store.raw, links, version)
    if folder is not None:
        files = [(folder / entry.path, entry.blake3) for entry in version.files]
        with Verification(files, verified_beside(links), trust=True) as verification:
            try:
                verification.finish()
            except (IntegrityError, OSError):
                folder = None
    return folder or linked_folder(store, links, version)


class _Noting(Verified):
    """Notes what was hashed, and believes nothing: every file is hashed."""

    def knows(self, path: Path, digest: Digest) -> bool:  # noqa: ARG002  # see `Verified`
        return False


def present_folder(store: Store, links: Path, version: Version) -> Path | None:
    """The folder of a version's links where it is there and each entry is the stored file itself; no byte is hashed.

    None where it has to be built, or verified as `linked_folder` does it.
    """
    folder = links / version.id
    expected = {entry.path: entry for entry in version.files}
    try:
        if _names(folder) != set(expected):
            return None
        for path, entry in expected.items():
            linked, stored = (folder / path).lstat(), store.file_path(entry.blake3).lstat()
            if (linked.st_dev, linked.st_ino, linked.st_size) != (stored.st_dev, stored.st_ino, entry.size):
                return None
    except (OSError, YardError):
        return None  # whatever it is, `linked_folder` mends it or says so
    return folder


def _names(folder: Path) -> set[str] | None:
    """The files below a folder; None where a folder in it is a link."""
    found = set()
    for parent, folders, names in os.walk(folder):
        if any(Path(parent, name).is_symlink() for name in folders):
            return None
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in names}
    return found


def _is_faithful(store: Store, folder: Path, version: Version) -> bool:
    """Whether the folder holds exactly the version's files, each the stored file itself or an equal copy."""
    expected = {entry.path: entry for entry in version.files}
    if _names(folder) != set(expected):
        return False
    for path, entry in expected.items():
        linked, stored = (folder / path).lstat(), store.file_path(entry.blake3).stat()
        same = (linked.st_dev, linked.st_ino) == (stored.st_dev, stored.st_ino)
        if not same and ((folder / path).is_symlink() or hash_path(folder / path) != entry.blake3):
            return False
    return True


def _build(store: Store, links: Path, folder: Path, version: Version) -> None:
    links.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{version.id[:12]}.", dir=links))
    try:
        fill(store, version, temporary / "new", link=True, verified=_Noting(notes_beside(links)))
        temporary.chmod(0o755)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Put `temporary/new` in the folder's place; another process may do the same at the same time, with the same files."""
    try:
        (temporary / "new").rename(folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        folder.rename(temporary / "old")
        try:
            (temporary / "new").rename(folder)
        except OSError as again:
            if again.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
