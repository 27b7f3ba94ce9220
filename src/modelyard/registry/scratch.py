"""Folders beside the store that a collection removes: links of versions that are gone, and what runs left behind.

`links/<id>/` is a version's files as hard links, and `runs/scratch/` belongs to whoever holds the lock of the same name in
`runs/locks/`. Knows names and locks; not what is in the folders.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["is_abandoned", "link_folders", "remove", "stale_folders"]


def link_folders(links: Path | None) -> set[str]:
    """The names in the folder of links: ids of versions, and folders on their way in, which begin with a dot."""
    if links is None:
        return set()
    # A file that begins with a dot is somebody's note (`registry.verified`).
    return {name for name in _names(links) if not name.startswith(".") or (links / name).is_dir()}


def stale_folders(links: Path | None) -> set[str]:
    """What lies in `runs/scratch/` and is not locked, as `scratch/<name>`, and conversions' folders in `runs/`."""
    if links is None:
        return set()
    runs = links.parent / "runs"
    free = {f"scratch/{name}" for name in _names(runs / "scratch") if not _is_locked(runs, name)}
    return free | {name for name in _names(runs) if name.startswith("convert-")}


def is_abandoned(links: Path | None, name: str) -> bool:
    """Whether a folder's lock exists and is free: then its owner has ended, and nobody else will come for what is in it."""
    if links is None or not name.startswith("scratch/"):
        return False
    runs, label = links.parent / "runs", name.removeprefix("scratch/")
    return (runs / "locks" / f"{label}.lock").is_file() and not _is_locked(runs, label)


def remove(links: Path | None, area: str, name: str) -> None:
    """Remove a folder of links, or a scratch folder unless somebody locked it meanwhile; one that is gone is fine."""
    if links is None:
        return
    if area == "links":
        _remove(links / name)
        return
    runs = links.parent / "runs"
    with _lock(runs, name.removeprefix("scratch/")) as held:
        if held:
            _remove(runs / name)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _names(folder: Path | None) -> set[str]:
    if folder is None:
        return set()
    with suppress(FileNotFoundError, NotADirectoryError):
        return {entry.name for entry in os.scandir(folder)}
    return set()


def _is_locked(runs: Path, label: str) -> bool:
    with _lock(runs, label) as held:
        return not held


@contextmanager
def _lock(runs: Path, label: str) -> Iterator[bool]:
    """Hold a recipe's lock while the block runs, if it exists; False when somebody else holds it."""
    try:
        descriptor = os.open(runs / "locks" / f"{label}.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
