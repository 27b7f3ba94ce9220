"""What this boot has verified: files that were hashed, with inode, size and times as they were then.

`checkout --link` hashes a file only when this does not know it: so linking takes as long for a large file as for a small one.
Any write to a file changes its times, and a restart forgets everything. What it cannot see is a disk that changes bytes by
itself after they were read; `yard check --read-data` reads them again. Knows paths and digests.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.digest import Digest

__all__ = ["Verified", "notes_beside", "verified_beside"]

_PREFIX = ".verified-"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LIMIT = 8 << 20  # bytes of notes: beyond this they begin anew, which costs a hash for each file


class Verified:
    """Notes in a folder, one line for a file; without a folder, or a system that names its boots, nothing is known.

    >>> import tempfile
    >>> from modelyard.digest import digest_bytes
    >>> folder = Path(tempfile.mkdtemp())
    >>> path = folder / "x"
    >>> _ = path.write_bytes(b"x")
    >>> verified = Verified(folder)
    >>> verified.note(path, digest_bytes(b"x"))
    >>> os.utime(path)
    >>> verified.knows(path, digest_bytes(b"x"))
    False
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def knows(self, path: Path, digest: Digest) -> bool:
        """Whether this boot verified this very file, and nothing touched it since."""
        notes, line = self._notes(), _line(path, digest)
        if notes is None or line is None:
            return False
        try:
            # The last word on a file counts: bytes of one inode may have been another file's before.
            return any(known == line for known in notes.read_text("ascii").splitlines())
        except (OSError, UnicodeDecodeError):
            return False  # no notes: everything is hashed

    def known(self, files: Iterable[tuple[Path, Digest]]) -> set[tuple[Path, Digest]]:
        """Those of these files that `knows`, by one look at the notes."""
        notes = self._notes()
        try:
            lines = set(notes.read_text("ascii").splitlines()) if notes is not None else set()
        except (OSError, UnicodeDecodeError):
            return set()  # no notes: everything is hashed
        return {(path, digest) for path, digest in files if lines and _line(path, digest) in lines}

    def note(self, path: Path, digest: Digest) -> None:
        """Remember a file whose bytes were just compared with its digest; where that cannot be written, it is not."""
        notes, line = self._notes(), _line(path, digest)
        if notes is None or line is None:
            return
        with suppress(OSError):
            notes.parent.mkdir(parents=True, exist_ok=True)
            if not notes.exists():
                for old in notes.parent.glob(_PREFIX + "*"):
                    old.unlink(missing_ok=True)
            elif notes.stat().st_size > _LIMIT:
                notes.unlink(missing_ok=True)
            descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode() + b"\n")
            finally:
                os.close(descriptor)

    def _notes(self) -> Path | None:
        try:
            boot = _BOOT.read_text("ascii").strip()
        except OSError:
            return None
        return self._folder / f"{_PREFIX}{boot}" if self._folder is not None and boot else None


def verified_beside(links: Path | None) -> Verified:
    """The notes of a yard: in a folder of their own beside the one with its links."""
    return Verified(notes_beside(links) if links is not None else None)


def notes_beside(links: Path) -> Path:
    """Where the notes of a yard are whose links are there."""
    return links.with_name("verified")


def _line(path: Path, digest: Digest) -> str | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return f"{digest} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
