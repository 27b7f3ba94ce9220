"""`Catalog`: a database with the yard's names and history, created, opened, read and written.

>>> import tempfile, pathlib
>>> folder = tempfile.TemporaryDirectory()
>>> catalog = Catalog(f"sqlite:///{pathlib.Path(folder.name, 'catalog.db')}").init()
>>> with catalog.read() as connection:
...     connection.exec_driver_sql("SELECT count(*) FROM repos").scalar()
0
>>> folder.cleanup()

It does not know the store, manifests or tensors. The functions of `catalog.repos`, `catalog.versions` and the other
modules work inside its transactions and take and return plain values.
"""

from __future__ import annotations

import os
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL

from modelyard.catalog import engine as engines
from modelyard.catalog import revision
from modelyard.catalog.mounts import network_type
from modelyard.catalog.transaction import Transaction, moment
from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Connection

__all__ = ["Catalog"]


class Catalog:
    """A catalog at a URL. Constructing connects to nothing; one object serves many threads, and forked children too.

    Args:
        url: `sqlite:///PATH` (four slashes for an absolute path) or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        busy_seconds: How long to wait for another writer before `BusyError`.

    Raises:
        InputError: The URL is malformed, or names a database that a catalog is not kept in.
    """

    def __init__(self, url: str, *, busy_seconds: float = engines.BUSY_SECONDS) -> None:
        self._url = engines.parse_url(url)
        if self._url.drivername == "sqlite" and self._url.database in {None, "", ":memory:"}:
            raise InputError("a catalog in memory would be lost", hint="use sqlite:///PATH")
        self.where = self._url.render_as_string(hide_password=True)
        self._engine = engines.open_engine(self._url, busy_seconds)
        self._process = os.getpid()
        weakref.finalize(self, self._engine.dispose)

    def init(self, *, have_backup: bool = False) -> Catalog:
        """Create the tables, or upgrade an older catalog (`revision.upgrade`); running it again changes nothing.

        Raises:
            InputError: `network_file_system`: SQLite on a disk that several hosts share.
        """
        self._refuse_network_file_system()
        with engines.translated(self.where):
            revision.upgrade(self._engine, self.where, have_backup=have_backup)
        return self

    def open(self) -> Catalog:
        """Check that there is a catalog of this program's revision.

        Raises:
            InputError: There is none, or it is SQLite on a network file system.
            YardError: `catalog_newer` or `catalog_older`, naming both revisions.
        """
        if self._url.drivername == "sqlite" and not Path(self._url.database or "").exists():
            # SQLite would create an empty file.
            revision.check(None, self.where)
        self._refuse_network_file_system()
        with engines.translated(self.where), self._connect() as connection:
            revision.check(revision.current(connection), self.where, connection)
        return self

    def revision(self) -> str | None:
        """The database's revision; None for a database without a catalog."""
        with self.unchecked() as connection:
            return revision.current(connection)

    @property
    def address(self) -> str:
        """The URL without its password and with an absolute path: which database it is, in words that may be kept."""
        if self._url.drivername == "sqlite":
            return f"sqlite:///{Path(self._url.database or '').absolute()}"
        query = {key: value for key, value in self._url.query.items() if key != "password"}
        url = URL.create(
            "postgresql", self._url.username, None, self._url.host, self._url.port, self._url.database, query
        )
        return url.render_as_string()

    def close(self) -> None:
        """Close pooled connections; the object may be used again."""
        self._engine.dispose()

    def _refuse_network_file_system(self) -> None:
        if self._url.drivername != "sqlite":
            return
        found = network_type(Path(self._url.database or ""))
        if found is not None:
            raise InputError(
                f"the catalog {self.where} lies on a network file system ({found}), where SQLite loses data",
                hint="put it on a local disk (MODELYARD_CATALOG=sqlite:////local/disk/catalog.db) or on PostgreSQL",
                code="network_file_system",
            )

    def _connect(self) -> Connection:
        if self._process != os.getpid():
            # A forked child must not speak through its parent's connections, nor close them.
            self._engine.dispose(close=False)
            self._process = os.getpid()
        return self._engine.connect()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one consistent state on SQLite, committed state on PostgreSQL. Keep it short.

        Raises:
            YardError: The catalog was upgraded or moved since it was opened; see `open`.
        """
        with engines.translated(self.where), self._connect() as connection, connection.begin():
            self._check(connection)
            yield connection

    @contextmanager
    def unchecked(self, *, write: bool = False) -> Iterator[Connection]:
        """A transaction whatever the revision, and whether or not there is a catalog: for moving one (`catalog.move`)."""
        with (
            engines.translated(self.where),
            self._connect().execution_options(modelyard_write=write) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write(self, *, author: str, at: datetime) -> Iterator[Transaction]:
        """A write transaction, alone among writers; durable when the block ends, undone when it raises.

        Raises:
            BusyError: Another writer held the catalog longer than `busy_seconds`.
            NoSpaceError: The disk is full.
            YardError: The catalog was upgraded or moved since it was opened; see `open`.
        """
        with (
            engines.translated(self.where),
            self._connect().execution_options(modelyard_write=True) as connection,
            connection.begin(),
        ):
            tx = Transaction(connection, author, moment(at))
            tx.lock()
            self._check(connection)
            yield tx

    def _check(self, connection: Connection) -> None:
        # In every transaction: a program that runs for weeks must not go on in a catalog that was moved or upgraded.
        found = revision.stated(connection)
        if found != revision.HEAD:
            revision.check(found, self.where, connection if found == revision.MOVED else None)
