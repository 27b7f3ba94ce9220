"""Files as a folder that libraries open: the folder itself where there is one, else links or copies for as long as they are needed.

Knows files; nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import ModelError
from modelyard.weights.files import FolderFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.files import Files

__all__ = ["as_files", "as_folder"]


def as_files(source: Files | Path | str) -> Files:
    """`source` as `Files`.

    Raises:
        ModelError: `not_a_folder`.
    """
    return FolderFiles(source) if isinstance(source, str | Path) else source


@contextlib.contextmanager
def as_folder(source: Files | Path | str, *, near: Path | None = None) -> Iterator[Path]:
    """A folder with the files of `source`, which nobody may write to, for as long as the block runs.

    A path is the folder itself. Other files are hard links where the disk can, else copies; they vanish with the block.

    Args:
        source: A folder, or files.
        near: A folder on the disk on which links are made; by default the system's folder for temporary files.

    Raises:
        ModelError: `not_a_folder`; an unsafe name, a link or a device among the files.
    """
    if isinstance(source, str | Path):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ModelError(f"`{folder}` {what}", code="not_a_folder", hint="give the folder that holds config.json")
        yield folder
        return
    if isinstance(source, FolderFiles):
        yield Path(source.label)
        return
    made = Path(tempfile.mkdtemp(prefix=".links.", dir=near))
    try:
        for name in source.names():
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path = source.path(name)
            try:
                os.link(path, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, target)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
