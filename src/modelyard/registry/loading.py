"""Loading without copying: a version laid out as a folder of hard links into the store.

`links/<id>/` is built in a temporary folder beside it and appears by one rename. Every use hashes every byte again, and
checks that each entry still is the stored file itself (the same inode) and that nothing was added; a folder that is not
as it should be is built anew. Links share the stored bytes and cost none. Where the store is on another file system, or
in memory, the files are copies, and hashed as copies. Knows files, and that an adapter has a base; not tensors.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import IntegrityError, NoSpaceError, YardError
from modelyard.registry.checkout import checkout, fill, hash_path
from modelyard.registry.leases import lease
from modelyard.registry.lineage import adapter_base
from modelyard.registry.recency import note_use

if TYPE_CHECKING:
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version
    from modelyard.store.base import Store
    from modelyard.weights.model import Model

__all__ = ["linked_folder", "load"]


def load(context: Context, version: Version, options: dict[str, Any]) -> Model:
    """Load a version, an adapter together with its base; see `Yard.load`."""
    from modelyard.weights.load import load as load_folder

    wanted = [version]
    if version.kind == "adapter":
        wanted.append(adapter_base(context, version))
    with lease(context, "load", versions=[each.id for each in wanted]):
        note_use(context, wanted)
        if context.links is not None:
            folders = [linked_folder(context.store, context.links, each) for each in wanted]
            model = load_folder(folders[0], base=folders[1] if len(folders) > 1 else None, **options)
        else:
            model = _load_copies(context.store, wanted, options)
    model.version = version
    return model


def _load_copies(store: Store, wanted: list[Version], options: dict[str, Any]) -> Model:
    """Load from a temporary folder that lives as long as the model."""
    from modelyard.weights.load import load as load_folder

    root = Path(tempfile.mkdtemp(prefix="modelyard-"))
    try:
        folders = [root / str(position) for position in range(len(wanted))]
        for folder, each in zip(folders, wanted, strict=True):
            checkout(store, each, folder)
        model = load_folder(folders[0], base=folders[1] if len(folders) > 1 else None, **options)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, root, ignore_errors=True)
    return model


def linked_folder(store: Store, links: Path, version: Version) -> Path:
    """The folder of a version's links, verified now and built when it is missing or not as it should be.

    Raises:
        IntegrityError: A stored file is damaged or missing.
        NoSpaceError: The disk is full.
    """
    for entry in version.files:
        store.verify_file(entry.blake3)
    folder = links / version.id
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


def _is_faithful(store: Store, folder: Path, version: Version) -> bool:
    """Whether the folder holds exactly the version's files, each the stored file itself or an equal copy."""
    expected = {entry.path: entry for entry in version.files}
    found = set()
    for parent, folders, names in os.walk(folder):
        if any(Path(parent, name).is_symlink() for name in folders):
            return False
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in names}
    if found != set(expected):
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
        fill(store, version, temporary / "new", link=True)
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
