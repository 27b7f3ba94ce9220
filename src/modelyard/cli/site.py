"""`yard up`: the yard over HTTP, for people (pages) and for Hub clients (downloads), on loopback only."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import click

from modelyard.cli import output
from modelyard.cli.housekeeping import housekeeping
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.errors import ConflictError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from modelyard.registry import Yard

__all__ = ["create_site", "up"]


def create_site(yard: Yard) -> Starlette:
    """The pages under `/ui/` and the Hub protocol at the root, for the names of loopback and no others."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import RedirectResponse
    from starlette.routing import Mount, Route

    from modelyard import hub, web

    # Another site's page may make a browser ask us under its own name (DNS rebinding): the Host header gives it away.
    door = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
    home = Route("/", lambda _request: RedirectResponse("/ui/"))
    return Starlette(routes=[home, Mount("/ui", web.create(yard)), Mount("/", hub.create(yard))], middleware=[door])


@click.command()
@click.option("--port", default=8100, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--compact/--no-compact", default=True, help="Compact cold versions in the background, now and then.")
@with_yard
@with_json
def up(port: int, compact: bool, home: Home, as_json: bool) -> None:
    """Show the yard in a browser, and let Hub clients download from it with HF_ENDPOINT set. Loopback only, read-only.

    \b
    Example:
      yard up
    """
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConflictError(
                f"port {port} is taken", hint="choose another with --port, or 0 for a free one"
            ) from error
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # h11 bounds a request's head; the faster parser does not.
        config = uvicorn.Config(
            create_site(home.open()), http="h11", log_level="warning", lifespan="off", server_header=False
        )
        if as_json:
            output.json_object({"url": url, "pages": f"{url}/ui/", "HF_ENDPOINT": url})
        else:
            output.note(f"pages at {url}/ui/, Hub clients with HF_ENDPOINT={url} (Ctrl-C stops it)")
        with housekeeping(home.settings.home, wanted=compact):
            uvicorn.Server(config).run(sockets=[listener])
