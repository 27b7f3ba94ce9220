"""What a running server does on the side: compact what is cold, in a process of its own and out of everybody's way.

`yard serve` and `yard up` use it, nothing else compacts by itself. The child is `yard compact`, at low priority, so its memory and
its interpreter lock are its own; it may be stopped at any moment, and goes on at the next turn. Knows processes, not encodings.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from modelyard.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FIRST_SECONDS", "PAUSE_SECONDS", "housekeeping"]

FIRST_SECONDS = 600.0
"""After a start, until the first turn: a server that is being restarted has other things to do."""

PAUSE_SECONDS = 6 * 3600.0
"""Between two turns."""

_NICE = 10
_GRACE_SECONDS = 10.0


@contextmanager
def housekeeping(
    home: Path, *, wanted: bool, first: float | None = None, pause: float | None = None
) -> Iterator[threading.Event]:
    """Compact the yard in `home` every now and then while the block runs; yields what is set after each turn.

    Args:
        home: The yard's folder.
        wanted: Nothing is done without it.
        first: Seconds until the first turn; `FIRST_SECONDS` by default.
        pause: Seconds between turns; `PAUSE_SECONDS` by default.
    """
    stop, turned = threading.Event(), threading.Event()
    waits = (FIRST_SECONDS if first is None else first, PAUSE_SECONDS if pause is None else pause)
    thread = threading.Thread(target=_tend, args=(home, *waits, stop, turned), name="housekeeping", daemon=True)
    if wanted:
        thread.start()
    try:
        yield turned
    finally:
        stop.set()
        if wanted:
            thread.join()


def _tend(home: Path, first: float, pause: float, stop: threading.Event, turned: threading.Event) -> None:
    wait = first
    while not stop.wait(wait):
        _turn(home, stop)
        turned.set()
        wait = pause


def _turn(home: Path, stop: threading.Event) -> None:
    """One `yard compact`, ended early when the server ends."""
    command = [sys.executable, "-m", "modelyard.cli.main", "compact", "--json", "--yard", str(home)]
    # A session of its own: Ctrl-C is the server's to pass on, and whatever the child starts ends with it.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        with suppress(OSError):  # it may have ended already
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
        ended = threading.Event()
        said: list[bytes] = []

        def listen() -> None:
            said.append(child.stderr.read() if child.stderr else b"")
            ended.set()

        listener = threading.Thread(target=listen, name="housekeeping-ear", daemon=True)
        listener.start()
        while not ended.wait(0.2):
            if stop.is_set():
                _end(child)
        listener.join()
        failed = child.wait() != 0 and not stop.is_set()
    if failed:
        output.note(f"compacting in the background failed: {said[0].decode(errors='replace').strip()[-500:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
