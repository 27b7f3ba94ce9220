"""One process at a time: a lock file that the kernel releases when its holder dies, however it dies.

Works between processes of one machine, which is where a yard's directory is.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelyard.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["hold"]


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Raises:
        BusyError: Another process holds it; the message names `what` and the process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(descriptor, what) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: unlinking it would let a third process lock a file that nobody else sees.
        os.close(descriptor)


def _busy(descriptor: int, what: str) -> BusyError:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    holder = f"process {text}" if text.isdecimal() else "another process"
    return BusyError(
        f"{what} is running already, in {holder}",
        hint=f"wait for it, or stop it with `kill {text}`" if text.isdecimal() else "wait for it",
        pid=int(text) if text.isdecimal() else None,
    )
