"""A version's files as stored, verified against their digests every time they are opened.

`StoredFiles` is the registry's `weights.Files`. A damaged or missing file is an `IntegrityError` before its first byte
is seen. Knows nothing of what is inside a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from modelyard.digest import digest_bytes
from modelyard.errors import IntegrityError, ModelError, NotFoundError, near_match
from modelyard.weights.files import READ_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.registry.holdings import Holdings
    from modelyard.registry.model import FileEntry, Version

__all__ = ["StoredFiles"]


class StoredFiles:
    """The files of a version in a store; see `weights.Files`."""

    def __init__(self, store: Holdings, version: Version) -> None:
        self.label = version.name
        self._store = store
        self._entries = {entry.path: entry for entry in version.files}

    def names(self) -> list[str]:
        """Every file's path, sorted by bytes."""
        return sorted(self._entries, key=str.encode)

    def entries(self) -> list[FileEntry]:
        """Every file's entry, in the order of `names`."""
        return [self._entries[name] for name in self.names()]

    def size(self, name: str) -> int:
        """A file's size in bytes; `NotFoundError` if there is none of this name."""
        return self.entry(name).size

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """A whole file, verified; `ModelError` when it is larger than `limit` bytes."""
        entry = self.entry(name)
        if entry.size > limit:
            raise ModelError(
                f"`{name}` in `{self.label}` has {entry.size} bytes, more than the {limit} expected",
                code="file_too_large",
            )
        data = self._bytes(entry)
        if digest_bytes(data) != entry.blake3:
            # Damaged: written anew where its segments are held elsewhere, else the error says so.
            self._store.verify_file(entry.blake3)
            data = self._bytes(entry)
        if digest_bytes(data) != entry.blake3:
            raise IntegrityError(
                f"`{name}` in `{self.label}` is damaged in the store",
                hint="yard check --read-data",
                digest=str(entry.blake3),
            )
        return data

    def _bytes(self, entry: FileEntry) -> bytes:
        with self._store.open_file(entry.blake3) as stream:
            return stream.read(entry.size + 1)

    def path(self, name: str) -> Path:
        """The stored file itself, read-only, after it was verified; its name is its digest."""
        entry = self.entry(name)
        self._store.verify_file(entry.blake3)
        return self._store.file_path(entry.blake3)

    def open(self, name: str) -> BinaryIO:
        """A stored file for reading in any order, verified: now where it is whole, else segment by segment as it is read."""
        entry = self.entry(name)
        if self._store.is_whole(entry.blake3):
            self._store.verify_file(entry.blake3)
        return self._store.open_file(entry.blake3)

    def digest(self, name: str) -> Digest:
        """A file's BLAKE3, as the version says; what is read is held against it."""
        return self.entry(name).blake3

    def entry(self, name: str) -> FileEntry:
        """A file's entry; `NotFoundError` with a near match if there is none of this name."""
        found = self._entries.get(name)
        if found is None:
            meant = near_match(name, self._entries)
            raise NotFoundError(
                f"`{self.label}` has no file `{name}`",
                hint=f"did you mean `{meant}`?" if meant else f"yard show {self.label}",
            )
        return found
