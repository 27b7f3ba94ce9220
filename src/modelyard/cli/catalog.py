"""`yard catalog move|upgrade|show`: the database that holds the yard's names and history."""

from __future__ import annotations

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

__all__ = ["catalog"]


@click.group()
def catalog() -> None:
    """The yard's catalog: where it is, and moving or upgrading it.

    \b
    Examples:
      yard catalog show --json
      yard catalog move postgresql://ana@db.example/yard
    """


@catalog.command()
@with_yard
@with_json
def show(home: Home, as_json: bool) -> None:
    """Say which database the catalog is in, and its revision.

    \b
    Example:
      yard catalog show
    """
    from modelyard.app import catalog_of

    found = catalog_of(home.settings)
    revision = found.open().revision()
    if as_json:
        output.json_object({"catalog": found.address, "revision": revision})
    else:
        output.data(f"{found.address}  (revision {revision})")


@catalog.command()
@click.argument("url")
@with_yard
@with_json
def move(url: str, home: Home, as_json: bool) -> None:
    """Move the catalog to the empty database at URL: copy, compare counts and digests, then switch.

    Others may read meanwhile; writers wait. Interrupted, the old catalog stays in charge, or the same command
    finishes the move. Afterwards the old one is refused by every program; keep it as a backup, or remove it.

    \b
    Examples:
      yard catalog move postgresql://ana@db.example/yard
      yard catalog move sqlite:////data/yard/catalog.sqlite
    """
    from modelyard.app import move_catalog
    from modelyard.cli.progress import count_bar

    with count_bar("copying", quiet=as_json) as update:
        moved = move_catalog(home.settings, url, progress=update)
    rows = sum(moved.counts.values())
    if as_json:
        tables = {name: {"rows": table.rows, "blake3": table.digest} for name, table in moved.tables.items()}
        output.json_object({"rows": rows, "resumed": moved.resumed, "tables": tables})
        return
    output.note(f"moved {rows} rows, and their digests agree; the yard uses the new catalog from now on")
    output.note("programs that are running must be started again; the old catalog refuses them")
    if home.settings.catalog_url:
        output.note("MODELYARD_CATALOG names the old catalog and wins over the yard's own note: unset or change it")


@catalog.command()
@click.option("--i-have-a-backup", "have_backup", is_flag=True, help="Needed on PostgreSQL: pg_dump it first.")
@with_yard
@with_json
def upgrade(have_backup: bool, home: Home, as_json: bool) -> None:
    """Bring an older catalog to this program's revision; SQLite's file is copied first.

    \b
    Example:
      yard catalog upgrade
    """
    from modelyard.app import upgrade_catalog

    revision = upgrade_catalog(home.settings, have_backup=have_backup)
    if as_json:
        output.json_object({"revision": revision})
    else:
        output.note(f"the catalog has revision {revision}")
