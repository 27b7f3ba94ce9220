"""Hashing a version's files while a library reads them: begun before it, and over before its result is handed out.

Hashing and loading each keep a core busy, and neither needs what the other finds, so together they take as long as the slower
of the two. Whoever uses this throws away what was read when the verdict is bad. Knows files and digests; not models.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Self

import blake3

from modelyard.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from modelyard.digest import Digest
    from modelyard.registry.verified import Verified

__all__ = ["Verification"]

_PIECE = 8 << 20


class Verification:
    """Hashes files in a thread of its own from the moment the `with` block is entered until it is left.

    Args:
        files: Path and digest of each.
        verified: What this boot verified; noted there, where nothing touched the file meanwhile.
        trust: Whether a file that is noted there is believed unread.

    Attributes:
        seconds: How long hashing took.
        size: How many bytes were hashed.
    """

    def __init__(self, files: Sequence[tuple[Path, Digest]], verified: Verified, *, trust: bool = False) -> None:
        self._files = sorted(files, key=lambda file: file[0].lstat().st_size)
        self._verified = verified
        self._trust = trust
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)
        self.seconds = 0.0
        self.size = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def finish(self) -> None:
        """Wait for the verdict: returns when every byte is what its digest says, else raises `IntegrityError`."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            known = self._verified.known(self._files)
            for path, digest in self._files:
                if self._trust and (path, digest) in known:
                    continue
                self._check(path, digest, noted=(path, digest) in known)
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            self._error = error
        self.seconds = time.perf_counter() - began

    def _check(self, path: Path, digest: Digest, *, noted: bool) -> None:
        hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)  # pieces are large enough that every free core helps
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            before = os.fstat(descriptor)
            buffer = bytearray(min(_PIECE, before.st_size or 1))
            view = memoryview(buffer)
            while (count := stream.readinto(buffer)) and not self._stopped.is_set():
                hasher.update(view[:count])
                self.size += count
            after = os.fstat(descriptor)
        if self._stopped.is_set():
            return
        if hasher.hexdigest() != digest:
            raise IntegrityError(
                f"the stored file {digest.short} is damaged", hint="yard check --read-data", digest=str(digest)
            )
        same = (before.st_mtime_ns, before.st_ctime_ns, before.st_size) == (
            after.st_mtime_ns,
            after.st_ctime_ns,
            after.st_size,
        )
        if same and not noted:
            self._verified.note(path, digest)
