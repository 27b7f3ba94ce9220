"""Errors as OpenAI's clients read them: one table from our exceptions to statuses, one envelope.

A 5xx says what a client can do and carries an id; the reason stays in the server's log under that id. It knows no
routes.
"""

from __future__ import annotations

import json
import logging
import secrets
from typing import Any

from starlette.responses import JSONResponse, Response

from modelyard.errors import AuthError, BusyError, InputError, NotFoundError, RequestError, YardError

__all__ = ["error_object", "error_response", "status_of"]

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
_UNAVAILABLE = {
    "worker_died": "the model's worker process stopped while it was answering; it is being restarted",
    "worker_unavailable": "the model's worker is not ready; try again in a moment",
    "draining": "the server is shutting down",
}
_WIRE_NAMES = {"max_new_tokens": "max_tokens"}


def status_of(error: YardError) -> int:
    """The HTTP status that an error is answered with; `details["status"]` overrides."""
    if "status" in error.details:
        return int(error.details["status"])
    if error.code == "queue_full":
        return 429
    if error.code in _UNAVAILABLE:
        return 503
    table: tuple[tuple[type[YardError], int], ...] = (
        (AuthError, 401),
        (NotFoundError, 404),
        (RequestError, 400),
        (BusyError, 503),
        # Any other bad input is the fault of what is served, not of the request.
        (InputError, 500),
    )
    return next((status for kind, status in table if isinstance(error, kind)), 500)


def error_object(error: YardError) -> dict[str, Any]:
    """The value of `error` in the envelope, logged when it is a 5xx."""
    status = status_of(error)
    if status < 500:
        field = error.details.get("field")
        message = error.message if not error.hint else f"{error.message} ({error.hint})"
        if field in _WIRE_NAMES:
            message, field = message.replace(f"`{field}`", f"`{_WIRE_NAMES[field]}`"), _WIRE_NAMES[field]
        kind = _TYPES.get(status, "invalid_request_error")
        return {"message": message, "type": kind, "param": field, "code": error.code}
    number = secrets.token_hex(8)
    logger.error("error %s: %s: %s", number, type(error).__name__, error)
    if status == 503:
        message = _UNAVAILABLE.get(error.code, "the model is not available; try again in a moment")
        kind = "service_unavailable"
    else:
        message, kind = "internal error", "server_error"
    return {
        "message": f"{message} (id {number})",
        "type": kind,
        "param": None,
        "code": error.code if status == 503 else "internal",
    }


def error_response(error: YardError) -> Response:
    """The response for `error`, with `Retry-After` and `WWW-Authenticate` where they belong."""
    status = status_of(error)
    headers = {}
    if status in {429, 503}:
        headers["retry-after"] = str(error.details.get("retry_after", 2))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in {408, 413}:
        headers["connection"] = "close"  # the rest of the body will not be read
    return JSONResponse({"error": error_object(error)}, status, headers)


def error_event(error: YardError) -> bytes:
    """The error as the last event of a stream that had begun."""
    return b"data: " + json.dumps({"error": error_object(error)}).encode() + b"\n\n"
