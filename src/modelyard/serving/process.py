"""One worker process as the router sees it: started from a list, spoken to over a socket pair, ended with its group.

All methods belong to the router's event loop. A process that dies ends every request it had with a `YardError` of code
`worker_died`; nobody waits for a dead process. The module knows nothing of HTTP, versions or references.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from modelyard.errors import BusyError, InternalError, ModelError, YardError
from modelyard.serving import protocol
from modelyard.serving.protocol import Accepted, Chunk, Finished, Generate, Message, Ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

__all__ = ["WORKER_COMMAND", "Generation", "WorkerProcess"]

# -P keeps the working directory out of the module path: a stray torch.py there must not be what gets imported.
WORKER_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "modelyard.serving.worker")
"""What starts a worker; the file descriptor of its socket is appended."""

_STDERR_BYTES = 8192
_EXIT_SECONDS = 2.0


class Generation:
    """One request in a worker: await `accepted()`, then iterate; `cancel()` at any time.

    Iterating yields `Chunk`s and at the end one `Finished`; a failure is raised as a `YardError`.
    """

    def __init__(self, process: WorkerProcess, request: Generate, released: Callable[[], None]) -> None:
        self._process = process
        self._request = request
        self._events: asyncio.Queue[Message | YardError] = asyncio.Queue()
        self._released = released
        self.ended = False

    async def accepted(self) -> Accepted:
        """Wait until the worker took the prompt; raises why it did not."""
        event = await self._next()
        if not isinstance(event, Accepted):
            raise InternalError(f"a worker began a request with {type(event).__name__}")
        return event

    async def __aiter__(self) -> AsyncIterator[Chunk | Finished]:
        """The text as it comes, then how it ended."""
        while True:
            event = await self._next()
            if isinstance(event, Chunk | Finished):
                yield event
            if isinstance(event, Finished):
                return

    def cancel(self) -> None:
        """Make the worker stop within one step; does nothing for a request that ended."""
        if not self.ended:
            self._process.send(protocol.Cancel(id=self._request.id))

    def take(self, event: Message | YardError) -> None:
        """An event from the process. The slot is free once the worker says so, not when the client leaves."""
        self._events.put_nowait(event)
        if isinstance(event, Finished | YardError):
            self.ended = True
            self._released()

    async def _next(self) -> Message:
        event = await self._events.get()
        if isinstance(event, YardError):
            raise event
        return event


class WorkerProcess:
    """A running worker. Make one with `start`; `gone` is set when the process has exited, however that came about."""

    def __init__(self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        self.gone = asyncio.Event()
        self.resident = 0
        self.failure: YardError | None = None
        self._process = process
        self._writer = writer
        self._generations: dict[int, Generation] = {}
        self._started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._pongs: dict[int, asyncio.Future[protocol.Pong]] = {}
        self._stderr = b""
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0

    @classmethod
    async def start(
        cls, load: protocol.Load, *, command: Sequence[str] = WORKER_COMMAND, seconds: float = 600.0
    ) -> WorkerProcess:
        """Start a worker and wait until its model is loaded.

        Raises what the worker reported (a `ModelError` for a folder that is no model), `ModelError` when it died, and
        `BusyError` when it is not ready after `seconds`; no process is left behind in either case.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        worker = cls(process, writer)
        worker._tasks = [
            asyncio.create_task(worker._listen(reader)),
            asyncio.create_task(worker._watch(process.stderr)),
        ]
        worker.send(load)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(worker._started)
        except TimeoutError:
            await worker.stop(grace=0)
            raise BusyError(f"the worker for `{load.label}` was not ready after {seconds:.0f} s") from None
        except BaseException:
            await worker.stop(grace=1)
            raise
        return worker

    @property
    def ready(self) -> Ready:
        """What the worker said of its model when it was loaded."""
        return self._started.result()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def in_flight(self) -> int:
        """How many requests the worker has not ended yet."""
        return len(self._generations)

    def generate(self, request: Generate, released: Callable[[], None]) -> Generation:
        """Hand a request over; `released` is called once, when the worker is done with it or dead."""
        self._number += 1
        request = protocol.Generate(
            id=self._number, messages=request.messages, prompt=request.prompt, sampling=request.sampling
        )
        number = self._number

        def release() -> None:
            self._generations.pop(number, None)
            released()

        generation = Generation(self, request, release)
        if self.gone.is_set() or self.failure is not None:
            generation.take(self._death())
            return generation
        self._generations[number] = generation
        self.send(request)
        return generation

    def send(self, message: Message) -> None:
        """Write a message; one to a process that has gone is dropped, because its requests have already been ended."""
        if not self._writer.is_closing():
            self._writer.write(protocol.encode(message))

    async def ping(self, seconds: float = 10.0) -> protocol.Pong:
        """Ask how the worker is; `BusyError` when it does not answer in `seconds`."""
        self._number += 1
        nonce = self._number
        self._pongs[nonce] = asyncio.get_running_loop().create_future()
        self.send(protocol.Ping(nonce=nonce))
        try:
            async with asyncio.timeout(seconds):
                pong = await self._pongs[nonce]
        except TimeoutError:
            raise BusyError(f"worker {self.pid} did not answer for {seconds:.0f} s") from None
        finally:
            del self._pongs[nonce]
        self.resident = pong.resident
        return pong

    async def stop(self, grace: float = 5.0) -> None:
        """End the process and its group: asked first, killed after `grace` seconds; repeatable."""
        self.send(protocol.Shutdown())
        try:
            async with asyncio.timeout(grace):
                await self.gone.wait()
        except TimeoutError:
            self._kill()
            await self.gone.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    def _kill(self) -> None:
        # The worker leads its own group (start_new_session), so whatever it started ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                (length,) = protocol.HEAD.unpack(await reader.readexactly(protocol.HEAD.size))
                if length > protocol.FRAME_LIMIT:
                    raise InternalError(f"worker {self.pid} sent a frame of {length} bytes")
                self._take(protocol.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            # The process is exiting and `_watch` says how, unless something it started keeps its stderr open.
            await asyncio.sleep(_EXIT_SECONDS)
            self._kill()
        except InternalError as error:
            self.failure = error
            self._kill()

    async def _watch(self, stderr: asyncio.StreamReader | None) -> None:
        while stderr is not None and (text := await stderr.read(4096)):
            self._stderr = (self._stderr + text)[-_STDERR_BYTES:]
        await self._process.wait()
        error = self._death()
        self.failure = self.failure or error
        self.gone.set()
        if not self._started.done():
            self._started.set_exception(error)
            self._started.exception()  # whoever waits gets it; nobody may be waiting any more
        for generation in list(self._generations.values()):
            generation.take(error)

    def _take(self, message: Message) -> None:
        match message:
            case Ready():
                if not self._started.done():
                    self._started.set_result(message)
            case protocol.Failed():
                self.failure = protocol.error_from(message.error)
            case protocol.Pong():
                if (waiting := self._pongs.get(message.nonce)) and not waiting.done():
                    waiting.set_result(message)
            case protocol.Refused():
                if message.id in self._generations:
                    self._generations[message.id].take(protocol.error_from(message.error))
            case Accepted() | Chunk() | Finished():
                if message.id in self._generations:
                    self._generations[message.id].take(message)
            case _:
                raise InternalError(f"worker {self.pid} sent a {type(message).__name__} message")

    def _death(self) -> YardError:
        if self.failure is not None:
            return self.failure
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        lines = [line.strip() for line in self._stderr.decode("utf-8", "replace").splitlines()]
        said = next((line[:500] for line in reversed(lines) if line), "")
        return ModelError(
            f"the worker process ended with {how}" + (f": {said}" if said else ""),
            hint="signal 9 without a reason is most often the system running out of memory" if code == -9 else None,
            code="worker_died",
        )
