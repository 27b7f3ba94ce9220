"""`Server`: the router in a thread of its own with its workers; `serve`: the same, until a signal.

>>> from modelyard.serving import serve                                            # doctest: +SKIP
>>> serve(yard, ["team/intents@production"], ready=lambda url: print(url))         # doctest: +SKIP

`Server.start` returns when every reference is loaded and has answered a probe, or raises why not. This module knows
sockets and signals; it knows no routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from modelyard.errors import ConflictError, InputError, InternalError, YardError
from modelyard.serving.deployments import Fleet
from modelyard.serving.guard import Limits, check_bind, is_loopback, loopback_hosts
from modelyard.serving.replicas import WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    import uvicorn

    from modelyard.registry import Yard

__all__ = ["Server", "serve"]

logger = logging.getLogger(__name__)


class Server:
    """An OpenAI-compatible server over versions of one yard.

    Args:
        yard: Where references are resolved and files come from.
        references: What to serve; at least one.
        host: Address to listen on; one that others can reach needs a `token`.
        port: TCP port; 0 picks a free one.
        token: What clients must send as `Authorization: Bearer`; None on loopback needs none.
        hosts: More names that the Host header may carry on loopback.
        worker: How workers are run.
        threads: Compute threads of each worker, over what `worker` says.
        limits: Bounds on what clients may make the server hold.
        interval: Seconds between looks at where the aliases stand.
        drain_timeout: Seconds that `stop` lets requests finish.

    >>> with Server(yard, ["team/intents@production"], port=0) as server:          # doctest: +SKIP
    ...     print(server.url)
    """

    def __init__(
        self,
        yard: Yard,
        references: Sequence[str],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        hosts: Sequence[str] = (),
        worker: WorkerOptions | None = None,
        threads: int | None = None,
        limits: Limits | None = None,
        interval: float = 0.5,
        drain_timeout: float = 30.0,
    ) -> None:
        check_bind(host, token)
        if not references:
            raise InputError("nothing to serve", hint="name a version: yard serve team/intents@production")
        self._yard = yard
        self._references = list(dict.fromkeys(references))
        self._host, self._port, self._token = host, port, token
        self._hosts = loopback_hosts(hosts) if is_loopback(host) else frozenset(hosts) or None
        options = worker or WorkerOptions()
        self._worker = options if threads is None else replace(options, threads=threads)
        self._limits = limits or Limits()
        self._interval = interval
        self._drain = drain_timeout
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: uvicorn.Server | None = None
        self._ended: asyncio.Event | None = None
        self._stopping = threading.Event()
        self.fleet: Fleet | None = None

    @property
    def url(self) -> str:
        """The base of every route, such as `http://127.0.0.1:8000`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> Self:
        """Listen, load everything and return; raises why something cannot be served, with nothing left running.

        `/health` answers and `/ready` says 503 while models load.
        """
        versions = [(reference, self._yard.resolve(reference)) for reference in self._references]
        listener = self._listen()
        self._thread = threading.Thread(
            target=self._run, args=(listener, versions), name="modelyard-server", daemon=True
        )
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop taking requests, let those in work finish within the drain timeout, end the workers; repeatable."""
        self._stopping.set()
        if self._thread is None:
            return
        self._wake()
        self._thread.join()

    def hurry(self) -> None:
        """Make a `stop` that is draining in another thread cut off what is left."""
        self._drain = 0.0
        if self._http is not None:
            self._http.force_exit = True

    def _wake(self) -> None:
        """Let the loop see `_stopping`; one that is not there yet looks by itself when it begins."""
        if self._loop is not None and self._ended is not None:
            # A loop that has ended in this moment has nothing to be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    def alive(self) -> bool:
        """Whether the server's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise ConflictError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}", hint="choose another with --port"
            ) from error
        self._port = listener.getsockname()[1]
        return listener

    def _run(self, listener: socket.socket, versions: list[tuple[str, Any]]) -> None:
        try:
            asyncio.run(self._serve(listener, versions))
        except YardError as error:
            self._failure = error
        except BaseException as error:  # handed to the thread that started this one
            logger.exception("the server ended")
            self._failure = InternalError(f"the server ended: {type(error).__name__}: {error}")
        finally:
            listener.close()
            self._started.set()

    async def _serve(self, listener: socket.socket, versions: list[tuple[str, Any]]) -> None:
        import uvicorn

        from modelyard.serving.connections import protocol_class
        from modelyard.serving.router import build

        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._stopping.is_set():
            return
        fleet = Fleet(self._yard, versions, self._worker, address=self.url, interval=self._interval)
        self.fleet = fleet
        config = uvicorn.Config(
            build(fleet, limits=self._limits, token=self._token, hosts=self._hosts),
            http=protocol_class(self._limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=self._limits.head_bytes,
            timeout_graceful_shutdown=max(1, round(self._drain)),
        )
        self._http = uvicorn.Server(config)
        http = asyncio.create_task(self._http.serve(sockets=[listener]))
        ended = asyncio.create_task(self._ended.wait())
        try:
            starting = asyncio.create_task(fleet.start())
            await asyncio.wait({starting, http, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            else:
                await starting
                self._started.set()
                await asyncio.wait({http, ended}, return_when=asyncio.FIRST_COMPLETED)
            if http.done():
                await http  # it was not asked to end: say why it did
        finally:
            ended.cancel()
            fleet.draining = True
            self._http.should_exit = True
            await asyncio.gather(http, return_exceptions=True)
            # Whoever was still answering has been cut off by now; workers only have to be ended.
            await fleet.close(drain=min(1.0, self._drain))


def serve(
    yard: Yard,
    references: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    ready: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain and return; a second signal cuts the draining short. From the main thread.

    Args:
        yard: Where references are resolved and files come from.
        references: What to serve.
        host: Address to listen on.
        port: TCP port; 0 picks a free one.
        token: What clients must send; needed for an address that others can reach.
        ready: Called once with the URL when everything is loaded.
        options: As `Server` takes them.

    Raises:
        AuthError: A reachable address without a token.
        NotFoundError: A reference names nothing, with near matches.
        ConflictError: The port is taken.
        ModelError: A version that cannot be served.
        BusyError: Not enough memory, with the numbers.
    """
    server = Server(yard, references, host=host, port=port, token=token, **options)
    asked = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            server.hurry()
        asked.set()

    failed: list[YardError] = []
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        starting = threading.Thread(target=_start, args=(server, failed), daemon=True)
        starting.start()
        while starting.is_alive() and not asked.is_set():
            starting.join(0.1)
        if failed:
            raise failed[0]
        if ready is not None and not asked.is_set():
            ready(server.url)
        while server.alive() and not asked.wait(0.2):
            pass
    finally:
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while stopping.is_alive():  # joined in turns, so that a second signal is heard
            stopping.join(0.1)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(server: Server, failed: list[YardError]) -> None:
    try:
        server.start()
    except YardError as error:
        failed.append(error)
