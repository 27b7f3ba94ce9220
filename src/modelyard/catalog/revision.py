"""The catalog's revision: which one this program speaks, which one a database has, and how to get there.

Opening compares one row and imports nothing of Alembic; only `upgrade` does. A database from a newer program is
refused, an older one is upgraded by `upgrade` alone: SQLite is copied first, PostgreSQL has to be backed up by whoever
runs it, who says so with `have_backup`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from modelyard.errors import InputError, YardError

__all__ = ["HEAD", "KNOWN", "check", "current", "upgrade"]

KNOWN = ("0001", "0002")
"""Every revision this program knows, oldest first; a test compares it with the migrations folder."""

HEAD = KNOWN[-1]


def current(connection: Connection) -> str | None:
    """The database's revision; None for a database without a catalog."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def check(found: str | None, where: str) -> None:
    """Refuse a database that this program does not speak.

    Raises:
        YardError: `catalog_newer` or `catalog_older`; the message names both revisions.
        InputError: There is no catalog in this database.
    """
    if found == HEAD:
        return
    if found is None:
        raise InputError(f"there is no catalog in {where}", hint="yard init")
    if found not in KNOWN:
        raise YardError(
            f"the catalog in {where} has revision {found}; this program knows revisions up to {HEAD}",
            hint="use the newer modelyard that wrote it: pip install -U modelyard",
            code="catalog_newer",
        )
    raise YardError(
        f"the catalog in {where} has revision {found}; this program needs {HEAD}",
        hint="yard init (which copies the catalog first, then upgrades it)",
        code="catalog_older",
    )


def upgrade(engine: Engine, where: str, *, have_backup: bool = False) -> str | None:
    """Bring the database to `HEAD`, creating the tables where there are none; returns the revision it had.

    One transaction: an interrupted upgrade leaves the old revision. An existing SQLite file is copied beside itself
    first, to `NAME.REVISION.bak`.

    Raises:
        YardError: The database is newer than this program.
        InputError: An existing PostgreSQL catalog would be upgraded without `have_backup`.
    """
    with engine.connect() as connection:
        found = current(connection)
    if found == HEAD:
        return found
    if found is not None:
        if found not in KNOWN:
            check(found, where)
        _back_up(engine, found, where, have_backup=have_backup)
    with engine.connect().execution_options(modelyard_write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            # Two programs that upgrade at once: the second waits here and then finds nothing to do.
            connection.execute(text("SELECT pg_advisory_xact_lock(7165316)"))
        if current(connection) != HEAD:
            _run(connection)
    return found


def _back_up(engine: Engine, found: str, where: str, *, have_backup: bool) -> None:
    if engine.dialect.name == "postgresql":
        if not have_backup:
            raise InputError(
                f"upgrading the catalog in {where} from revision {found} needs a backup that only you can make",
                hint="pg_dump it, then say --i-have-a-backup",
            )
        return
    database = engine.url.database
    if not database or database == ":memory:":
        return
    source = sqlite3.connect(database)
    target = sqlite3.connect(Path(f"{database}.{found}.bak"))
    try:
        source.backup(target)
    finally:
        target.close()
        source.close()


def _run(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # Alembic reads `%` in its options as an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
