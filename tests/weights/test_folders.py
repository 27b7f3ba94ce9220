"""Files as a folder for libraries that open paths: the folder itself, or links that vanish."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import ModelError, NotFoundError
from modelyard.weights.files import FolderFiles
from modelyard.weights.folders import as_files, as_folder

if TYPE_CHECKING:
    from pathlib import Path


class Stored:
    """Files whose paths have other names, as in a store."""

    label = "stored"

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths = paths

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self.paths)

    def size(self, name: str) -> int:
        """In bytes."""
        return self.paths[name].stat().st_size

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        """The whole file."""
        return self.paths[name].read_bytes()[:limit]

    def path(self, name: str) -> Path:
        """Where it lies."""
        if name not in self.paths:
            raise NotFoundError(f"no file `{name}`")
        return self.paths[name]


def test_a_folder_is_itself(tmp_path: Path) -> None:
    """Nothing is linked or copied; what is no folder is a typed error."""
    with as_folder(tmp_path) as found, as_folder(FolderFiles(tmp_path)) as again:
        assert found == again == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert as_files(str(tmp_path)).names() == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ModelError) as caught, as_folder(path):
            pass
        assert caught.value.code == "not_a_folder"


@pytest.mark.parametrize("links", [True, False])
def test_stored_files_are_linked_and_vanish(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One inode where the disk can, copies where it cannot; under their names, and gone with the block."""
    (tmp_path / "ab12").write_bytes(b"weights")
    stored = Stored({"model.safetensors": tmp_path / "ab12", "more/template.jinja": tmp_path / "ab12"})
    if not links:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EXDEV, "another disk")

        monkeypatch.setattr(os, "link", refuse)
    with as_folder(stored, near=tmp_path) as folder:
        assert folder.parent == tmp_path
        assert (folder / "more" / "template.jinja").read_bytes() == b"weights"
        assert (folder / "model.safetensors").samefile(tmp_path / "ab12") == links
    assert [path.name for path in tmp_path.iterdir()] == ["ab12"]
