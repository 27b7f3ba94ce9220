"""`yard serve` and `yard ps`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.housekeeping import housekeeping
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
@click.option(
    "--trust-verified", is_flag=True, help="Do not hash again what this boot has verified and nothing touched since."
)
@click.option("--compact/--no-compact", default=True, help="Compact cold versions in the background, now and then.")
@with_yard
@with_json
def serve(
    references: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    trust_verified: bool,
    compact: bool,
    home: Home,
    as_json: bool,
) -> None:
    """Serve versions over an OpenAI-compatible API. A REFERENCE that names an alias is followed: `yard promote` swaps the
    new version in without a failed request.

    \b
    Example:
      yard serve team/intents@production
    """
    from modelyard.serving.replicas import WorkerOptions
    from modelyard.serving.server import serve as run_server

    def ready(url: str) -> None:
        if as_json:
            output.json_object({"url": url, "pid": os.getpid(), "models": list(references)})
        else:
            output.note(f"serving {', '.join(references)} at {url}/v1 (Ctrl-C stops it)")

    token = token_file.read_text("utf-8").strip() if token_file else None
    yard, threads = home.open(), home.settings.threads
    with housekeeping(home.settings.home, wanted=compact):
        run_server(
            yard,
            list(references),
            host=host,
            port=port,
            token=token,
            worker=WorkerOptions(trust_verified=trust_verified),
            ready=ready,
            threads=threads,
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
    found = [_describe(deployment) for deployment in home.open().deployments()]
    if as_json:
        output.json_object({"deployments": found})
        return
    if not found:
        output.note("nothing is being served; try `yard serve REFERENCE`")
        return
    output.table(
        ("REFERENCE", "VERSION", "STATE", "PID", "ADDRESS", "MEMORY", "IN FLIGHT", "SINCE (UTC)"),
        [
            (
                d["reference"],
                f"{d['version_name']} {d['version'][:12]}",
                d["state"],
                d.get("pid", "-"),
                d["address"],
                output.human_bytes(int(d.get("memory_bytes", 0))),
                d.get("in_flight", "-"),
                str(d["since"])[:16].replace("T", " "),
            )
            for d in found
        ],
    )


def _describe(deployment: Deployment) -> dict[str, Any]:
    """What the yard recorded, overlaid with what the server itself says now, where it says anything."""
    from modelyard.serving import read_status

    plain: dict[str, Any] = {
        "reference": deployment.reference,
        "version": str(deployment.version),
        "version_name": deployment.version_name,
        "address": deployment.address,
        "alive": deployment.alive,
        "since": deployment.started_at.isoformat(),
        **deployment.info,
    }
    live = (read_status(deployment.address) if deployment.alive is not False else None) or []
    told = next((item for item in live if item["reference"] == deployment.reference), {})
    plain |= {key: value for key, value in told.items() if value is not None}
    plain["state"] = "gone" if deployment.alive is False else plain.get("state", "unknown")
    return plain
