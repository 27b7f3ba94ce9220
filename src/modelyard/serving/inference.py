"""The two routes that generate: read and check the body, find the version, take a slot, answer, and notice who leaves.

Plain ASGI endpoints. While a request waits or generates, a second task waits for the client's disconnect; whichever
ends first ends the other, and a request that is cut off is cancelled in its worker within one step, whether it streams
or not. It knows nothing of how a version came to be loaded.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from modelyard.errors import BusyError, InternalError, YardError
from modelyard.serving import answers
from modelyard.serving.envelope import error_event
from modelyard.serving.guard import read_body
from modelyard.serving.protocol import Chunk, Finished
from modelyard.serving.requests import InferenceRequest, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Message, Receive, Scope, Send

    from modelyard.serving.answers import Answer
    from modelyard.serving.deployments import Deployment, Fleet
    from modelyard.serving.process import Generation
    from modelyard.serving.telemetry import Telemetry

__all__ = ["InferenceEndpoint"]

_BIG_BODY = 256 << 10


@dataclass
class _Running:
    """A request that a worker took, with what its answer must say about the version."""

    generation: Generation
    answer: Answer
    headers: dict[str, str]
    began: float
    label: str
    end: Finished | None = None


class InferenceEndpoint:
    """An ASGI endpoint for one kind of request. Errors before the first byte are raised for the app's handler."""

    def __init__(self, kind: type[InferenceRequest], answer: type[Answer], fleet: Fleet, telemetry: Telemetry) -> None:
        self._kind = kind
        self._answer = answer
        self._fleet = fleet
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or stop when its client leaves."""
        try:
            body = await read_body(receive)
        except ConnectionResetError:
            return
        work = asyncio.create_task(self._serve(body, scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, leaving):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    async def _serve(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        # A large body would hold up every other request while it is parsed.
        request = parse(self._kind, body) if len(body) < _BIG_BODY else await asyncio.to_thread(parse, self._kind, body)
        if self._fleet.draining:
            raise BusyError("the server is shutting down", code="draining", retry_after=5)
        running = await self._begin(request, self._fleet.find(request.model), began)
        try:
            if request.stream:
                await self._stream(running, send)
            else:
                text = "".join([event.text async for event in self._events(running) if isinstance(event, Chunk)])
                if running.end is None:
                    raise InternalError("a worker ended a request without saying how")
                response = JSONResponse(running.answer.whole(text, running.end), headers=running.headers)
                await response(scope, receive, send)
        finally:
            running.generation.cancel()

    async def _begin(self, request: InferenceRequest, deployment: Deployment, began: float) -> _Running:
        replica = deployment.replica
        if replica is None:
            raise BusyError(f"`{deployment.reference}` is still being loaded", code="worker_unavailable", retry_after=5)
        generation = await replica.generate(request.generate())
        try:
            accepted = await generation.accepted()
        except BaseException:
            generation.cancel()
            raise
        self._telemetry.prompt_tokens.add(accepted.prompt_tokens, deployment.reference)
        version = replica.version
        headers = {"x-modelyard-version": str(version.id), "x-modelyard-ref": version.name}
        answer = self._answer(request.model, version.id.short, usage=request.include_usage)
        return _Running(generation, answer, headers, began, deployment.reference)

    async def _events(self, running: _Running) -> AsyncIterator[Chunk | Finished]:
        """The worker's events, measured on their way."""
        first: float | None = None
        async for event in running.generation:
            now = time.monotonic()
            if first is None:
                first = now
                self._telemetry.first_token.observe(now - running.began, running.label)
            if isinstance(event, Finished):
                running.end = event
                self._telemetry.finished(running.label, event, now - running.began, now - first)
            yield event

    async def _stream(self, running: _Running, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", **running.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        for chunk in running.answer.first():
            await send(_part(answers.event(chunk)))
        try:
            async for event in self._events(running):
                if isinstance(event, Chunk):
                    await send(_part(answers.event(running.answer.piece(event.text))))
                else:
                    await send(_part(b"".join(map(answers.event, running.answer.last(event))) + answers.DONE))
        except YardError as error:
            # The status is sent: the stream says that it failed and ends without [DONE].
            self._telemetry.failed_streams.add(1, running.label)
            await send(_part(error_event(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
