"""A hub in a thread, which answers as the real one does: its paths, its headers, its refusals."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

COMMIT = "c" * 40
OTHER = "d" * 40


@dataclass
class Repo:
    """A model on the stub: its files at `COMMIT`, and what a hub says to whom."""

    files: Mapping[str, bytes]
    access: Literal["public", "private", "gated", "disabled"] = "public"
    readers: tuple[str, ...] = ()
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})


class HubStub:
    """Serves `repos` on a free loopback port while the block runs.

    Attributes:
        url: The endpoint.
        asked: Every path that was asked for, with its method.
        tokens: Token to account.
    """

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        self.repos = repos
        self.tokens = {"hf_reader-token": "reader", "hf_stranger-token": "stranger"}
        self.asked: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub.asked.append(f"GET {self.path}")
                _Answer(stub, self).give()

            def do_HEAD(self) -> None:
                stub.asked.append(f"HEAD {self.path}")
                _Answer(stub, self).give()

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubStub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Answer:
    """One request's answer."""

    def __init__(self, stub: HubStub, handler: BaseHTTPRequestHandler) -> None:
        self.stub, self.handler = stub, handler
        words = handler.headers.get("Authorization", "").split()
        self.token = words[1] if len(words) == 2 else None
        self.account = stub.tokens.get(self.token or "")

    def give(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.handler.path).path.strip("/").split("/")]
        if self.token is not None and self.account is None:
            return self.refuse(401, None, "Invalid credentials in Authorization header")
        if parts == ["api", "whoami-v2"]:
            if self.account is None:
                return self.refuse(401, None, "Invalid username or password.")
            return self.json({"type": "user", "name": self.account, "orgs": [], "auth": {"accessToken": {}}})
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), parts[4:])
        if parts[2:3] == ["resolve"]:
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.refuse(404, None, "no such page")

    def find(self, name: str, *, content: bool) -> Repo | None:
        """The repo if this account may see it; else None, and it has been told why not."""
        repo = self.stub.repos.get(name)
        if repo is None or (repo.access == "private" and self.account not in repo.readers):
            # A hub tells nobody that a private model exists; without a token it says that one is needed.
            if self.account is None:
                self.refuse(401, "RepoNotFound", "Invalid username or password.")
            else:
                self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        if repo.access == "disabled":
            self.refuse(403, None, "Access to this resource is disabled.")
            return None
        if content and repo.access == "gated" and self.account not in repo.readers:
            status = 401 if self.account is None else 403
            self.refuse(status, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return repo

    def api(self, name: str, rest: list[str]) -> None:
        repo = self.find(name, content=rest[:1] == ["tree"])
        if repo is None:
            return None
        if rest == ["refs"]:
            refs = [
                {"name": key, "ref": f"refs/heads/{key}", "targetCommit": sha} for key, sha in repo.branches.items()
            ]
            return self.json({"branches": refs, "converts": [], "tags": []})
        if rest and self.commit(repo, rest[1]) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        if rest[:1] == ["tree"]:
            return self.json(
                [
                    {"type": "file", "path": key, "oid": _oid(data), "size": len(data)}
                    for key, data in repo.files.items()
                ]
            )
        siblings = [{"rfilename": key} for key in repo.files]
        gated = "manual" if repo.access == "gated" else False
        return self.json({"id": name, "sha": COMMIT, "siblings": siblings, "gated": gated, "tags": []})

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.find(name, content=True)
        if repo is None:
            return None
        if self.commit(repo, revision) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repo.files[file]
        return self.send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"'})

    def commit(self, repo: Repo, revision: str) -> str | None:
        return revision if revision in repo.branches.values() else repo.branches.get(revision)

    def refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.send(status, json.dumps({"error": message}).encode(), headers)

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        if self.handler.command != "HEAD":
            self.handler.wfile.write(body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
