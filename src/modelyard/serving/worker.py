"""The worker process: hosts one engine and answers the router over the socket it was given.

Run as `python -m modelyard.serving.worker FD`. It exits when the socket closes or its parent dies, whichever it sees
first, so that no worker outlives its router. One thread reads messages, one thread per request iterates the engine's
events, and the main thread loads the model and then waits. It knows nothing of HTTP, aliases or the yard.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from modelyard.errors import InternalError, YardError
from modelyard.serving import protocol
from modelyard.serving.protocol import Cancel, Generate, Load, Message, Ping, Pong, Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Hosted", "main"]

_PARENT_SECONDS = 1.0


class Hosted(Protocol):
    """An engine with a loaded model, as the worker uses it."""

    context: int | None
    name: str
    chat: bool
    slots: int | None

    def run(self, request: Generate) -> Iterator[Message]:
        """Yield `Accepted`, `Chunk`s and `Finished`; raises a `YardError` to refuse. Called in a thread of its own."""
        ...

    def cancel(self, number: int) -> None:
        """Make the `run` of request `number` end within one step; called from another thread."""
        ...


class Wire:
    """The worker's end of the socket: blocking reads in one thread, whole frames written from any."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._parent = os.getppid()

    def send(self, message: Message) -> None:
        """Write one frame; a router that has gone ends the process, there being nobody left to serve."""
        frame = protocol.encode(message)
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError:
            os._exit(0)

    def receive(self) -> Message | None:
        """The next message; None once the router's end is closed or the parent is another process than at the start."""
        head = self._read(protocol.HEAD.size)
        if head is None:
            return None
        (length,) = protocol.HEAD.unpack(head)
        if length > protocol.FRAME_LIMIT:
            raise InternalError(f"the router sent a frame of {length} bytes")
        body = self._read(length)
        return None if body is None else protocol.decode(body)

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            readable, _, _ = select.select([self._socket], [], [], _PARENT_SECONDS)
            if not readable:
                # A copy of the router's end in some forked child would keep the socket open after the router died.
                if os.getppid() != self._parent:
                    return None
                continue
            try:
                part = self._socket.recv(min(size - len(data), 1 << 20))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)


class Host:
    """Runs requests on the engine and answers pings, also while the model is being loaded."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._engine: Hosted | None = None
        self._running: set[int] = set()
        self._lock = threading.Lock()

    def serve(self, engine: Hosted, seconds: float) -> None:
        """Announce that the engine is ready; requests are run from now on."""
        self._engine = engine
        self._wire.send(
            protocol.Ready(
                pid=os.getpid(),
                context=engine.context,
                engine=engine.name,
                chat=engine.chat,
                slots=engine.slots,
                seconds=seconds,
            )
        )

    def listen(self, loads: queue.Queue[Load]) -> None:
        """Handle the router's messages until there is no router; then end the process, whatever it is doing."""
        try:
            while (message := self._wire.receive()) is not None:
                match message:
                    case Load():
                        loads.put(message)
                    case Generate():
                        self._begin(message)
                    case Cancel():
                        self._cancel(message.id)
                    case Ping():
                        self._wire.send(Pong(nonce=message.nonce, in_flight=len(self._running), resident=_resident()))
                    case Shutdown():
                        break
                    case _:
                        raise InternalError(f"the router sent a {type(message).__name__} message")
        except YardError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(1)
        # Threads inside torch cannot be asked to stop; the operating system takes everything back.
        os._exit(0)

    def _begin(self, request: Generate) -> None:
        with self._lock:
            self._running.add(request.id)
        threading.Thread(target=self._run, args=(request,), name=f"request-{request.id}", daemon=True).start()

    def _cancel(self, number: int) -> None:
        with self._lock:
            known = number in self._running
        if known and self._engine is not None:
            self._engine.cancel(number)

    def _run(self, request: Generate) -> None:
        try:
            if self._engine is None:
                raise InternalError("a request came before the model was loaded")
            last: Message | None = None
            for event in self._engine.run(request):
                last = event
                if not isinstance(event, protocol.Finished):
                    self._wire.send(event)
            if not isinstance(last, protocol.Finished):
                raise InternalError("the engine ended a request without saying how")
            outcome: Message = last
        except YardError as error:
            outcome = protocol.Refused(id=request.id, error=error.to_dict())
        except MemoryError:
            os._exit(12)
        except Exception as error:  # noqa: BLE001  # one request's fault is its answer; the others go on
            sys.stderr.write(f"request {request.id}: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            outcome = protocol.Refused(
                id=request.id, error=InternalError(f"the engine failed: {type(error).__name__}").to_dict()
            )
        with self._lock:
            self._running.discard(request.id)
        self._wire.send(outcome)


def main(arguments: Sequence[str], load: Callable[[Load], Hosted] | None = None) -> int:
    """Serve until the router is gone. `arguments` holds the file descriptor of the socket.

    Args:
        arguments: One item, the number of the inherited descriptor.
        load: Makes the engine; the torch engine by default. Tests pass another.

    Returns:
        The exit status of a worker whose model could not be loaded; a worker that served ends by `os._exit`.
    """
    wire = Wire(socket.socket(fileno=int(arguments[0])))
    host = Host(wire)
    loads: queue.Queue[Load] = queue.Queue()
    threading.Thread(target=host.listen, args=(loads,), name="router", daemon=True).start()
    request = loads.get()
    began = time.monotonic()
    try:
        engine = (load or load_torch)(request)
    except YardError as error:
        wire.send(protocol.Failed(error=error.to_dict()))
        return 1
    host.serve(engine, time.monotonic() - began)
    threading.Event().wait()
    return 0


def load_torch(request: Load) -> Hosted:
    """The torch engine over the model in `request.folder`."""
    # Before torch is imported, or the thread pools are already sized; a served version is complete, no hub is asked.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if request.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(request.threads)
    from modelyard.serving.hosting import TorchHosted

    return TorchHosted.load(request)


def _resident() -> int:
    import psutil  # type: ignore[import-untyped]  # publishes no types

    memory: Any = psutil.Process().memory_info()
    return int(memory.rss)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
