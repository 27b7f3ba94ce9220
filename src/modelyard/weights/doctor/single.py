"""One file as `Files`: what `yard doctor ./model.safetensors` and `./model.gguf` examine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.weights.files import READ_LIMIT, FolderFiles

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SingleFile"]


class SingleFile:
    """The one file at `path`; see `Files`.

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
