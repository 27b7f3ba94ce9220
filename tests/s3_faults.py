"""An endpoint that fails on purpose: it stands before the real one and passes on what its rule lets through.

Requests arrive there byte for byte, `Host` included, so that signatures stay good.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import s3_case

__all__ = ["Asked", "FaultyEndpoint", "Reply", "faulty", "refusal"]


@dataclass
class Asked:
    """A request on its way; a rule may change its headers."""

    method: str
    path: str
    headers: dict[str, str]

    def header(self, name: str) -> str | None:
        """A header's value, whatever its case."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), None)

    def drop(self, name: str) -> None:
        """Take a header away."""
        self.headers = {key: value for key, value in self.headers.items() if key.lower() != name.lower()}


@dataclass
class Reply:
    """What to answer instead, or, with `passed_on`, after the real endpoint has done it.

    Attributes:
        status: The status; 0 closes the connection without a word.
        body: The body.
        passed_on: Whether the request is carried out all the same.
        cut: Pass the real answer on, but break the connection in the middle of its body.
    """

    status: int = 0
    body: bytes = b""
    passed_on: bool = False
    cut: bool = False


def refusal(status: int, code: str) -> Reply:
    """An S3 error of this code."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
    return Reply(status, text.encode())


@dataclass
class FaultyEndpoint:
    """Where it is, what was asked of it, and the rule; no rule passes everything on."""

    url: str
    rule: Callable[[Asked], Reply | None] | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def faulty() -> Iterator[FaultyEndpoint]:
    """A `FaultyEndpoint` on loopback, for the block."""
    target = urlsplit(s3_case.endpoint().url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

        def answer(self) -> None:
            """Whatever the method: the rule first, then the real endpoint."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, dict(self.headers.items()))
            found.asked.append((self.command, self.path))
            reply = found.rule(asked) if found.rule is not None else None
            if reply is not None and not (reply.passed_on or reply.cut):
                return self._send(reply.status, [], reply.body)
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            real = connection.getresponse()
            data = real.read()
            connection.close()
            if reply is not None and reply.passed_on:
                return self._send(reply.status, [], reply.body)
            return self._send(real.status, real.getheaders(), data, cut=reply is not None)

        def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False) -> None:
            if not status:
                self.close_connection = True
                return
            self.send_response_only(status)
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
            for name, value in headers:
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = FaultyEndpoint(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
