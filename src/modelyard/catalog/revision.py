"""The catalog's revision: which one this program speaks, which one a database has, and how to get there.

Every transaction compares one row and imports nothing of Alembic; only `upgrade` does. A database from a newer program is
refused, an older one is upgraded by `upgrade` alone: SQLite is copied first, PostgreSQL has to be backed up by whoever
runs it, who says so with `have_backup`. The same row says that a catalog was moved away, or is a copy that did not finish:
any program, an older one too, refuses both.
"""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, exc, text

from modelyard.errors import InputError, YardError

__all__ = ["ARRIVING", "HEAD", "KNOWN", "MOVED", "MOVE_ACTION", "check", "create", "current", "stated", "upgrade"]

KNOWN = ("0001", "0002")
"""Every revision this program knows, oldest first; a test compares it with the migrations folder."""

HEAD = KNOWN[-1]

MOVED, ARRIVING = "moved", "arriving"
"""What the row says of a catalog that another database took over, and of a copy that is not in charge yet."""

MOVE_ACTION = "move-catalog"


def current(connection: Connection) -> str | None:
    """The database's revision; None for a database without a catalog."""
    if connection.dialect.name == "postgresql":
        query = "SELECT to_regclass('alembic_version')"
    else:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if connection.exec_driver_sql(query).scalar() is None:
        return None
    return stated(connection)


def stated(connection: Connection) -> str | None:
    """As `current`, in one statement, for a database that should hold a catalog."""
    try:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except (exc.OperationalError, exc.ProgrammingError) as error:
        if "alembic_version" in str(error.orig):
            return None
        raise
    return None if found is None else str(found)


def check(found: str | None, where: str, connection: Connection | None = None) -> None:
    """Refuse a database that this program does not speak, or that is not in charge.

    Args:
        found: Its revision.
        where: Its URL, for people.
        connection: To look up where a moved one went.

    Raises:
        YardError: `catalog_newer` or `catalog_older`, naming both revisions; `catalog_moved`; `catalog_unfinished`.
        InputError: There is no catalog in this database.
    """
    if found == HEAD:
        return
    if found is None:
        raise InputError(f"there is no catalog in {where}", hint="yard init")
    if found == MOVED:
        target = moved_to(connection) if connection is not None else None
        raise YardError(
            f"the catalog in {where} was moved" + (f" to {target}" if target else " to another database"),
            hint="start this program again, without the old URL in MODELYARD_CATALOG"
            + (f"; if the move was interrupted, finish it: yard catalog move {target}" if target else ""),
            code="catalog_moved",
            to=target,
        )
    if found == ARRIVING:
        raise YardError(
            f"the catalog in {where} is a copy that did not finish; the one that it was made from is in charge",
            hint="repeat yard catalog move, without this URL in MODELYARD_CATALOG",
            code="catalog_unfinished",
        )
    if found not in KNOWN:
        raise YardError(
            f"the catalog in {where} has revision {found}; this program knows revisions up to {HEAD}",
            hint="use the newer modelyard that wrote it: pip install -U modelyard",
            code="catalog_newer",
        )
    raise YardError(
        f"the catalog in {where} has revision {found}; this program needs {HEAD}",
        hint="yard catalog upgrade (which copies SQLite's file first)",
        code="catalog_older",
    )


def moved_to(connection: Connection) -> str | None:
    """The URL (without a password) that a moved catalog went to, from its audit log."""
    query = text("SELECT detail FROM audit WHERE action = :action ORDER BY seq DESC LIMIT 1")
    detail = connection.execute(query, {"action": MOVE_ACTION}).scalar()
    return str(json.loads(detail)["to"]) if detail else None


def upgrade(engine: Engine, where: str, *, have_backup: bool = False) -> str | None:
    """Bring the database to `HEAD`, creating the tables where there are none; returns the revision it had.

    One transaction: an interrupted upgrade leaves the old revision. An existing SQLite file is copied beside itself
    first, to `NAME.REVISION.bak`. Of two programs that upgrade at once, the second waits and finds nothing to do.

    Raises:
        YardError: The database is newer than this program.
        InputError: An existing PostgreSQL catalog would be upgraded without `have_backup`.
    """
    with engine.connect() as connection:
        found = current(connection)
        if found is not None and found not in KNOWN:
            check(found, where, connection)
    if found == HEAD:
        return found
    if found is not None and engine.dialect.name == "postgresql" and not have_backup:
        raise InputError(
            f"upgrading the catalog in {where} from revision {found} needs a backup that only you can make",
            hint="pg_dump it, then: yard catalog upgrade --i-have-a-backup",
        )
    with engine.connect().execution_options(modelyard_write=True) as connection, connection.begin():
        lock(connection)
        now = current(connection)
        if now != HEAD:
            if now is not None:
                _back_up(engine, now)
            _run(connection)
    return found


def lock(connection: Connection) -> None:
    """Wait for whoever else creates or upgrades this catalog; on SQLite the write transaction did already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7165316)"))


def create(connection: Connection) -> None:
    """Make the tables in an empty database, inside the caller's write transaction."""
    _run(connection)


def _back_up(engine: Engine, found: str) -> None:
    """Copy SQLite's file. Called inside the write transaction that upgrades, so what is copied is of the old revision."""
    database = engine.url.database
    if engine.dialect.name == "postgresql" or not database:
        return
    # The name appears only when the copy is whole and durable: an interrupted one must not pass for a backup.
    unfinished = Path(f"{database}.{found}.bak.tmp")
    unfinished.unlink(missing_ok=True)
    source = sqlite3.connect(database)
    target = sqlite3.connect(unfinished)
    try:
        source.backup(target)
    finally:
        target.close()
        source.close()
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(f"{database}.{found}.bak")
    folder = os.open(Path(database).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _run(connection: Connection, to: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # Alembic reads `%` in its options as an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
