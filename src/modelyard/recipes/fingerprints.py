"""Digests of files that may be large, without reading them again when nothing touched them.

A digest is remembered with the file's size, inode and change times, and believed only if the file was last changed well
before it was hashed: a change within the clock's granularity would not show. The memory is a cache: losing it costs a
read. This module does not know what the files are.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import blake3

from modelyard.digest import Digest, digest_json
from modelyard.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Fingerprints"]

_SETTLED_NS = 2_000_000_000
_MOST_ENTRIES = 4096


class Fingerprints:
    """File digests, remembered in the JSON file `memory` (None: only in this object)."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = _load(memory)
        self._changed = False

    def file(self, path: Path) -> Digest:
        """The digest of one file.

        Raises:
            InputError: It cannot be read, or is no regular file.
        """
        try:
            name = str(path.absolute())
            stamp = _stamp(path)
            found = self._known.get(name)
            if found is not None and found[:-1] == stamp:
                return Digest(found[-1])
            started = time.time_ns()
            digest = Digest(blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(path).hexdigest())
            after = _stamp(path)
        except OSError as error:
            raise InputError(f"`{path}` cannot be read: {error.strerror}") from error
        if after == stamp and max(stamp[1], stamp[2]) < started - _SETTLED_NS:
            self._known[name] = [*stamp, str(digest)]
            self._changed = True
        return digest

    def files(self, paths: dict[str, Path]) -> Digest:
        """One digest of several files and their names."""
        return digest_json({name: str(self.file(path)) for name, path in sorted(paths.items())})

    def save(self) -> None:
        """Write the memory, if there is one and it has news."""
        if self._memory is None or not self._changed:
            return
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memory.with_name(f"{self._memory.name}.{os.getpid()}.tmp")
        newest = dict(list(self._known.items())[-_MOST_ENTRIES:])
        draft.write_text(json.dumps(newest), "utf-8")
        draft.replace(self._memory)
        self._changed = False


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load(memory: Path | None) -> dict[str, list[Any]]:
    """What was remembered; a damaged memory is an empty one, since every entry can be made again."""
    if memory is None or not memory.is_file():
        return {}
    try:
        found = json.loads(memory.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 5}
