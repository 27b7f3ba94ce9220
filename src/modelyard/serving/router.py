"""The ASGI application: routes, what they answer, and errors in OpenAI's envelope.

`build` makes it; `routes` lists every route. It loads nothing and starts nothing, and never
imports torch.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from modelyard.errors import InternalError, NotFoundError, RequestError, YardError
from modelyard.serving.answers import ChatAnswer, CompletionAnswer
from modelyard.serving.envelope import error_response
from modelyard.serving.guard import Guard, Limits
from modelyard.serving.inference import InferenceEndpoint
from modelyard.serving.requests import ChatRequest, CompletionRequest
from modelyard.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from modelyard.serving.deployments import Deployment, Fleet

__all__ = ["build", "routes"]

logger = logging.getLogger(__name__)


def build(fleet: Fleet, *, limits: Limits, token: str | None, hosts: frozenset[str] | None) -> ASGIApp:
    """The application over `fleet`, behind the guard."""
    telemetry = Telemetry()
    table = routes(fleet, telemetry)
    handlers = {HTTPException: _http_exception, YardError: _yard_error, Exception: _fault}
    app = Starlette(routes=table, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _Counted(Guard(_Caught(app), limits, token, hosts), telemetry, {route.path for route in table})


def routes(fleet: Fleet, telemetry: Telemetry) -> list[Route]:
    """Every route."""
    pages = _Pages(fleet, telemetry)
    chat = InferenceEndpoint(ChatRequest, ChatAnswer, fleet, telemetry)
    plain = InferenceEndpoint(CompletionRequest, CompletionAnswer, fleet, telemetry)
    return [
        Route("/health", pages.health, methods=["GET"]),
        Route("/ready", pages.ready, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
        Route("/v1/models", pages.models, methods=["GET"]),
        Route("/v1/models/{model:path}", pages.model, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", plain, methods=["POST"]),
    ]


class _Pages:
    """The routes that only read the fleet's state."""

    def __init__(self, fleet: Fleet, telemetry: Telemetry) -> None:
        self._fleet = fleet
        self._telemetry = telemetry

    async def health(self, _request: Request) -> Response:
        """The process answers; nothing about models."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 when every deployment takes requests, else 503; the reasons are for who may use the models."""
        ready = not self._fleet.draining and all(deployment.ready for deployment in self._fleet.deployments)
        body: dict[str, Any] = {"status": "ready" if ready else "draining" if self._fleet.draining else "unavailable"}
        if request.scope.get("modelyard.authorized"):
            body["deployments"] = [deployment.describe() for deployment in self._fleet.deployments]
        return JSONResponse(body, 200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """Prometheus' text format."""
        return PlainTextResponse(self._telemetry.render(self._fleet), media_type="text/plain; version=0.0.4")

    async def models(self, _request: Request) -> Response:
        """What is loaded, in OpenAI's list."""
        return JSONResponse({"object": "list", "data": [_model(deployment) for deployment in self._fleet.deployments]})

    async def model(self, request: Request) -> Response:
        """One model by any name that a request's `model` could have."""
        name = request.path_params["model"]
        return JSONResponse({**_model(self._fleet.find(name)), "id": name})


def _model(deployment: Deployment) -> dict[str, Any]:
    version = deployment.version
    return {
        "id": deployment.reference,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": version.repo.partition("/")[0],
        "ref": version.name,
        "version": str(version.id),
        "ready": deployment.ready,
    }


async def _http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    path = request.scope["path"][:200]
    if status == 404:
        return error_response(NotFoundError(f"no route {path}", hint="the API begins at /v1", code="unknown_route"))
    method = request.scope["method"]
    response = error_response(
        RequestError(f"{method} is not a method of {path}", status=status, code="method_not_allowed")
    )
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _yard_error(_request: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, YardError) else InternalError(str(error)))


async def _fault(request: Request, error: Exception) -> Response:
    number = secrets.token_hex(8)
    logger.error("fault %s at %s", number, request.scope["path"], exc_info=error)
    return error_response(InternalError(f"{type(error).__name__}, see fault {number}"))


class _Caught:
    """Keeps an exception that was answered by `_fault` from reaching uvicorn, which would log it once more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False

        async def watched(message: Message) -> None:
            nonlocal complete
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            # An answer that was cut short must be seen to be: uvicorn closes the connection for what it catches.
            if not complete:
                raise


class _Counted:
    """Counts answers by route and status; unknown paths share one label."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, paths: set[str]) -> None:
        self._app = app
        self._requests = telemetry.requests
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # the client left before there was an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"]
            known = path if path in self._paths else "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
            self._requests.add(1, known, str(status))
