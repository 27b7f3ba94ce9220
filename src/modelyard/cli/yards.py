"""`yard init` and `yard doctor`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.doctor import Finding

__all__ = ["doctor", "init"]


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--store", metavar="URL", help="Keep the bytes at s3://BUCKET/PREFIX[?endpoint=URL&region=NAME], not in FOLDER."
)
@click.option("--catalog", metavar="URL", help="Keep the catalog at postgresql://USER@HOST/DATABASE, not in FOLDER.")
@with_yard
@with_json
def init(folder: Path | None, store: str | None, catalog: str | None, home: Home, as_json: bool) -> None:
    """Make a yard in FOLDER (default: the one that every command uses). Safe to repeat.

    FOLDER remembers --store and --catalog, in yard.json, and keeps a cache of what is read from S3 (MODELYARD_CACHE bounds it). The key for
    S3 comes from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, each time.

    \b
    Examples:
      yard init
      yard init /data/yard --store s3://models/yard --catalog postgresql://yard@db/yard
    """
    where = Home(folder) if folder else home
    found = where.settings
    where.settings = replace(found, store_url=store or found.store_url, catalog_url=catalog or found.catalog_url)
    existed = any((where.settings.home / name).is_file() for name in ("format", "yard.json"))
    where.open(create=True)
    if as_json:
        output.json_object({"yard": str(where.settings.home), "created": not existed})
    else:
        output.note(f"{'found' if existed else 'made'} the yard at {where.settings.home}")


@click.command()
@click.argument("target", required=False, metavar="[REFERENCE|FOLDER]")
@with_yard
@with_json
def doctor(target: str | None, home: Home, as_json: bool) -> int:
    """Examine this machine and the yard; with a REFERENCE or FOLDER, that checkpoint. Never changes anything.

    Exit codes: 0 all well, 3 warnings, 1 something is broken.

    \b
    Examples:
      yard doctor
      yard doctor ./my-model
    """
    findings = _checkpoint(target, home) if target else _machine(home)
    if as_json:
        output.json_object({"target": target, "findings": [finding.to_dict() for finding in findings]})
    else:
        for finding in findings:
            output.data(f"{_MARKS[finding.level]} {finding.message}")
            if finding.hint:
                output.data(f"        {finding.hint}")
        if target and not findings:
            output.data(f"ok      nothing is wrong with {target}")
    levels = {finding.level for finding in findings}
    return 1 if "error" in levels else 3 if "warning" in levels else 0


_MARKS = {"info": "ok     ", "warning": "warning", "error": "error  "}


def _checkpoint(target: str, home: Home) -> Sequence[Finding]:
    from modelyard.weights.doctor import diagnose
    from modelyard.weights.files import FolderFiles

    if target.startswith(("./", "../", "/", "~")):
        return diagnose(FolderFiles(Path(target).expanduser()))
    yard = home.open()
    return diagnose(yard.files(yard.resolve(target)))


def _machine(home: Home) -> Sequence[Finding]:
    from modelyard.cli.machine import examine

    return examine(home.settings)
