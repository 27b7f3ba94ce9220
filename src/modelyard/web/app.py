"""The pages as an ASGI app: `create(yard)` returns it, to be served alone or mounted under a prefix.

Every page works without JavaScript (there is none), loads nothing from elsewhere, and shows the command that says the
same on a terminal. It only reads: nothing here changes a yard. It checks no Host and no token; whoever mounts it does.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from modelyard.errors import AuthError, ConflictError, InputError, NotFoundError, YardError
from modelyard.registry import Reference
from modelyard.web.pages import RepoPage, ReposPage, VersionPage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from modelyard.registry import RepoType, Yard

__all__ = ["HEADERS", "create"]

_HERE = Path(__file__).parent

HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Sent with every answer: nothing inline runs, and nothing from elsewhere loads."""

_TYPES: dict[str, RepoType] = {"models": "model", "datasets": "dataset"}
_STATUS: tuple[tuple[type[YardError], int], ...] = (
    (NotFoundError, 404),
    (AuthError, 403),
    (ConflictError, 409),
    (InputError, 400),
)


def create(yard: Yard) -> Starlette:
    """The app that shows `yard`.

    Routes: `/` (repos), `/{models|datasets}/NS/NAME` (versions), `/{models|datasets}/NS/NAME/REV` (one version) and
    `/static/`.
    """
    pages = _Pages(yard)
    routes = [
        Mount("/static", StaticFiles(directory=_HERE / "static")),
        Route("/", pages.repos),
        Route("/{kind}/{space}/{name}", pages.repo),
        Route("/{kind}/{space}/{name}/{rev}", pages.version),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Response | Awaitable[Response]]] = {
        YardError: pages.failed,
        HTTPException: pages.refused,
    }
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(_Headers)])


class _Headers:
    """Adds `HEADERS` to every answer, error pages and static files included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class _Pages:
    """The routes. Each is a plain function, so Starlette runs it on a thread: the catalog may wait for its disk."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["bytes"] = readable_bytes
        # A command on a page is there to be pasted: what a report says is quoted for the shell, too.
        self._templates.filters["shell"] = shlex.quote

    def repos(self, request: Request) -> Response:
        """All repos, a page at a time."""
        after = request.query_params.get("after")
        start = Reference.parse(after) if after else None
        page = ReposPage.gather(self._yard, (start.repo, start.repo_type) if start else None)
        return self._render(request, "repos.html", page=page)

    def repo(self, request: Request) -> Response:
        """A repo's versions, a page at a time."""
        before = request.query_params.get("before")
        if before is not None and not (before.isascii() and before.isdecimal() and len(before) <= 18):
            raise InputError("`before` is not a version's number")
        where = _reference(request)
        page = RepoPage.gather(self._yard, where.repo, where.repo_type, int(before) if before else None)
        return self._render(request, "repo.html", page=page)

    def version(self, request: Request) -> Response:
        """One version."""
        where = f"{_reference(request).repo_text}@{request.path_params['rev']}"
        return self._render(request, "version.html", page=VersionPage.gather(self._yard, where))

    def failed(self, request: Request, error: Exception) -> Response:
        """The page for an error of ours, with the next step."""
        if not isinstance(error, YardError):
            raise error
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        return self._render(request, "error.html", status=status, title=error.message, hint=error.hint)

    def refused(self, request: Request, error: Exception) -> Response:
        """The page for a path that leads nowhere, or a method that is not answered."""
        if not isinstance(error, HTTPException):
            raise error
        return self._render(request, "error.html", status=error.status_code, title=error.detail, hint=None)

    def _render(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(link=_Links(request), status=status, **values)
        return HTMLResponse(text, status_code=status)


class _Links:
    """Addresses of pages, below wherever the app is mounted; every part is quoted."""

    def __init__(self, request: Request) -> None:
        self._root = quote(str(request.scope.get("root_path", "")))

    def home(self, after: tuple[str, str] | None = None) -> str:
        """The list of repos."""
        if after is None:
            return f"{self._root}/"
        name, repo_type = after
        return f"{self._root}/?{urlencode({'after': f'datasets/{name}' if repo_type == 'dataset' else name})}"

    def static(self, name: str) -> str:
        """A static file."""
        return f"{self._root}/static/{quote(name)}"

    def repo(self, repo: str, repo_type: str, before: int | None = None) -> str:
        """A repo's page."""
        page = f"{self._root}/{'datasets' if repo_type == 'dataset' else 'models'}/{quote(repo)}"
        return page if before is None else f"{page}?{urlencode({'before': before})}"

    def version(self, name: str) -> str:
        """A version's page, by a reference such as `ns/name@v7`."""
        where = Reference.parse(name)
        return f"{self.repo(where.repo, where.repo_type)}/{quote(where.rev, safe='')}"


def _reference(request: Request) -> Reference:
    """The repo that a path names; `NotFoundError` for one that cannot exist."""
    kind = _TYPES.get(request.path_params["kind"])
    if kind is None:
        raise NotFoundError("there is no such page", hint="models and datasets are listed on the first page")
    repo = f"{request.path_params['space']}/{request.path_params['name']}"
    return Reference.parse(f"datasets/{repo}" if kind == "dataset" else repo)


def readable_bytes(count: int) -> str:
    """A size for people.

    >>> readable_bytes(999), readable_bytes(4_938_268)
    ('999 B', '4.9 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
