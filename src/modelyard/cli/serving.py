"""`yard serve` and `yard ps`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

if TYPE_CHECKING:
    from modelyard.registry import Deployment

__all__ = ["ps", "serve"]


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file with the token that requests must carry; needed to listen beyond loopback.",
)
@with_yard
@with_json
def serve(
    references: tuple[str, ...], host: str, port: int, token_file: Path | None, home: Home, as_json: bool
) -> None:
    """Serve versions over an OpenAI-compatible API. A REFERENCE that names an alias is followed: `yard promote` swaps the
    new version in without a failed request.

    \b
    Example:
      yard serve team/intents@production
    """
    from modelyard.serving.server import serve as run_server

    def ready(url: str) -> None:
        if as_json:
            output.json_object({"url": url, "pid": os.getpid(), "models": list(references)})
        else:
            output.note(f"serving {', '.join(references)} at {url}/v1 (Ctrl-C stops it)")

    token = token_file.read_text("utf-8").strip() if token_file else None
    run_server(
        home.open(), list(references), host=host, port=port, token=token, ready=ready, threads=home.settings.threads
    )


@click.command()
@with_yard
@with_json
def ps(home: Home, as_json: bool) -> None:
    """Show what is being served: reference, version, process, memory, requests in flight.

    \b
    Example:
      yard ps
    """
    found = home.open().deployments()
    if as_json:
        output.json_object({"deployments": [_plain(deployment) for deployment in found]})
        return
    if not found:
        output.note("nothing is being served; try `yard serve REFERENCE`")
        return
    output.table(
        ("REFERENCE", "VERSION", "STATE", "PID", "ADDRESS", "MEMORY", "IN FLIGHT", "SINCE (UTC)"),
        [
            (
                d.reference,
                f"{d.version_name} {d.version.short[:12]}",
                "gone" if d.alive is False else d.info.get("state", "?"),
                d.info.get("pid", "?"),
                d.address,
                output.human_bytes(int(d.info.get("memory_bytes", 0))),
                d.info.get("in_flight", 0),
                f"{d.started_at:%Y-%m-%d %H:%M}",
            )
            for d in found
        ],
    )


def _plain(deployment: Deployment) -> dict[str, Any]:
    return {
        "reference": deployment.reference,
        "version": str(deployment.version),
        "version_name": deployment.version_name,
        "address": deployment.address,
        "alive": deployment.alive,
        "since": deployment.started_at.isoformat(),
        **deployment.info,
    }
