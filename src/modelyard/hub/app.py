"""The Hub-protocol ASGI app: `create(yard)` returns it; `HF_ENDPOINT=http://host:port` points a client at it.

Parses a request, calls one function of the registry, renders what the Hub would. It knows no tensors and decides nothing.
The routes, headers and error codes are those that huggingface_hub 2.4 reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from modelyard.errors import NotFoundError, RefError, YardError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from starlette.requests import Request

    from modelyard.registry import FileEntry, Version, Yard

__all__ = ["create"]

_LARGE = 10 << 20
"""Files over this size are shown as LFS files, as the Hub does; the client then expects a sha256."""

_LARGEST_FORM = 1 << 20
_BYTES = "application/octet-stream"

_NO_REVISION = "no_such_revision"

_TYPES = {"models": "", "datasets": "datasets/"}


def create(yard: Yard) -> Starlette:
    """The ASGI app that answers Hub clients from `yard`."""
    hub = _Hub(yard)
    routes = [
        Route("/api/{kind}", hub.repos),
        Route("/api/{kind}/{space}/{name}", hub.info),
        Route("/api/{kind}/{space}/{name}/revision/{rev}", hub.info),
        Route("/api/{kind}/{space}/{name}/tree/{rev}", hub.tree),
        Route("/api/{kind}/{space}/{name}/tree/{rev}/{path:path}", hub.tree),
        Route("/api/{kind}/{space}/{name}/refs", hub.refs),
        Route("/api/{kind}/{space}/{name}/paths-info/{rev}", hub.paths, methods=["POST"]),
        Route("/datasets/{space}/{name}/resolve/{rev}/{path:path}", hub.dataset_file),
        Route("/{space}/{name}/resolve/{rev}/{path:path}", hub.model_file),
        Route("/api/{rest:path}", hub.unsupported, methods=["POST", "PUT", "DELETE"]),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {YardError: _failed}
    return Starlette(routes=routes, exception_handlers=handlers)


class _Hub:
    """The handlers, around one yard."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def repos(self, request: Request) -> Response:
        """`GET /api/{kind}`: list repos."""
        kind = _kind(request)
        found = await run_in_threadpool(self._yard.repos, "dataset" if kind == "datasets" else "model")
        return JSONResponse([{"id": repo.name, "modelId": repo.name, "private": False, "tags": []} for repo in found])

    async def info(self, request: Request) -> Response:
        """`GET /api/{kind}/{id}[/revision/{rev}]`: one repo at a revision."""
        version = await self._version(request)
        return JSONResponse(
            {
                "id": version.repo,
                "sha": version.id.short,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [version.kind] if version.kind else [],
                "createdAt": _stamp(version),
                "lastModified": _stamp(version),
                "siblings": [_sibling(entry) for entry in version.files],
            }
        )

    async def tree(self, request: Request) -> Response:
        """`GET .../tree/{rev}[/path]`: files and folders; `recursive` lists everything below."""
        version = await self._version(request)
        below = request.path_params.get("path", "").strip("/")
        recursive = request.query_params.get("recursive", "").lower() in {"1", "true"}
        items = _tree(version, f"{below}/" if below else "", recursive)
        if below and not items:
            return _missing("EntryNotFound", f"no folder `{below}` in {version.name}", version)
        return JSONResponse(items)

    async def refs(self, request: Request) -> Response:
        """`GET .../refs`: branches (aliases among them, since both move) and tags."""
        kind, repo = _kind(request), _repo(request)
        found = await run_in_threadpool(self._yard.refs, _TYPES[kind] + repo)
        listed: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref in found:
            group, prefix = ("tags", "refs/tags/") if ref.type == "tag" else ("branches", "refs/heads/")
            listed[group].append({"name": ref.name, "ref": prefix + ref.name, "targetCommit": ref.version.short})
        return JSONResponse(listed)

    async def paths(self, request: Request) -> Response:
        """`POST .../paths-info/{rev}`: the named files; missing ones are left out."""
        version = await self._version(request)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LARGEST_FORM:
                raise HTTPException(413, f"the form is over {_LARGEST_FORM} bytes")
        wanted = set(parse_qs(body.decode("utf-8", "replace"), max_num_fields=2000).get("paths", []))
        return JSONResponse([_item(entry) for entry in version.files if entry.path in wanted])

    async def model_file(self, request: Request) -> Response:
        """`GET|HEAD /{id}/resolve/{rev}/{path}`."""
        return await self._file(request, "models")

    async def dataset_file(self, request: Request) -> Response:
        """`GET|HEAD /datasets/{id}/resolve/{rev}/{path}`."""
        return await self._file(request, "datasets")

    async def unsupported(self, request: Request) -> Response:
        """Every write route: 501, by name."""
        return JSONResponse(
            {"error": f"{request.method} {request.scope['path']} is not supported by this server"},
            status_code=501,
            headers={"X-Error-Code": "NotImplemented"},
        )

    async def _file(self, request: Request, kind: str) -> Response:
        version = await self._version(request, kind)
        path = request.path_params["path"]
        entry = next((entry for entry in version.files if entry.path == path), None)
        if entry is None:
            return _missing("EntryNotFound", f"no file `{path}` in {version.name}", version)
        etag = f'"{_oid(entry)}"'
        headers = {
            "X-Repo-Commit": version.id.short,
            "ETag": etag,
            "X-Linked-ETag": etag,
            "X-Linked-Size": str(entry.size),
            "Accept-Ranges": "bytes",
            "Content-Disposition": "attachment",
            "X-Content-Type-Options": "nosniff",
        }
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(entry.size)}, media_type=_BYTES)
        # `path` verifies the stored bytes, so a damaged file is an error and never served.
        stored: Path = await run_in_threadpool(self._yard.path, version, path)
        return FileResponse(stored, media_type=_BYTES, headers=headers)

    async def _version(self, request: Request, kind: str | None = None) -> Version:
        rev = request.path_params.get("rev", "main")
        prefix = _TYPES[kind or _kind(request)]
        return await run_in_threadpool(self._resolve, prefix + _repo(request), rev)

    def _resolve(self, repo: str, rev: str) -> Version:
        try:
            return self._yard.resolve(f"{repo}@{rev}")
        except NotFoundError as error:
            self._yard.refs(repo)  # raises when the repo itself is what is missing
            raise NotFoundError(error.message, hint=error.hint, code=_NO_REVISION) from error


def _kind(request: Request) -> str:
    kind: str = request.path_params["kind"]
    if kind not in _TYPES:
        raise HTTPException(404, f"no such kind of repo: {kind[:40]}")
    return kind


def _repo(request: Request) -> str:
    return f"{request.path_params['space']}/{request.path_params['name']}"


def _stamp(version: Version) -> str:
    return version.created_at.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _sibling(entry: FileEntry) -> dict[str, Any]:
    plain: dict[str, Any] = {"rfilename": entry.path, "size": entry.size, "blobId": _oid(entry)[:40]}
    if entry.size > _LARGE:
        plain["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
    return plain


def _item(entry: FileEntry) -> dict[str, Any]:
    plain: dict[str, Any] = {"type": "file", "path": entry.path, "oid": _oid(entry)[:40], "size": entry.size}
    if entry.size > _LARGE:
        plain["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
    return plain


def _oid(entry: FileEntry) -> str:
    """What the Hub calls a file's bytes: the git blob id of a small file, else the sha256."""
    return entry.git_blob if entry.git_blob and entry.size <= _LARGE else entry.sha256


def _tree(version: Version, prefix: str, recursive: bool) -> list[dict[str, Any]]:
    files = [entry for entry in version.files if entry.path.startswith(prefix)]
    folders: dict[str, dict[str, Any]] = {}
    for entry in files:
        parts = entry.path.removeprefix(prefix).split("/")[:-1]
        for depth in range(len(parts)):
            path = prefix + "/".join(parts[: depth + 1])
            folders[path] = {"type": "directory", "path": path, "oid": version.id.short, "size": 0}
    if recursive:
        return [*folders.values(), *(_item(entry) for entry in files)]
    here = [item for path, item in folders.items() if "/" not in path.removeprefix(prefix)]
    return [*here, *(_item(entry) for entry in files if "/" not in entry.path.removeprefix(prefix))]


def _missing(code: str, message: str, version: Version | None = None) -> Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message.encode("ascii", "replace").decode()}
    if version is not None:
        headers["X-Repo-Commit"] = version.id.short
    return JSONResponse({"error": message}, status_code=404, headers=headers)


async def _failed(_request: Request, error: Exception) -> Response:
    if isinstance(error, NotFoundError):
        return _missing("RevisionNotFound" if error.code == _NO_REVISION else "RepoNotFound", error.message)
    if isinstance(error, RefError):
        return _missing("RepoNotFound", error.message)
    assert isinstance(error, YardError)  # noqa: S101  # the only type this handler is registered for
    return JSONResponse({"error": error.message, "code": error.code}, status_code=500)
