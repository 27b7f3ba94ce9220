"""Versions kept running: a `Replica` is one version with its worker, a `Pool` is all of them by version id.

A replica starts its worker, probes it before it takes any request, restarts it with a growing delay when it dies, and
drains it before it ends. It belongs to the router's event loop. It knows no alias (`deployments` does) and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from modelyard.errors import BusyError, ModelError, YardError
from modelyard.serving import protocol, sources
from modelyard.serving.admission import Admission
from modelyard.serving.process import WORKER_COMMAND, Generation, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor

    from modelyard.registry import Version, Yard

__all__ = ["Pool", "Replica", "WorkerOptions"]

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "stopping"]

_LONGEST_DELAY = 30.0
_DEFAULT_SLOTS = 8


@dataclass(frozen=True)
class WorkerOptions:
    """How workers are run.

    Attributes:
        dtype: As `modelyard.weights.load` takes it.
        device: `cpu` or a torch device.
        threads: Compute threads of each worker; None leaves it to torch.
        slots: Requests in work at once per worker; None takes what the engine says.
        queue: Requests that may wait for a slot, per worker; more are turned away with 429.
        start_timeout: Seconds for loading a model.
        probe_timeout: Seconds for the short generation that a worker must manage before it takes requests.
        drain_timeout: Seconds that a replaced worker gets to finish its requests.
        ping_interval: Seconds between looks at a worker's health.
        ping_timeout: Seconds without an answer after which a worker counts as hung and is killed.
        restart_delay: Seconds before a dead worker is restarted; doubles with every failure, up to 30.
        command: What starts a worker.
        trust_verified: Whether files that this boot has verified are not hashed again before a worker loads them.
    """

    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    slots: int | None = None
    queue: int = 64
    start_timeout: float = 600.0
    probe_timeout: float = 120.0
    drain_timeout: float = 300.0
    ping_interval: float = 2.0
    ping_timeout: float = 60.0
    restart_delay: float = 0.5
    command: Sequence[str] = field(default=WORKER_COMMAND)
    trust_verified: bool = False


class Replica:
    """One version and the worker that runs it. `start` once, then `generate`; `retire` ends it."""

    def __init__(
        self, version: Version, options: WorkerOptions, prepare: Callable[[], Awaitable[sources.Source]]
    ) -> None:
        self.version = version
        self.options = options
        self.admission = Admission(options.slots or _DEFAULT_SLOTS, options.queue)
        self._state: State = "starting"
        self.error: YardError | None = None
        self.restarts = 0
        self.process: WorkerProcess | None = None
        self._prepare = prepare
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """Where it is in its life; a worker that has just died is not ready, before its supervisor has noticed."""
        if self._state == "ready" and (self.process is None or self.process.gone.is_set()):
            return "restarting"
        return self._state

    async def start(self) -> None:
        """Prepare the files, check the memory, start the worker and probe it; raises why it is not served."""
        source = await self._prepare()
        sources.check_memory(self.version.name, source.weights)
        load = protocol.Load(
            folder=str(source.folder),
            base=str(source.base) if source.base else None,
            label=self.version.name,
            dtype=self.options.dtype,
            device=self.options.device,
            threads=self.options.threads,
        )
        process = await self._start_worker(load)
        self._supervisor = asyncio.create_task(self._supervise(process, load), name=f"supervise {self.version.name}")

    async def generate(self, request: protocol.Generate) -> Generation:
        """Wait for a slot and hand the request to the worker.

        Raises `BusyError` when the queue is full, and with the code `worker_unavailable` while there is no worker.
        """
        self._check_ready()
        await self.admission.enter()
        try:
            process = self._check_ready()  # it may have died while this request waited
            return process.generate(request, self.admission.leave)
        except BaseException:
            self.admission.leave()
            raise

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing waits or runs, for at most `seconds`; whether that was reached."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.admission.held or self.admission.waiting:
            if loop.time() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def stop(self) -> None:
        """End the worker now; requests it still has end with an error."""
        self._state = "stopping"
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self.process is not None:
            await self.process.stop()

    def _check_ready(self) -> WorkerProcess:
        if self.state != "ready" or self.process is None:
            raise BusyError(
                f"the worker of `{self.version.name}` is {self.state}",
                hint="try again in a moment",
                code="worker_unavailable",
                retry_after=2,
            )
        return self.process

    async def _start_worker(self, load: protocol.Load) -> WorkerProcess:
        options = self.options
        process = await WorkerProcess.start(load, command=options.command, seconds=options.start_timeout)
        try:
            await self._probe(process)
        except BaseException:
            await process.stop(grace=1)
            raise
        self.process = process
        self.admission.slots = options.slots or process.ready.slots or _DEFAULT_SLOTS
        self._state, self.error = "ready", None
        return process

    async def _probe(self, process: WorkerProcess) -> None:
        """A short generation: a model that loads and cannot answer must not take over."""
        sampling = protocol.Sampling(max_tokens=2, temperature=0.0)
        if process.ready.chat:
            request = protocol.Generate(id=0, messages=[{"role": "user", "content": "Hello"}], sampling=sampling)
        else:
            request = protocol.Generate(id=0, prompt="Hello", sampling=sampling)
        try:
            async with asyncio.timeout(self.options.probe_timeout):
                generation = process.generate(request, lambda: None)
                await generation.accepted()
                async for _ in generation:
                    pass
                await process.ping()
        except TimeoutError:
            raise ModelError(
                f"`{self.version.name}` did not answer a probe in {self.options.probe_timeout:.0f} s"
            ) from None
        except YardError as error:
            raise ModelError(
                f"`{self.version.name}` loads and cannot answer: {error.message}", hint=error.hint
            ) from error

    async def _supervise(self, process: WorkerProcess, load: protocol.Load) -> None:
        """Keep a worker running: watch it, and after a death restart it until that works."""
        delay = self.options.restart_delay
        while True:
            await self._watch(process)
            self._state, self.error = "restarting", process.failure
            logger.warning("worker of %s ended: %s", self.version.name, self.error)
            await process.stop(grace=0)
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
                self.restarts += 1
                try:
                    process = await self._start_worker(load)
                except (YardError, OSError) as error:
                    self.error = (
                        error if isinstance(error, YardError) else ModelError(f"the worker cannot be started: {error}")
                    )
                    logger.warning("worker of %s does not start: %s", self.version.name, error)
                else:
                    break
            # One that lives for a while starts again with a short delay the next time.
            delay = self.options.restart_delay if await self._lives(process, _LONGEST_DELAY) else delay

    async def _lives(self, process: WorkerProcess, seconds: float) -> bool:
        watching = asyncio.create_task(self._watch(process))
        done, _ = await asyncio.wait({watching}, timeout=seconds)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return not done

    async def _watch(self, process: WorkerProcess) -> None:
        """Return when the process has gone; one that does not answer pings is killed first."""
        while not process.gone.is_set():
            try:
                async with asyncio.timeout(self.options.ping_interval):
                    await process.gone.wait()
            except TimeoutError:
                try:
                    await process.ping(self.options.ping_timeout)
                except BusyError as error:
                    if not process.gone.is_set():
                        logger.warning("worker of %s is killed: %s", self.version.name, error)
                        process.failure = ModelError(error.message, code="worker_died")
                        await process.stop(grace=0)


@dataclass
class _Entry:
    replica: Replica
    starting: asyncio.Task[None]
    users: int = 0


class Pool:
    """The replicas by version id, shared by every deployment that wants the version."""

    def __init__(self, yard: Yard, options: WorkerOptions, threads: Executor) -> None:
        self._yard = yard
        self._options = options
        self._threads = threads
        self._entries: dict[str, _Entry] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def acquire(self, version: Version) -> Replica:
        """The version's replica, started and probed; raises why there is none. Pair with `release`."""
        entry = self._entries.get(version.id)
        if entry is None:
            replica = self._make(version)
            entry = self._entries[version.id] = _Entry(replica, asyncio.create_task(replica.start()))
        entry.users += 1
        try:
            await asyncio.shield(entry.starting)
        except BaseException:
            self._forget(entry, 0.0)
            raise
        return entry.replica

    def release(self, replica: Replica) -> None:
        """The caller routes nothing to it any more; the last one to say so lets it drain and end."""
        self._forget(self._entries[replica.version.id], self._options.drain_timeout)

    async def close(self, drain: float) -> None:
        """Drain and end everything, in `drain` seconds and what stopping takes."""
        for entry in list(self._entries.values()):
            entry.users = 1
            self._forget(entry, drain)
        for task in list(self._retiring):
            await asyncio.wait({task}, timeout=drain + 15)

    def _make(self, version: Version) -> Replica:
        async def prepare() -> sources.Source:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, sources.prepare, self._yard, version, self._options.trust_verified
            )

        return Replica(version, self._options, prepare)

    def _forget(self, entry: _Entry, drain: float) -> None:
        entry.users -= 1
        if entry.users != 0:  # others still route to it, or `close` has let go of it already
            return
        if self._entries.get(entry.replica.version.id) is entry:
            del self._entries[entry.replica.version.id]
        task = asyncio.create_task(self._retire(entry, drain), name=f"retire {entry.replica.version.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, entry: _Entry, drain: float) -> None:
        if not entry.starting.done():
            entry.starting.cancel()
        await asyncio.gather(entry.starting, return_exceptions=True)
        await entry.replica.drain(drain)
        await entry.replica.stop()
