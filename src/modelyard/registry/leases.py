"""Leases: a row that says "I am at work", so that a collection waits. Knows no process but the one it runs in."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelyard.catalog import leases
from modelyard.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.registry.context import Context

__all__ = ["is_alive", "lease", "owner"]


def owner() -> str:
    """This process, as `host:pid:started`: a pid that is used again is told apart by when it started."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_alive(text: str) -> bool | None:
    """Whether the process that `owner` named still runs; None when it was on another machine."""
    host, _, rest = text.partition(":")
    pid, _, started = rest.partition(":")
    if host != socket.gethostname():
        return None
    return pid.isdecimal() and _started(int(pid)) == started != ""


def _started(pid: int) -> str:
    import psutil  # type: ignore[import-untyped]  # publishes no types; two numbers are read

    try:
        process = psutil.Process(pid)
        # A zombie has ended; only its parent has not asked yet.
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def lease(context: Context, purpose: str) -> Iterator[Callable[[], None]]:
    """Hold a lease while the block runs; call what it yields now and then in a long one, to show that it lives.

    Raises:
        ConflictError: On such a call, when somebody removed the lease: what it protected may be gone.
    """
    lease_id = uuid.uuid4().hex
    with context.change() as tx:
        leases.acquire(tx, lease_id, purpose=purpose, owner=owner())

    def beat() -> None:
        with context.change() as tx:
            if not leases.beat(tx, lease_id):
                raise ConflictError(f"the lease of this {purpose} was removed", hint="run the command again")

    try:
        yield beat
    finally:
        with context.change() as tx:
            leases.release(tx, lease_id)
