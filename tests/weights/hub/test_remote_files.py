"""What `RemoteFiles` fetches from a server, and from whom it takes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from modelyard.errors import AuthError, ModelError, NotFoundError, RequestError, YardError
from modelyard.weights.hub.ranges import open_stream, read_header_of
from modelyard.weights.hub.remote import RemoteFiles, RemoteLimits
from modelyard.weights.inspect import inspect


@dataclass
class Site:
    """A web server of fixed files, which notes what it is asked for and what it sends."""

    files: dict[str, bytes]
    ranges: bool = True
    redirect: str = ""
    secret: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    sent: int = 0
    short: int = 0
    url: str = ""


def serve(site: Site) -> ThreadingHTTPServer:
    """Start the site on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            name, part = self.path.lstrip("/"), self.headers.get("Range")
            site.asked.append((name, part))
            site.tokens.append(self.headers.get("Authorization"))
            if site.redirect:
                self.answer(302, b"", Location=site.redirect + name)
            elif site.secret and self.headers.get("Authorization") != f"Bearer {site.secret}":
                self.answer(401, b"")
            elif name not in site.files:
                self.answer(404, b"")
            elif part and site.ranges:
                first, last = (int(word) for word in part.removeprefix("bytes=").split("-"))
                whole = site.files[name]
                body = whole[first : last + 1]
                self.answer(206, body, **{"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(whole)}"})
            else:
                self.answer(200, site.files[name])

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body[: len(body) - site.short])
            except OSError:
                return  # who asked has gone: what it took is what the test looks at
            site.sent += len(body)
            if site.short:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}/"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@pytest.fixture
def sites() -> Iterator[Any]:
    """Start sites; all are stopped at the end."""
    running = []

    def start(**values: Any) -> Site:
        site = Site(**values)
        running.append(serve(site))
        return site

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def model_files() -> dict[str, bytes]:
    """A model with 4 MB of weights."""
    return {
        "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}).encode(),
        "model.safetensors": save({"w": np.zeros((1000, 1000), np.float32)}),
    }


def test_inspect_fetches_headers_only(sites: Any) -> None:
    """A remote model is inspected by its header and small files: of 4 MB of weights, less than 4 kB are sent."""
    site = sites(files=model_files())
    with RemoteFiles(site.url) as files:
        seen = inspect(files)
    assert (seen.kind, seen.parameters, seen.bytes) == ("model", 10**6, 4 * 10**6)
    assert site.sent < 4000
    assert files.fetched == site.sent


def test_header_takes_exactly_its_bytes(sites: Any) -> None:
    """A safetensors header is read by its first bytes and its text, none of the tensors' beyond 512."""
    whole = model_files()["model.safetensors"]
    site = sites(files={"m.safetensors": whole})
    with RemoteFiles(site.url, names=["m.safetensors"]) as files:
        header = read_header_of(files, "m.safetensors")
    assert header.tensors["w"].shape == (1000, 1000)
    assert site.sent == 1 + 512 + header.data_start - 8


def test_shards_by_their_index(sites: Any) -> None:
    """Without names, the shards are those that the index names."""
    shards = {f"model-{i}.safetensors": save({f"w{i}": np.zeros(4, np.float16)}) for i in (1, 2)}
    index = json.dumps({"weight_map": {"w1": "model-1.safetensors", "w2": "model-2.safetensors"}}).encode()
    site = sites(files={"model.safetensors.index.json": index, "config.json": b"{}", **shards})
    with RemoteFiles(site.url) as files:
        assert files.names() == ["config.json", *shards, "model.safetensors.index.json"]
        assert inspect(files).parameters == 8


def test_server_without_ranges_is_refused(sites: Any) -> None:
    """A server that answers a range with the whole file is refused by name, before the file is taken."""
    big = {"m.safetensors": bytes(8 << 20)}
    site = sites(files=big, ranges=False)
    with RemoteFiles(site.url, names=["m.safetensors"]) as files:
        with pytest.raises(ModelError, match="does not send parts") as refused:
            files.open_range("m.safetensors", 0, 8)
        assert refused.value.code == "range_ignored"
        assert files.fetched == 0


def test_small_file_whole_without_ranges(sites: Any) -> None:
    """A small file needs no ranges; a larger one than the limit is refused by its length."""
    site = sites(files={"config.json": b'{"a": 1}'}, ranges=False)
    with RemoteFiles(site.url, names=["config.json"]) as files:
        assert files.read("config.json") == b'{"a": 1}'
        with pytest.raises(ModelError, match="more than the 3 allowed"):
            files.read("config.json", 3)


def test_token_stays_with_its_host(sites: Any) -> None:
    """The token goes to the host that was named; a redirect to another gets the request and not the token."""
    store = sites(files=model_files())
    hub = sites(files={}, redirect=store.url)
    with RemoteFiles(hub.url, names=["config.json"], token="hf_secret") as files:
        files.read("config.json")
    assert hub.tokens == ["Bearer hf_secret"]
    assert store.tokens == [None]


def test_token_opens(sites: Any) -> None:
    """With its token a private file is read; without, the error says that a token is missing."""
    site = sites(files={"config.json": b"{}"}, secret="s")
    with RemoteFiles(site.url, names=["config.json"], token="s") as files:
        assert files.read("config.json") == b"{}"
    with RemoteFiles(site.url, names=["config.json"]) as files, pytest.raises(AuthError, match="401"):
        files.read("config.json")


def test_endless_redirects_end(sites: Any) -> None:
    """A server that redirects to itself is left after the allowed number."""
    site = sites(files={})
    site.redirect = site.url
    with RemoteFiles(site.url, names=["a"]) as files, pytest.raises(YardError, match="more than 5 redirects"):
        files.read("a")
    assert len(site.asked) == 6


def test_redirect_to_a_file_is_refused(sites: Any) -> None:
    """A redirect leaves HTTP for nothing."""
    site = sites(files={}, redirect="file:///etc/")
    with RemoteFiles(site.url, names=["passwd"]) as files, pytest.raises(RequestError, match="no http"):
        files.read("passwd")


def test_missing_file(sites: Any) -> None:
    """A file that the server lacks is not found, by name."""
    site = sites(files={})
    with RemoteFiles(site.url, names=["config.json"]) as files, pytest.raises(NotFoundError, match=r"config\.json"):
        files.read("config.json")


def test_nobody_there() -> None:
    """A server that does not answer is an error that names the file."""
    server = serve(Site(files={}))
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    with RemoteFiles(url, names=["a"]) as files, pytest.raises(YardError, match="no answer"):
        files.read("a")


def test_sum_is_bounded(sites: Any) -> None:
    """All requests together fetch no more than the limit."""
    site = sites(files={"a": bytes(1000)})
    with RemoteFiles(site.url, names=["a"], limits=RemoteLimits(total=1500)) as files:
        files.read("a")
        with pytest.raises(ModelError, match="in all"):
            files.read("a")


def test_one_request_is_bounded(sites: Any) -> None:
    """A part larger than the limit of one request is refused before it is asked for."""
    site = sites(files={"a": bytes(1000)})
    files = RemoteFiles(site.url, names=["a"], limits=RemoteLimits(request=100))
    with files, pytest.raises(ModelError, match="one request"):
        files.open_range("a", 0, 101)
    assert site.asked == []


def test_shorter_answer_than_said(sites: Any) -> None:
    """An answer that ends early is an error, not a shorter file."""
    site = sites(files={"a": bytes(1000)}, short=10)
    with RemoteFiles(site.url, names=["a"]) as files, pytest.raises(YardError):
        files.open_range("a", 0, 1000)


def test_no_path() -> None:
    """A remote file has no path: what needs one is refused with what to do."""
    with RemoteFiles("http://127.0.0.1:9/", names=["a"]) as files, pytest.raises(ModelError) as refused:
        files.path("a")
    assert refused.value.code == "remote_file"


@pytest.mark.parametrize("name", ["../a", "/a", "a\\b", ""])
def test_unsafe_names(name: str) -> None:
    """A name that would leave the base is refused before anything is asked for."""
    with RemoteFiles("http://127.0.0.1:9/", names=["a"]) as files, pytest.raises(ModelError):
        files.read(name)


def test_explicit_urls(sites: Any) -> None:
    """Files may be at URLs of their own, and those are all there are."""
    site = sites(files={"x/y.json": b"{}"})
    with RemoteFiles(urls={"config.json": site.url + "x/y.json"}) as files:
        assert files.names() == ["config.json"]
        assert files.read("config.json") == b"{}"
        with pytest.raises(NotFoundError):
            files.read("other.json")


def test_buffered_stream_reads_in_large_pieces(sites: Any) -> None:
    """Many small reads of a stream are one request."""
    site = sites(files={"a": bytes(range(256))})
    with RemoteFiles(site.url, names=["a"]) as files, open_stream(files, "a", buffered=True) as stream:
        assert b"".join(stream.read(1) for _ in range(256)) == bytes(range(256))
    assert len(site.asked) == 2  # the size, and the whole
