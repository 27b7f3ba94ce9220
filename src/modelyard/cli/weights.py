"""`yard merge` and `yard convert`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.cli.versions import version_json
from modelyard.errors import InputError

if TYPE_CHECKING:
    from modelyard.registry import Version, Yard

__all__ = ["convert", "merge"]

_PATHS = ("./", "../", "/", "~")


@click.command()
@click.argument("adapter", metavar="REFERENCE")
@click.option("--to", metavar="NAMESPACE/NAME", help="The repo of the result (default: the adapter's).")
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def merge(adapter: str, to: str | None, branch: str, home: Home, as_json: bool) -> None:
    """Merge an adapter version into its base by the exact operation `lora/1`: the same bits on every machine.

    \b
    Example:
      yard merge team/intents@adapter
    """
    from modelyard.cli.progress import byte_bar
    from modelyard.recipes.operations import merge_reference

    with byte_bar("merging", quiet=as_json) as progress:
        done = merge_reference(
            home.open(), adapter, runs=home.settings.home / "runs", to=to, branch=branch, progress=progress
        )
    if as_json:
        output.json_object(
            version_json(done.version, base=done.base, adapter=done.adapter, certificate=done.certificate)
        )
    else:
        output.data(f"{done.version.name}  {done.version.id.short}")
        output.note(f"{done.adapter} merged into {done.base} by {done.certificate['operation']}")


@click.command()
@click.argument("source", metavar="./FOLDER|REFERENCE")
@click.option("--to", "target", required=True, metavar="./FOLDER|NAMESPACE/NAME", help="A new folder, or a repo.")
@click.option("--dtype", type=click.Choice(("float32", "float16", "bfloat16")), help="Cast the weights.")
@with_yard
@with_json
def convert(source: str, target: str, dtype: str | None, home: Home, as_json: bool) -> None:
    """Convert weights: pickles to safetensors in an isolated process, or, with --dtype, to another precision.

    \b
    Examples:
      yard convert ./old-model --to ./model
      yard convert team/intents@production --to team/intents-bf16 --dtype bfloat16
    """
    origin: Version | None = None
    if not source.startswith(_PATHS) or not target.startswith(_PATHS):
        yard = home.open(create=True)
        origin = None if source.startswith(_PATHS) else yard.resolve(source)
    if target.startswith(_PATHS):
        done = _convert(_files(source, origin, home), source, Path(target).expanduser(), dtype)
        _converted(done, target, as_json)
        return
    runs = home.settings.home / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="convert-", dir=runs) as scratch:
        folder = Path(scratch) / "model"
        done = _convert(_files(source, origin, home), source, folder, dtype)
        version = _commit(home.open(), folder, target, origin, dtype)
    _converted({**done, **version_json(version)}, version.name, as_json)


def _files(source: str, origin: Version | None, home: Home) -> Any:
    from modelyard.weights.files import FolderFiles

    return FolderFiles(Path(source).expanduser()) if origin is None else home.open().files(origin)


def _convert(files: Any, source: str, out: Path, dtype: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    from modelyard.weights.convert import cast, convert_pickle

    if dtype is not None:
        return {"dtype": dtype, **asdict(cast(files, out, dtype))}
    if not source.startswith(_PATHS):
        raise InputError(
            f"`{source}` holds no pickles: a version never does", hint="say what to change, e.g. --dtype bfloat16"
        )
    return asdict(convert_pickle(Path(source).expanduser(), out))


def _commit(yard: Yard, folder: Path, repo: str, origin: Version | None, dtype: str | None) -> Version:
    kind = origin.kind if origin else None
    edges = [("converted", origin)] if origin else []
    return yard.commit(folder, repo, kind=kind, from_=edges, message=f"converted to {dtype or 'safetensors'}")  # type: ignore[arg-type]


def _converted(done: dict[str, Any], where: str, as_json: bool) -> None:
    if as_json:
        output.json_object({"to": where, **done})
        return
    output.note(f"written to {where}")
    for name, made in done.get("converted", {}).items():
        output.note(f"  {name} -> {made}")
    for name in done.get("left", ()):
        output.note(f"  left behind: {name}")
