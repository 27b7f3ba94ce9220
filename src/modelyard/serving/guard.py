"""The door: what every request must satisfy before a route sees it.

Plain ASGI (a BaseHTTPMiddleware would hide disconnects from the routes), and everything is read from the raw scope:
what `request.url` makes of a crafted Host header decides nothing here. In this order: head within limits, a Host that
is ours, no other site's browser page behind it, a token, a JSON body. It knows no models.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelyard.errors import AuthError, RequestError, YardError
from modelyard.serving.envelope import error_response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PUBLIC", "Guard", "Limits", "check_bind", "is_loopback", "loopback_hosts", "read_body"]

PUBLIC = frozenset({"/health", "/ready"})
"""Paths that need no token. Everything else does, whether a route exists there or not."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what a client may make the server hold or wait for.

    Attributes:
        head_seconds: For a request's head to arrive, from the connection or the head's first byte.
        body_seconds: For a body to arrive, plus one second for each `body_rate` bytes that did.
        body_rate: Bytes per second below which a long body counts as stalled.
        body_bytes: Largest body.
        head_bytes: Largest head.
        headers: Most header lines.
        connections: Most open connections; more are closed at once.
        send_seconds: How long a client may leave an answer unread before it is cut off.
    """

    head_seconds: float = 10.0
    body_seconds: float = 10.0
    body_rate: int = 256 << 10
    body_bytes: int = 20_000_000
    head_bytes: int = 16 << 10
    headers: int = 100
    connections: int = 1024
    send_seconds: float = 60.0


class Guard:
    """ASGI middleware that refuses what must not reach a route.

    Args:
        app: The routes.
        limits: Bounds on head and body.
        token: What `Authorization: Bearer` must carry; None asks for nothing.
        hosts: Host names (without port) that may be asked for; None allows all.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._limits = limits
        self._token = None if token is None else hashlib.sha256(token.encode()).digest()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on; lifespan events pass as they are."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        try:
            self._check(scope, headers)
        except YardError as error:
            await error_response(error)(scope, receive, send)
            return
        scope["modelyard.authorized"] = self._token is None or self._authorized(headers)
        await self._app(scope, _bounded(receive, self._limits), send)

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        if len(headers) > self._limits.headers:
            raise RequestError(f"{len(headers)} header lines; the limit is {self._limits.headers}", status=431)
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._limits.head_bytes:
            # h11 bounds a head that is still arriving, not one that came in a single packet.
            raise RequestError(f"a head of {size} bytes; the limit is {self._limits.head_bytes}", status=431)
        host = self._check_host(headers)
        origin = _only(headers, b"origin")
        if _only(headers, b"sec-fetch-site") == b"cross-site" or (origin is not None and _authority(origin) != host):
            raise AuthError("requests from other sites' pages are refused", status=403, code="cross_site")
        if self._token is not None and scope["path"] not in PUBLIC and not self._authorized(headers):
            raise AuthError("a valid `Authorization: Bearer` token is needed", code="invalid_api_key")
        if scope["method"] in {"POST", "PUT", "PATCH"}:
            kind = (_only(headers, b"content-type") or b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                # A form or text/plain can be posted by any page in a browser without asking first.
                raise RequestError("the body must be sent as `Content-Type: application/json`", status=415)
            if _only(headers, b"content-encoding") not in {None, b"identity"}:
                raise RequestError("compressed bodies are not accepted", status=415)
            length = _only(headers, b"content-length") or b"0"
            if not length.isdigit() or int(length[:20]) > self._limits.body_bytes:
                raise _too_large(self._limits)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        values = [value for name, value in headers if name == b"host"]
        if len(values) != 1:
            raise RequestError("exactly one Host header is needed", status=400, code="bad_host")
        if self._hosts is not None:
            try:
                name = urlsplit(f"//{values[0].decode('ascii')}")
                known = name.hostname in self._hosts and not (name.path or name.query or name.fragment or name.username)
            except ValueError:
                known = False
            if not known:
                # A page whose name was rebound to 127.0.0.1 sends its own name here.
                raise RequestError("the Host header names no address of this server", status=400, code="bad_host")
        return values[0].lower()

    def _authorized(self, headers: list[tuple[bytes, bytes]]) -> bool:
        scheme, _, given = (_only(headers, b"authorization") or b"").partition(b" ")
        # Both sides hashed: equal lengths, and comparing takes the same time wherever they differ.
        digest = hashlib.sha256(given.strip()).digest()
        return scheme.lower() == b"bearer" and self._token is not None and hmac.compare_digest(digest, self._token)


async def read_body(receive: Receive) -> bytes:
    """The whole body, as bounded by the guard; `ConnectionResetError` when the client left before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client left before the body was complete")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(host: str, token: str | None) -> None:
    """Refuse to listen where others can reach the server without a token; `AuthError`."""
    if token is not None and len(token) < 16:
        raise AuthError(
            "the token is shorter than 16 characters",
            hint="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    if token is None and not is_loopback(host):
        raise AuthError(
            f"listening on {host} would let everybody who can reach this machine use the models, and no token is set",
            hint="pass --token, or listen on 127.0.0.1",
        )


def loopback_hosts(extra: Iterable[str] = ()) -> frozenset[str]:
    """The names that this machine answers to on loopback, and `extra` ones, as a Host header may carry them."""
    return frozenset({"localhost", "127.0.0.1", "::1", *extra})


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """`receive` with a bound on the body's bytes and on its time."""
    got = 0
    complete = False
    began: float | None = None

    async def bounded() -> Message:
        nonlocal got, complete, began
        if complete:
            return await receive()
        loop = asyncio.get_running_loop()
        began = loop.time() if began is None else began
        try:
            async with asyncio.timeout_at(began + limits.body_seconds + got / limits.body_rate):
                message = await receive()
        except TimeoutError:
            raise RequestError(f"the body stalled after {got} bytes", status=408, code="timeout") from None
        got += len(message.get("body", b""))
        if got > limits.body_bytes:
            raise _too_large(limits)
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return bounded


def _too_large(limits: Limits) -> RequestError:
    return RequestError(f"the body is larger than {limits.body_bytes} bytes", status=413, code="body_too_large")


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    values = [value for key, value in headers if key == name]
    if len(values) > 1:
        raise RequestError(f"the header {name.decode()} appears {len(values)} times")
    return values[0] if values else None


def _authority(origin: bytes) -> bytes:
    _, _, authority = origin.lower().partition(b"://")
    return authority
