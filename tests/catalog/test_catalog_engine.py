"""How a catalog's database is opened, and what its errors become."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

import modelyard.catalog.migrations
from modelyard.catalog import Catalog, repos, revision
from modelyard.catalog.engine import journal_mode, parse_url
from modelyard.errors import InputError, IntegrityError, NoSpaceError, YardError

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalog on SQLite."""
    return Catalog(f"sqlite:///{tmp_path / 'catalog.db'}", busy_seconds=1).init()


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "truncate"),
        ((3, 44, 5), "truncate"),
        ((3, 44, 6), "wal"),
        ((3, 45, 0), "truncate"),
        ((3, 50, 6), "truncate"),
        ((3, 50, 7), "wal"),
        ((3, 51, 0), "truncate"),
        ((3, 51, 2), "truncate"),
        ((3, 51, 3), "wal"),
        ((3, 52, 0), "truncate"),
        ((3, 53, 0), "wal"),
    ],
)
def test_wal_only_where_its_race_is_fixed(version: tuple[int, ...], mode: str) -> None:
    """WAL is used only on releases of SQLite that carry the fix of the WAL-reset race."""
    assert journal_mode(version) == mode


def test_connections_are_durable(catalog: Catalog) -> None:
    """Every connection has the safe journal mode, synchronous=FULL, foreign keys and the busy timeout."""
    with catalog.read() as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema")
        }
    assert found == {
        "journal_mode": journal_mode(),
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 1000,
        "trusted_schema": 0,
    }


def test_the_default_wait_is_thirty_seconds(tmp_path: Path) -> None:
    """Without options a writer waits 30 seconds."""
    with Catalog(f"sqlite:///{tmp_path / 'c.db'}").init().read() as connection:
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 30_000


@pytest.mark.row(40)
def test_a_full_disk_is_typed_and_reads_go_on(catalog: Catalog) -> None:
    """When SQLite runs out of space the write is undone, the error is NoSpaceError, and reading works."""
    with catalog.write(author="a", at=NOW) as tx:
        repos.ensure(tx, "model", "t/kept")

    def fill() -> None:
        with catalog.write(author="a", at=NOW) as tx:
            tx.connection.execute(text("PRAGMA max_page_count = 1"))
            for number in range(2000):
                repos.ensure(tx, "model", f"t/{'x' * 80}{number}")

    with pytest.raises(NoSpaceError):
        fill()
    with catalog.read() as connection:
        assert repos.names(connection) == [("model", "t/kept")]


@pytest.mark.row(42)
def test_a_damaged_file_is_an_integrity_error(tmp_path: Path) -> None:
    """A catalog file that is not a database is named as damaged."""
    (tmp_path / "catalog.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(IntegrityError, match="not a database"):
        Catalog(f"sqlite:///{tmp_path / 'catalog.db'}").open()


def test_an_unreachable_server_is_named_without_its_password() -> None:
    """A database that does not answer is a typed error whose message keeps the password to itself."""
    catalog = Catalog("postgresql://ana:s3cret@127.0.0.1:1/yard")
    with pytest.raises(YardError, match="cannot be used") as error:
        catalog.open()
    assert error.value.code == "catalog_unreachable"
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("url", ["mysql://h/d", "not a url", "sqlite://", "sqlite:///:memory:", "oracle://x"])
def test_other_urls_are_refused(url: str) -> None:
    """Only SQLite files and PostgreSQL hold a catalog."""
    with pytest.raises(InputError):
        Catalog(url)


def test_postgres_means_psycopg_3() -> None:
    """Both spellings of PostgreSQL's scheme use psycopg 3."""
    assert {parse_url(f"{scheme}://h/d").drivername for scheme in ("postgres", "postgresql")} == {"postgresql+psycopg"}


def test_every_revision_is_known() -> None:
    """The list of revisions is the migrations folder, in order."""
    folder = Path(modelyard.catalog.migrations.__file__).parent / "versions"
    assert tuple(sorted(path.name.partition("_")[0] for path in folder.glob("0*.py"))) == revision.KNOWN


def test_opening_imports_no_alembic(tmp_path: Path) -> None:
    """Opening a catalog costs no import of the migration tool."""
    Catalog(f"sqlite:///{tmp_path / 'catalog.db'}").init()
    code = f"import sys; from modelyard.catalog import Catalog; Catalog('sqlite:///{tmp_path / 'catalog.db'}').open(); print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_filters_use_their_indexes(catalog: Catalog) -> None:
    """Looking a version up by metadata, a segment's users and its homes search an index and never a whole table."""
    asked = {
        "version_metadata": "SELECT version_seq FROM version_metadata WHERE key = 'a' AND value = 'b'",
        "file_segments": "SELECT file FROM file_segments WHERE segment = 'a'",
        "segment_inputs": "SELECT segment FROM segment_inputs WHERE input = 'a'",
        "segments": "SELECT digest FROM segments WHERE pack = 'a'",
    }
    with catalog.read() as connection:
        for table, query in asked.items():
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()[0].detail
            assert plan.startswith(f"SEARCH {table} USING")
