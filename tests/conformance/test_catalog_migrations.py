"""Upgrading a catalog: with its data, twice at once, killed anywhere, and what older programs say; on both databases."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from catalog_helpers import add, digest, write
from modelyard.catalog import Catalog, counters, files, repos, revision, segments, versions
from modelyard.catalog.files import FileRow
from modelyard.errors import InputError, YardError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.row(52),
    # pytest-xdist's threads; a child only runs the upgrade.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

FORK = multiprocessing.get_context("fork")
LONG = "x" * 3000


@pytest.fixture
def old(url: str) -> str:
    """A catalog of revision 0001 with two repos, three versions, one file in two of them, metadata and a lease."""
    catalog = Catalog(url)
    with catalog.unchecked(write=True) as connection:
        revision._run(connection, "0001")

        def put(table: str, *rows: dict[str, Any]) -> None:
            names = list(rows[0])
            values = ", ".join(f":{name}" for name in names)
            connection.execute(text(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"), list(rows))

        repo = {"type": "model", "last_number": 2, "created_at": "t"}
        put("repos", repo | {"id": 1, "name": "t/a"}, repo | {"id": 2, "name": "t/b"})
        version = {"created_at": "t", "author": "ana", "message": "", "size": 3}
        said = [{"stage": "a", "text": LONG}, {"stage": "b", "ключ": "зн"}, {}]
        for seq, (repo_id, deleted) in enumerate([(1, 0), (1, 1), (2, 0)], start=1):
            row = {"seq": seq, "repo_id": repo_id, "number": seq, "id": digest(seq), "deleted": deleted}
            put("versions", version | row | {"metadata": json.dumps(said[seq - 1])})
        kept = {"path": "f", "size": 3}
        for seq, position, at, blob in [(1, 0, 11, None), (1, 1, 12, "blob"), (2, 0, 11, None), (3, 0, 13, None)]:
            row = {"version_seq": seq, "position": position, "blake3": digest(at), "sha256": f"sha{at}"}
            put("version_files", kept | row | {"git_blob": blob})
        put(
            "leases",
            {"id": "l", "seq": 1, "purpose": "p", "owner": "o", "heartbeat_seq": 2, "acquired_at": "t"},
        )
        connection.execute(text("UPDATE counters SET value = 3 WHERE name = 'version'"))
    catalog.close()
    return url


def upgrade(url: str) -> str | None:
    catalog = Catalog(url, busy_seconds=20)
    try:
        return catalog.init(have_backup=True).revision()
    finally:
        catalog.close()


def check_upgraded(url: str) -> None:
    """Everything that revision 0001 knew, in the tables of 0002, and the catalog can be written."""
    catalog = Catalog(url).open()
    with catalog.read() as connection:
        assert files.find(connection, map(digest, range(20))) == {
            digest(at): FileRow(digest(at), 3, f"sha{at}", git_blob="blob" if at == 12 else None) for at in (11, 12, 13)
        }
        assert files.pieces(connection, digest(11)) == []
        assert segments.packs(connection) == {}
        assert counters.current(connection, "collections") == 0
        for key, value, found in [("stage", "a", [1]), ("stage", "b", [2]), ("text", LONG, [1]), ("ключ", "зн", [2])]:
            listed = versions.in_repo(connection, 1, deleted=True, where={key: value})
            assert [version.number for version in listed] == found
        loaded = versions.load(connection, [1, 2, 3])
        assert [(found.deleted, found.collected, found.derivation) for found in loaded] == [
            (False, False, None),
            (True, False, None),
            (False, False, None),
        ]
    with write(catalog) as tx:
        assert add(tx, repos.ensure(tx, "model", "t/a"), digest(4)) == 4
    catalog.close()


def test_an_upgrade_keeps_everything(old: str) -> None:
    """Every file is whole, metadata can be filtered by, deleted stays deleted, and the next version gets the next number."""
    with pytest.raises(YardError, match="has revision 0001; this program needs 0002") as error:
        Catalog(old).open()
    assert error.value.code == "catalog_older"
    assert error.value.hint is not None
    assert "yard catalog upgrade" in error.value.hint
    assert upgrade(old) == "0002"
    check_upgraded(old)


def test_sqlite_is_copied_before_it_is_upgraded(old: str, tmp_path: Path) -> None:
    """The copy beside the file is a whole catalog of the old revision; PostgreSQL asks for one instead."""
    catalog = Catalog(old)
    if old.startswith("postgresql"):
        with pytest.raises(InputError, match="backup") as error:
            catalog.init()
        assert error.value.hint == "pg_dump it, then: yard catalog upgrade --i-have-a-backup"
        assert catalog.revision() == "0001"
        catalog.close()
        return
    catalog.init().close()
    copy = f"sqlite:///{tmp_path / 'catalog.db.0001.bak'}"
    assert Catalog(copy).revision() == "0001"
    assert upgrade(copy) == "0002"
    check_upgraded(copy)
    assert sorted(path.name for path in tmp_path.glob("*.bak*") if not path.name.endswith("-journal")) == [
        "catalog.db.0001.bak",
        "catalog.db.0001.bak.0001.bak",
    ]


def _upgrade_and_say(url: str, ready: Any, said: Any) -> None:
    ran = []
    run = revision._run

    def counted(connection: Any, to: str = "head") -> None:
        ran.append(1)
        run(connection, to)

    revision._run = counted
    ready.wait()
    said.put((upgrade(url), len(ran)))


def test_of_two_upgraders_one_upgrades_and_one_finds_it_done(old: str, tmp_path: Path) -> None:
    """Two processes that upgrade at once both end well, only one of them migrates, and the copy is of the old revision."""
    ready, said = FORK.Barrier(2), FORK.Queue()
    upgraders = [FORK.Process(target=_upgrade_and_say, args=(old, ready, said)) for _ in range(2)]
    for process in upgraders:
        process.start()
    told = sorted(said.get(timeout=30) for _ in upgraders)
    for process in upgraders:
        process.join(30)
        assert process.exitcode == 0
    assert told == [("0002", 0), ("0002", 1)]
    check_upgraded(old)
    if old.startswith("sqlite"):
        copy = sqlite3.connect(tmp_path / "catalog.db.0001.bak")
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        copy.close()


def _upgrade_and_die(url: str, at: int) -> None:
    catalog = Catalog(url)
    seen = []

    def die(*_args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def count(*_args: Any) -> None:
        seen.append(1)
        if len(seen) == at:
            die()

    event.listen(catalog._engine, "before_cursor_execute", count)
    # The last chance to die: everything is written and nothing is committed.
    event.listen(catalog._engine, "commit", die)
    catalog.init(have_backup=True)


@pytest.mark.row(37)
@pytest.mark.parametrize("at", [4, 8, 12, 16, 20, 24, 28, 1000])
def test_a_killed_upgrade_leaves_the_old_revision(old: str, at: int) -> None:
    """An upgrade that is killed at any statement, or just before it commits, leaves revision 0001 as it was."""
    before = rows(old)
    process = FORK.Process(target=_upgrade_and_die, args=(old, at))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert Catalog(old).revision() == "0001"
    assert rows(old) == before
    assert upgrade(old) == "0002"
    check_upgraded(old)


def rows(url: str) -> dict[str, list[Any]]:
    """Every row of every table, by table."""
    from sqlalchemy import inspect

    catalog = Catalog(url)
    try:
        with catalog.unchecked() as connection:
            return {
                name: sorted(map(str, connection.execute(text(f"SELECT * FROM {name}"))))
                for name in sorted(inspect(connection).get_table_names())
            }
    finally:
        catalog.close()


def test_an_older_program_refuses_a_newer_catalog(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of revision 0001 opens, upgrades, reads and writes no catalog of 0002, and names both."""
    monkeypatch.setattr(revision, "KNOWN", ("0001",))
    monkeypatch.setattr(revision, "HEAD", "0001")

    def read() -> None:
        with catalog.read():
            pass

    def change() -> None:
        with write(catalog):
            pass

    for use in (catalog.open, catalog.init, read, change):
        with pytest.raises(YardError, match="has revision 0002; this program knows revisions up to 0001") as error:
            use()
        assert error.value.code == "catalog_newer"


def test_a_program_that_runs_through_an_upgrade_is_stopped(catalog: Catalog, url: str) -> None:
    """A program that had the catalog open when a newer one upgraded it neither reads nor writes it any more."""
    other = Catalog(url)
    with other.unchecked(write=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    other.close()

    def change() -> None:
        with write(catalog) as tx:
            repos.ensure(tx, "model", "t/lost")

    with pytest.raises(YardError) as error:
        change()
    assert error.value.code == "catalog_newer"
    with catalog.unchecked() as connection:
        assert connection.execute(text("SELECT count(*) FROM repos")).scalar() == 0
