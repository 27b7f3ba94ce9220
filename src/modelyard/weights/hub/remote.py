"""`RemoteFiles`: a model's files on a web server, of which only the asked-for bytes are fetched (HTTP Range).

Enough to inspect a model of any size by a few hundred kilobytes: `read` fetches a small file whole, `open_range` a part of
a large one, and nothing has a path on this machine. A server that ignores Range is refused before its answer is read, sizes
and sums are bounded, and the token goes to the first host only, never to one that it redirects to. Knows HTTP; knows no hub:
which names there are is told, or found by asking for the few that a model may have.

::

    files = RemoteFiles("https://models.example/tiny/", token="...")
    inspect(files).parameters
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from modelyard.errors import AuthError, ModelError, NotFoundError, RequestError, YardError
from modelyard.weights.files import READ_LIMIT, check_name, show_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["RemoteFiles", "RemoteLimits"]

_CANDIDATES = (
    "LICENSE",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """What may be fetched: bytes of one request and of all together, redirects of one request, seconds without an answer."""

    request: int = READ_LIMIT
    total: int = 512 << 20
    redirects: int = 5
    timeout: float = 30.0


class RemoteFiles:
    """Files under a URL, or at URLs of their own. Use it as a context manager, or `close` it.

    Args:
        base: The URL that names are put after; a file `a b.json` is at `base/a%20b.json`.
        urls: File name to its URL, instead of `base`.
        names: Which files there are; None asks for those that models have (shards by their index).
        token: Sent as `Authorization: Bearer` to the host of the URL, and to no other.
        limits: What may be fetched.
        label: What messages call this; default the base.
        transport: An `httpx` transport to use instead of the network: a proxy, or a test's server.

    Raises:
        RequestError: Neither or both of `base` and `urls`, or a URL that is not http or https.
    """

    def __init__(
        self,
        base: str | None = None,
        *,
        urls: Mapping[str, str] | None = None,
        names: Iterable[str] | None = None,
        token: str | None = None,
        limits: RemoteLimits | None = None,
        label: str | None = None,
        transport: Any = None,
    ) -> None:
        if (base is None) == (urls is None):
            raise RequestError("give either a base URL or a URL for each file", field="base")
        self._base = None if base is None else base.rstrip("/") + "/"
        self._urls = dict(urls or {})
        for url in [self._base, *self._urls.values()]:
            if url is not None:
                _check_url(url)
        self.label = label or (base or "remote files").rstrip("/")
        self.limits = limits or RemoteLimits()
        self.fetched = 0
        """Bytes of answers that were read so far."""
        self._token, self._transport = token, transport
        self._names = sorted(names if names is not None else self._urls) if names is not None or urls else None
        for name in self._names or ():
            check_name(name, self.label)
        self._sizes: dict[str, int] = {}
        self._client: Any = None

    def __enter__(self) -> RemoteFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def names(self) -> list[str]:
        """Every file's name, sorted; where none were given, those of a model's usual files that the server has."""
        if self._names is None:
            found = {name for name in _CANDIDATES if self._exists(name)}
            if "model.safetensors.index.json" in found:
                found |= self._shards()
            self._names = sorted(found)
        return list(self._names)

    def size(self, name: str) -> int:
        """The file's size in bytes, from one byte of it; `NotFoundError` if the server has no such file."""
        if name not in self._sizes:
            self._fetch(name, (0, 1))
        return self._sizes[name]

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """The whole file; `ModelError` (`file_too_large`) when it is larger than `limit` bytes."""
        return self._fetch(name, None, min(limit, self.limits.request))

    def open_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`.

        Raises:
            ModelError: `range_ignored`: the server sends the whole file; `file_too_large`: more than a limit allows;
                `truncated`: it sent less than it said.
            NotFoundError, AuthError, YardError: No such file; not allowed; no or another answer.
        """
        if end - start > self.limits.request:
            raise ModelError(
                f"`{self._show(name)}`: {end - start} bytes are more than the {self.limits.request} of one request",
                code="file_too_large",
            )
        return self._fetch(name, (start, end)) if end > start else b""

    def path(self, name: str) -> Path:
        """Nothing here is a file on this machine: always a `ModelError` (`remote_file`)."""
        raise ModelError(
            f"`{self._show(name)}` is on a server, and what was asked for needs its bytes on this machine",
            code="remote_file",
            hint="download it first: yard import hf://ORG/NAME --to NAMESPACE/NAME",
        )

    def _fetch(self, name: str, part: tuple[int, int] | None, limit: int = 0) -> bytes:
        import httpx

        url, token = self._url(name), self._token
        for _ in range(self.limits.redirects + 1):
            try:
                with self._open().stream("GET", url, headers=_headers(part, token)) as answer:
                    if not answer.has_redirect_location:
                        return self._take(name, answer, part, limit)
                    target = urljoin(url, answer.headers["location"])
            except httpx.HTTPError as error:
                raise YardError(
                    f"`{self._show(name)}`: no answer ({type(error).__name__}: {str(error)[:200]})",
                    code="unreachable",
                    hint="look at the connection, or give a folder on this machine",
                ) from error
            _check_url(target)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise YardError(f"`{self._show(name)}`: redirected from https to http", code="unsafe_redirect")
            if _origin(target) != _origin(url):
                token = None
            url = target
        raise YardError(f"`{self._show(name)}`: more than {self.limits.redirects} redirects", code="unsafe_redirect")

    def _take(self, name: str, answer: Any, part: tuple[int, int] | None, limit: int) -> bytes:
        """The body of the last answer, its status and length checked before the body is read."""
        self._check_status(name, answer.status_code)
        said = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if part is not None:
            if answer.status_code != 206 or said is None or int(said[1]) != part[0] or int(said[2]) >= part[1]:
                raise ModelError(
                    f"`{self._show(name)}`: the server does not send parts of files (HTTP Range)",
                    code="range_ignored",
                    hint="download the model, and give its folder",
                )
            self._sizes[name] = int(said[3])
            expected = min(part[1], int(said[3])) - part[0]
            limit = expected
        else:
            expected = int(answer.headers.get("content-length", -1))
        if expected > limit:
            raise self._too_large(name, f"has {expected} bytes", limit)
        body = bytearray()
        for piece in answer.iter_raw(1 << 16):
            body += piece
            self.fetched += len(piece)
            if len(body) > limit:
                raise self._too_large(name, "sends more", limit)
            if self.fetched > self.limits.total:
                raise self._too_large("", f"sent {self.fetched} bytes in all", self.limits.total)
        if 0 <= expected != len(body):
            raise ModelError(f"`{self._show(name)}`: {len(body)} of {expected} bytes came", code="truncated")
        if part is None:
            self._sizes[name] = len(body)
        return bytes(body)

    def _too_large(self, name: str, what: str, limit: int) -> ModelError:
        return ModelError(f"`{self._show(name)}` {what}, more than the {limit} allowed", code="file_too_large")

    def _check_status(self, name: str, status: int) -> None:
        if status in {200, 206}:
            return
        if status in {404, 410, 416}:
            empty = status == 416
            raise NotFoundError(f"`{self._show(name)}` {'is empty' if empty else 'does not exist on the server'}")
        if status in {401, 403}:
            raise AuthError(
                f"`{self._show(name)}`: the server answers {status}: private, gated, or a token is missing",
                hint="log in: yard login",
            )
        raise YardError(f"`{self._show(name)}`: the server answers {status}", code="unreachable")

    def _exists(self, name: str) -> bool:
        try:
            self._fetch(name, (0, 1))
        except NotFoundError:
            return False
        return True

    def _shards(self) -> set[str]:
        """The files that the index names; what is wrong with an index is found by whoever checks it."""
        try:
            listed = json.loads(self.read("model.safetensors.index.json")).get("weight_map", {})
            shards = {str(shard) for shard in listed.values()}
        except (ValueError, AttributeError):
            return set()
        for shard in shards:
            check_name(shard, self.label)
        return shards

    def _url(self, name: str) -> str:
        check_name(name, self.label)
        if self._base is not None:
            return self._base + quote(name)
        if name not in self._urls:
            raise NotFoundError(f"no file `{show_name(name)}` in `{self.label}`")
        return self._urls[name]

    def _show(self, name: str) -> str:
        return f"{self.label}/{show_name(name)}" if name else self.label

    def _open(self) -> Any:
        if self._client is None:
            import httpx

            # trust_env: no proxy, certificate or .netrc of the environment is taken without being asked for.
            self._client = httpx.Client(
                follow_redirects=False, timeout=self.limits.timeout, trust_env=False, transport=self._transport
            )
        return self._client


def _headers(part: tuple[int, int] | None, token: str | None) -> dict[str, str]:
    # identity: a compressed answer has other offsets than the file.
    headers = {"Accept-Encoding": "identity"}
    if part is not None:
        headers["Range"] = f"bytes={part[0]}-{part[1] - 1}"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise RequestError(f"`{show_name(url)}` is no http or https URL", field="base")
