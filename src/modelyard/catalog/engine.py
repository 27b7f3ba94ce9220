"""Connections: how a database is opened so that an acknowledged write survives, and what its errors mean.

SQLite below 3.51.3 (3.44.6 and 3.50.7 carry the fix) can lose commits in WAL mode when two connections write and
checkpoint at once; there the rollback journal is used. `synchronous` is always FULL. This module knows no tables.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from modelyard.errors import BusyError, InputError, IntegrityError, NoSpaceError, YardError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["journal_mode", "open_engine", "parse_url", "translated"]

BUSY_SECONDS = 30.0

_SQLITE_MEANING: dict[int, tuple[type[YardError], str, str | None]] = {
    sqlite3.SQLITE_BUSY: (BusyError, "another process is writing to the catalog", "try again in a moment"),
    sqlite3.SQLITE_LOCKED: (BusyError, "another connection is writing to the catalog", "try again in a moment"),
    sqlite3.SQLITE_FULL: (
        NoSpaceError,
        "the disk is full: the catalog could not be written",
        "free some space and try again",
    ),
    sqlite3.SQLITE_CORRUPT: (
        IntegrityError,
        "the catalog's file is damaged",
        "restore it from a copy; the store is intact",
    ),
    sqlite3.SQLITE_NOTADB: (
        IntegrityError,
        "the catalog's file is not a database",
        "restore it from a copy; the store is intact",
    ),
}
# SQLSTATE of PostgreSQL: lock timeout, serialization, deadlock, too many connections, starting up; disk full.
_POSTGRES_BUSY = {"55P03", "40001", "40P01", "53300", "57P03"}
_POSTGRES_FULL = {"53100"}


def parse_url(text: str) -> URL:
    """A catalog's URL: `sqlite:///...` or `postgresql://...` (psycopg 3); anything else is an `InputError`."""
    try:
        url = make_url(text)
    except exc.ArgumentError as error:
        # The text may hold a password, so it is not repeated.
        raise InputError(
            "the catalog's URL cannot be read", hint="use sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        ) from error
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "postgresql+psycopg"}:
        raise InputError(
            f"no catalog is kept in `{url.drivername}`", hint="use sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        )
    return url


def journal_mode(version: tuple[int, ...] | None = None) -> str:
    """The journal mode that loses no commit on this SQLite: `wal` where the WAL-reset race is fixed, else `truncate`.

    >>> journal_mode((3, 40, 1)), journal_mode((3, 44, 6)), journal_mode((3, 51, 3))
    ('truncate', 'wal', 'wal')
    """
    found = sqlite3.sqlite_version_info if version is None else version
    fixed = found >= (3, 51, 3) or (3, 50, 7) <= found < (3, 51) or (3, 44, 6) <= found < (3, 45)
    # 3.52.0 was withdrawn by its developers.
    return "wal" if fixed and found[:3] != (3, 52, 0) else "truncate"


def open_engine(url: URL, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """An engine that commits durably and waits at most `busy_seconds` for another writer. Nothing is connected yet."""
    if url.drivername == "sqlite":
        engine = create_engine(url, pool_size=4)
        _prepare_sqlite(engine, busy_seconds)
        return engine
    try:
        engine = create_engine(url, pool_pre_ping=True, pool_size=4, connect_args={"connect_timeout": 10})
    except ImportError as error:
        raise InputError("a catalog on PostgreSQL needs psycopg", hint="pip install 'modelyard[postgres]'") from error

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(busy_seconds * 1000)}")
            cursor.execute("SET synchronous_commit = on")
        connection.commit()

    return engine


def _prepare_sqlite(engine: Engine, busy_seconds: float) -> None:
    mode = journal_mode()

    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver's own guess at when to begin a transaction is switched off; `_begin` decides.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
        active = cursor.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0]
        if active not in (mode, "memory"):
            raise sqlite3.OperationalError(f"journal_mode stayed {active}: database is locked")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA trusted_schema = OFF")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        write = connection.get_execution_options().get("modelyard_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn the database's errors into ours; `where` names the catalog without its password.

    Raises:
        BusyError: Locked for longer than the busy timeout, or too many connections.
        NoSpaceError: The disk is full.
        IntegrityError: The database's file is damaged.
        YardError: `catalog_unreachable`, for everything else that the database could not do.
    """
    try:
        yield
    except exc.DBAPIError as error:
        raise _meaning(error, where) from error
    except exc.TimeoutError as error:
        # Every connection of this process is in use: no error of the database, and as passing as one.
        raise BusyError(f"too many threads use the catalog at once ({where})", hint="try again in a moment") from error


def _meaning(error: exc.DBAPIError, where: str) -> YardError:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # Extended codes keep the primary one in their low byte.
        code = getattr(cause, "sqlite_errorcode", None)
        primary = code & 0xFF if code is not None else (sqlite3.SQLITE_BUSY if "locked" in str(cause) else -1)
        if primary in _SQLITE_MEANING:
            kind, message, hint = _SQLITE_MEANING[primary]
            return kind(f"{message} ({where})", hint=hint)
    state = getattr(cause, "sqlstate", None)
    if state in _POSTGRES_BUSY:
        return BusyError(f"another process holds the catalog ({where})", hint="try again in a moment")
    if state in _POSTGRES_FULL:
        return NoSpaceError(f"the disk of the catalog's server is full ({where})", hint="free some space and try again")
    if isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError):
        return YardError(f"the catalog refused a statement ({where}): {cause}", code="catalog_refused")
    return YardError(
        f"the catalog cannot be used ({where}): {cause}",
        hint="check that it exists and may be read and written",
        code="catalog_unreachable",
    )
