"""`yard init`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

__all__ = ["init"]


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
