"""Leases: a row that says "I am at work", so that a collection waits.

A lease beats by itself, every 10 seconds from a thread, until its block ends. Who lost one is told by the next beat, and
at the end of the block at the latest. Whether somebody else's lease is dead is decided without believing a clock that can
be set: by the process where it ran on this machine, else by a heartbeat that stood still while `Watch` looked. Knows
processes and rows; not what a lease protects.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.catalog import leases
from modelyard.errors import ConflictError, YardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from modelyard.catalog.leases import LeaseRecord
    from modelyard.registry.context import Context

__all__ = ["BEAT_SECONDS", "SILENT_SECONDS", "Watch", "is_alive", "lease", "owner"]

BEAT_SECONDS = 10.0
"""How often a lease says that it lives."""

SILENT_SECONDS = 120.0
"""How long a heartbeat must stand still before a collector, by its own monotonic clock, calls the lease dead."""

_BETWEEN = timedelta(hours=1)
_GLANCE_SECONDS = 3 * BEAT_SECONDS
_PROCESSES = Path("/proc")  # Linux


def owner() -> str:
    """This process, as `host:pid:started`: a pid that is used again is told apart by when it started.

    On Linux `started` is `ticks@boot.space`: since which boot, and in which of the machine's numberings of processes.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}{_space()}"


def is_alive(text: str) -> bool | None:
    """Whether the process that `owner` named still runs; None when it was on another machine, or is hidden from us."""
    host, _, rest = text.partition(":")
    pid, _, started = rest.partition(":")
    if host != socket.gethostname():
        return None
    if pid.isdecimal() and _is_hidden(int(pid)):
        return None
    began = started.partition(".")[0] if "@" in started else started
    return pid.isdecimal() and _started(int(pid)) == began != ""


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that this one may know nothing of, because it is another user's."""
    if not _PROCESSES.is_dir() or (_PROCESSES / str(pid)).is_dir():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass  # there is none
    return False


def _is_within_sight(text: str) -> bool:
    """Whether processes where `owner` was said have the numbers that they have here.

    Containers may share a machine and its name, and count processes each for itself; machines may share a name.
    """
    theirs = text.partition("@")[2]
    return not theirs or theirs == owner().partition("@")[2]


def _started(pid: int) -> str:
    """When a process started, in words of its machine that no change of the clock alters; empty for none, or a zombie."""
    if _PROCESSES.is_dir():
        try:
            # After the name, which may hold anything: the state is the first field, the start in clock ticks the twentieth.
            fields = (_PROCESSES / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            boot = (_PROCESSES / "sys/kernel/random/boot_id").read_text("ascii")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        # A zombie has ended; only its parent has not asked yet.
        return "" if fields[0] in {"Z", "X"} else f"{fields[19]}@{boot[:8]}"
    import psutil  # type: ignore[import-untyped]  # publishes no types; two values are read

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def _space() -> str:
    """The numbering in which this process has its number, by its inode; empty where there is but one."""
    try:
        return f".{(_PROCESSES / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


@contextmanager
def lease(context: Context, purpose: str, *, versions: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
    """Hold a lease while the block runs; it beats by itself, and by what it yields, which also tells whether it is still held.

    Args:
        context: The yard.
        purpose: One word, for whoever waits for this lease.
        versions: Ids of the versions that the work is about; compaction leaves their files whole meanwhile.

    Raises:
        ConflictError: By such a call or at the end of the block, when somebody removed the lease: what it protected may be
            gone. An exception out of the block goes first.
    """
    lease_id = uuid.uuid4().hex
    with context.change() as tx:
        leases.acquire(tx, lease_id, purpose=" ".join([purpose, *map(str, versions)]), owner=owner())
    heart = _Heart(context, lease_id)
    heart.start()
    try:
        yield lambda: _check(heart.beat(), purpose)
    except BaseException:
        heart.stop()
        # Where this fails the row stays, until a collector finds that nobody is behind it.
        with suppress(YardError):
            _release(context, lease_id)
        raise
    heart.stop()
    _check(_release(context, lease_id) and not heart.lost, purpose)


def _release(context: Context, lease_id: str) -> bool:
    """Remove the lease; False when it was gone."""
    with context.change() as tx:
        held = leases.beat(tx, lease_id)
        leases.release(tx, lease_id)
        return held


def _check(held: bool, purpose: str) -> None:
    if not held:
        raise ConflictError(
            f"the lease of this {purpose} was removed: what it worked with may have been collected",
            hint="run the command again",
            code="lease_lost",
        )


class _Heart:
    """Moves a lease's heartbeat every `BEAT_SECONDS`, in a thread and on a connection of its own."""

    def __init__(self, context: Context, lease_id: str) -> None:
        self._context, self._id = context, lease_id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{lease_id[:8]}", daemon=True)
        self.lost = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self) -> bool:
        """Say that the lease lives; False when it is gone."""
        if not self.lost:
            with self._context.catalog.write(author=self._context.author, at=self._context.clock()) as tx:
                self.lost = not leases.beat(tx, self._id)
        return not self.lost

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            try:
                if not self.beat():
                    return
            except YardError:
                # The catalog is busy, or away for a moment. The next beat may reach it; and if none does, the lease is
                # taken away and the end of the block says so.
                continue


class Watch:
    """What one collector has seen of leases; it grows wiser each time it looks.

    Args:
        monotonic: Seconds that no setting of the clock changes.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, tuple[int, float]] = {}

    def is_dead(self, record: LeaseRecord, now: datetime) -> bool:
        """Whether nobody is behind a lease any more.

        That is so when its process ran on this machine and has ended; when its heartbeat stood still for `SILENT_SECONDS`
        while this object looked; or when it stood still since an earlier collection, an hour ago by the clock `now`, and
        for three beats more while this object looked, because a clock can jump.
        """
        alive = is_alive(record.owner) if _is_within_sight(record.owner) else None
        if alive is not None:
            return not alive
        heartbeat, since = self._seen.get(record.id, (None, 0.0))
        if heartbeat != record.heartbeat_seq:
            heartbeat, since = self._seen[record.id] = (record.heartbeat_seq, self._monotonic())
        silent = self._monotonic() - since
        return silent >= SILENT_SECONDS or (silent >= _GLANCE_SECONDS and self.is_suspect(record, now))

    def is_suspect(self, record: LeaseRecord, now: datetime) -> bool:
        """Whether an earlier collection, an hour or more ago, saw the very heartbeat of a lease on another machine."""
        if record.observed_at is None or (_is_within_sight(record.owner) and is_alive(record.owner) is not None):
            return False
        still = record.observed_seq == record.heartbeat_seq
        return still and now.astimezone(UTC) - datetime.fromisoformat(record.observed_at) >= _BETWEEN
