"""The door: tokens on every route, Host and Origin, content types, sizes, and clients that are too slow."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import psutil  # type: ignore[import-untyped]  # publishes no types
import pytest

from modelyard.serving import Limits, Server
from modelyard.serving.deployments import Fleet
from modelyard.serving.guard import PUBLIC
from modelyard.serving.replicas import WorkerOptions
from modelyard.serving.router import routes
from modelyard.serving.telemetry import Telemetry
from serving.helpers import CommitWord, Serve, ask, deployment_of, get, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.registry import Yard

TOKEN = "a-token-of-enough-characters"
QUICK = Limits(head_seconds=0.6, body_seconds=0.6)


def send(server: Server, *pieces: bytes, pause: float = 0.0, wait: float = 5.0) -> bytes:
    """Everything the server sends for raw bytes until it closes; `TimeoutError` when it does not within `wait`."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=wait) as client:
        answer = bytearray()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(pause)
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
        return bytes(answer)


def head(path: str = "/v1/chat/completions", method: str = "POST", **extra: str) -> bytes:
    """A request head."""
    lines = {"Host": "localhost", "Content_Type": "application/json", "Connection": "close", **extra}
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode()


def status(answer: bytes) -> int:
    """The status of a raw answer."""
    return int(answer.split(b" ", 2)[1])


def every_route(yard: Yard) -> Iterator[tuple[str, str]]:
    """Each route's path with each of its methods, from the table that the server uses."""
    fleet = Fleet(yard, [], WorkerOptions(), address="")
    for route in routes(fleet, Telemetry()):
        for method in sorted(route.methods or ()):
            yield method, route.path.replace("{model:path}", "team/bot")


def test_every_route_wants_the_token(commit_word: CommitWord, yard: Yard, serve: Serve) -> None:
    """Every route of the table but /health and /ready, and every path without a route, is 401 without the token."""
    commit_word("alpha")
    server = serve("team/bot", token=TOKEN)
    wrong = ["", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", TOKEN]
    found = [*every_route(yard), ("GET", "/made-up"), ("POST", "/v1/made-up"), ("GET", "//health"), ("GET", "/health/")]
    assert {path for _, path in found} >= {"/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"}
    with httpx.Client(base_url=server.url, verify=False) as client:
        for (method, path), authorization in itertools.product(found, wrong):
            headers = {"authorization": authorization, "content-type": "application/json"}
            response = client.request(method, path, headers=headers)
            if path in PUBLIC:
                assert response.status_code == 200
            else:
                assert (method, path, response.status_code) == (method, path, 401)
                assert response.headers["www-authenticate"] == "Bearer"
        for method, path in every_route(yard):
            headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
            assert client.request(method, path, headers=headers, content=b"").status_code in {200, 400}


def test_public_routes_tell_strangers_nothing(commit_word: CommitWord, serve: Serve) -> None:
    """Without the token /ready says whether, not what; with it, everything."""
    commit_word("alpha")
    server = serve("team/bot", token=TOKEN)
    assert get(server, "/ready").json() == {"status": "ready"}
    authorized = get(server, "/ready", headers={"authorization": f"bearer {TOKEN}"}).json()
    assert authorized["deployments"][0]["ref"] == "team/bot@v1"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "a/?x=",
        "localhost/v1",
        "user@localhost",
        "",
        "[::1",
    ],
)
def test_foreign_host_is_400(commit_word: CommitWord, serve: Serve, host: str) -> None:
    """On loopback, a Host that is not this machine's (DNS rebinding, crafted paths) is refused on every path."""
    commit_word("alpha")
    server = serve("team/bot")
    assert status(send(server, head("/health", "GET", Host=host))) == 400


def test_own_hosts_and_two_hosts(commit_word: CommitWord, serve: Serve) -> None:
    """This machine's names pass with any port; two Host headers, and none, do not."""
    commit_word("alpha")
    server = serve("team/bot", hosts=("models.lan",))
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "models.lan"):
        assert status(send(server, head("/health", "GET", Host=host))) == 200
    assert status(send(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")) == 400
    assert status(send(server, b"GET /health HTTP/1.0\r\n\r\n")) == 400


def test_other_sites_pages_are_refused(commit_word: CommitWord, serve: Serve) -> None:
    """A page of another origin, a `null` one and a cross-site fetch get 403; the page of this server passes."""
    commit_word("alpha")
    server = serve("team/bot")
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        response = get(server, "/v1/models", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "cross_site")
        assert "access-control-allow-origin" not in response.headers
    assert get(server, "/v1/models", headers={"origin": server.url}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_only_json_bodies(commit_word: CommitWord, serve: Serve, kind: str) -> None:
    """What a browser may post to another site without asking is a 415."""
    commit_word("alpha")
    assert status(send(serve("team/bot"), head(Content_Type=kind, Content_Length="2") + b"{}")) == 415


def test_sizes_are_bounded(commit_word: CommitWord, serve: Serve) -> None:
    """Bodies over the limit are 413 with and without a length, long heads are refused, and memory stays flat."""
    commit_word("alpha")
    server = serve("team/bot")
    before = psutil.Process().memory_info().rss
    assert status(send(server, head(Content_Length="20000001"))) == 413
    assert status(send(server, head(Content_Length="9" * 400))) in {400, 413}
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    assert status(send(server, head(Transfer_Encoding="chunked"), *([chunk] * 24), wait=20)) == 413
    assert status(send(server, b"GET /health HTTP/1.1\r\nX: " + b"a" * (8 << 20))) == 400
    many = {f"x-{number}": "1" for number in range(120)}
    assert status(send(server, head("/health", "GET", **many))) == 431
    assert status(send(server, head("/" + "a" * 60_000, "GET"))) in {400, 431}
    assert status(send(server, head("/health", "GET", X="a" * 16_400))) == 431
    assert status(send(server, head(Content_Encoding="gzip", Content_Length="2") + b"{}")) == 415
    assert psutil.Process().memory_info().rss - before < 120 << 20
    assert ask(server).status_code == 200


SLOW: dict[str, list[bytes]] = {
    "silent": [],
    "half head": [b"POST /v1/chat/completions HTTP/1.1\r\nHost: local"],
    "dripped head": [bytes([byte]) for byte in head()[:40]],
    "half body": [head(Content_Length="100"), b'{"model":'],
    "dripped body": [head(Content_Length="100"), *[b" "] * 40],
    "endless chunks": [head(Transfer_Encoding="chunked"), *[b"1\r\n \r\n"] * 40],
    "half body of a GET": [head("/health", "GET", Content_Length="100", Connection=""), *[b" "] * 40],
    "half a second head": [head("/health", "GET", Connection=""), *[bytes([byte]) for byte in head()[:40]]],
}


@pytest.mark.parametrize("pieces", SLOW.values(), ids=SLOW.keys())
def test_slow_clients_are_closed(commit_word: CommitWord, serve: Serve, pieces: list[bytes]) -> None:
    """A connection that is silent, stalls or drips is closed soon after its limit, and others are answered meanwhile."""
    commit_word("alpha")
    server = serve("team/bot", limits=QUICK)
    began = time.monotonic()
    send(server, *pieces, pause=0.1 if len(pieces) > 2 else 0.0, wait=7.0)
    # The dripping clients notice only at their next write; uvicorn's own keep-alive may come first with 5 s.
    assert time.monotonic() - began < 7.0
    assert get(server, "/health").status_code == 200


def test_stalled_body_is_408(commit_word: CommitWord, serve: Serve) -> None:
    """A body that stalls is answered with 408 and the connection closed."""
    commit_word("alpha")
    answer = send(serve("team/bot", limits=QUICK), head(Content_Length="100", Connection=""), b"{")
    assert status(answer) == 408


def test_connections_are_bounded(commit_word: CommitWord, serve: Serve) -> None:
    """Beyond the limit, new connections are closed at once; when the idle ones time out there is room again."""
    commit_word("alpha")
    server = serve("team/bot", limits=replace(QUICK, connections=8, head_seconds=1.5))
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    idle = [socket.create_connection(address) for _ in range(20)]
    time.sleep(0.3)
    with pytest.raises(httpx.TransportError):
        get(server, "/health")

    def answered() -> bool:
        try:
            return get(server, "/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answered)
    for client in idle:
        client.close()


def test_reader_that_stalls_is_cut_off(commit_word: CommitWord, serve: Serve) -> None:
    """A client that asks for a long stream and does not read it is cut off and its request cancelled."""
    commit_word("alpha" * 40_000)
    server = serve("team/bot", limits=Limits(send_seconds=0.5))
    body = b'{"model": "team/bot", "messages": [{"role": "user", "content": "slow"}], "stream": true}'
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        client.sendall(head(Content_Length=str(len(body))) + body)
        wait_until(lambda: deployment_of(server)["in_flight"] == 1)
        # The whole answer would take 12 s.
        wait_until(lambda: deployment_of(server)["in_flight"] == 0, seconds=9)


def test_unknown_route_and_method(commit_word: CommitWord, serve: Serve) -> None:
    """Unknown paths and wrong methods are errors in the same envelope; nothing redirects."""
    commit_word("alpha")
    server = serve("team/bot")
    cases: list[tuple[str, str, int]] = [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/", 404),
    ]
    for method, path, expected in cases:
        response = httpx.request(method, f"{server.url}{path}")
        error: dict[str, Any] = response.json()["error"]
        assert (method, path, response.status_code) == (method, path, expected)
        assert error["message"]
