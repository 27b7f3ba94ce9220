"""Moving a catalog between databases, both ways: everything arrives, one of the two is in charge, killed or not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from catalog_helpers import NOW, add, digest, write
from modelyard.catalog import Catalog, audit, deployments, files, leases, refs, reports, repos, revision, runs, segments
from modelyard.catalog.files import FileRow, Piece
from modelyard.catalog.move import Moved, move, sums
from modelyard.catalog.runs import RunRow
from modelyard.catalog.schema import metadata
from modelyard.catalog.segments import SegmentRow
from modelyard.catalog.transaction import pending
from modelyard.errors import BusyError, InputError, IntegrityError, YardError
from modelyard.points import at as at_points
from services import fresh_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.row(53),
    # pytest-xdist's threads; a child only moves.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

FORK = multiprocessing.get_context("fork")
WAYS = [
    "sqlite-to-sqlite",
    *(pytest.param(way, marks=pytest.mark.services) for way in ("to-postgres", "from-postgres")),
]
URLS = tuple[str, str]


@pytest.fixture(params=WAYS)
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URLS]:
    """A filled catalog's URL, and an empty database's."""
    here, there = (f"sqlite:///{tmp_path / name}.db" for name in ("here", "there"))
    if request.param == "sqlite-to-sqlite":
        fill(here)
        yield here, there
        return
    with fresh_postgres() as postgres:
        pair = (here, postgres) if request.param == "to-postgres" else (postgres, there)
        fill(pair[0])
        yield pair


def fill(url: str) -> None:
    """At least a row in every table, with text that sorts and encodes differently in different places."""
    catalog = Catalog(url).init()
    with write(catalog) as tx:
        for name in ("t/Z", "t/a", "t/_", "t/é".encode().hex()):
            repos.ensure(tx, "model", name)
        repo = repos.ensure(tx, "model", "t/a")
        seqs = [
            add(
                tx,
                repo,
                digest(n),
                metadata=json.dumps({f"k{n}": "ü\u2028漢\x01🙂", "B": "b"}),
                edges=(("merged", digest(0)),),
            )
            for n in range(5)
        ]
        refs.point(tx, repo.id, "main", "branch", seqs[-1])
        refs.push(tx, repo.id, "live", seqs[0])
        refs.set_gate(tx, repo.id, "live", "{}")
        reports.save(tx, seqs[0], digest(7), dataset=None, task="t", n=1, metrics="{}")
        runs.save(tx, RunRow("key", "train", "running", 1, "me", "{}", "{}", None, tx.at, None))
        deployments.save(tx, "d", reference="t/a@live", version_seq=seqs[0], owner="me", address="", info="{}")
        leases.acquire(tx, "l", purpose="commit", owner="me")
        files.record(tx, [FileRow(digest(20), 30, "sha", cut="cdc/1")])
        files.record_pieces(tx, digest(20), [Piece(at, digest(30 + at % 2), 10 * at, 10) for at in range(3)])
        segments.place_all(
            tx, [SegmentRow(digest(40), 10, "delta", digest(50), 8, 2, "{}", 1, (digest(30), digest(31)))]
        )
        segments.record_pack(tx, digest(50), 100)
        tx.connection.execute(text("INSERT INTO candidates VALUES ('files', 'x', 1, 't')"))
        tx.record("commit", repo=repo.key, ref="main", version=digest(4), detail={"message": "漢"})
    catalog.close()


def moved(urls: URLS, **options: Any) -> Moved:
    source, target = (Catalog(url, busy_seconds=5) for url in urls)
    try:
        return move(source, target, author="bo", at=NOW, **options)
    finally:
        source.close()
        target.close()


def content(url: str) -> dict[str, Any]:
    catalog = Catalog(url)
    try:
        with catalog.unchecked() as connection:
            return dict(sums(connection))
    finally:
        catalog.close()


def state(url: str) -> str | None:
    catalog = Catalog(url)
    try:
        return catalog.revision()
    finally:
        catalog.close()


def test_everything_arrives_and_the_new_catalog_is_in_charge(urls: URLS) -> None:
    """Every table has the same rows and digest on both sides, nothing was empty, and the new one can be written."""
    before = content(urls[0])
    said: list[tuple[int, int]] = []
    found = moved(urls, progress=lambda done, total: said.append((done, total)))
    assert found.tables == content(urls[1]) == content(urls[0])
    assert set(found.tables) == set(metadata.tables)
    assert all(found.counts.values())
    unchanged = set(metadata.tables) - {"audit", "outbox", "counters"}
    assert {name: found.tables[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert said[-1] == (sum(found.counts.values()), sum(found.counts.values()))
    assert not found.resumed

    catalog = Catalog(urls[1]).open()
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        assert add(tx, repo, digest(99)) == 6
        record = audit.entries(tx.connection)[0]
        assert (record.action, record.author) == ("move-catalog", "bo")
        assert json.loads(record.detail) == {"from": Catalog(urls[0]).address, "to": catalog.address}
        assert [entry.seq for entry in pending(tx.connection)] == [1, 2]
        assert [name for _, name in repos.names(tx.connection)] == sorted(
            name for _, name in repos.names(tx.connection)
        )
    catalog.close()


def test_a_program_that_still_has_the_old_catalog_is_refused(urls: URLS) -> None:
    """One that opens the old catalog, and one that had it open all along, are told where it went."""
    running = Catalog(urls[0]).open()
    with running.read() as connection:
        assert repos.names(connection)
    moved(urls)

    def read() -> None:
        with running.read():
            pass

    def change() -> None:
        with write(running):
            pass

    address = Catalog(urls[1]).address
    for use in (read, change, running.open, running.init, Catalog(urls[0]).open):
        with pytest.raises(YardError) as error:
            use()
        assert error.value.code == "catalog_moved"
        assert address in error.value.message
        assert "start this program again" in str(error.value.hint)
    running.close()


def test_an_older_program_refuses_a_moved_catalog(urls: URLS, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a moved catalog says is a revision that programs from before there was moving do not know."""
    moved(urls)
    monkeypatch.setattr(revision, "MOVED", "not yet invented")
    with pytest.raises(YardError) as error:
        Catalog(urls[0]).open()
    assert error.value.code == "catalog_newer"


def test_writers_are_locked_out_while_it_moves(urls: URLS) -> None:
    """A writer that comes during the move waits, and what it would have written is in neither catalog; readers go on."""
    seen: list[object] = []

    def intrude(point: str) -> None:
        if point != "move.copied":
            return
        other = Catalog(urls[0], busy_seconds=0.2)

        def change() -> None:
            with write(other) as tx:
                repos.ensure(tx, "model", "t/lost")

        with pytest.raises(BusyError):
            change()
        with other.read() as connection:
            seen.append(len(repos.names(connection)))
        other.close()

    with at_points(intrude):
        moved(urls)
    assert seen == [4]
    catalog = Catalog(urls[1]).open()
    with catalog.read() as connection:
        assert len(repos.names(connection)) == 4
    catalog.close()


def test_a_writer_that_waited_is_refused(urls: URLS) -> None:
    """A writer that waits through the move finds a moved catalog when it is its turn, and writes nothing."""
    told: list[str] = []

    def late() -> None:
        other = Catalog(urls[0], busy_seconds=10)
        try:
            with write(other) as tx:
                repos.ensure(tx, "model", "t/lost")
        except YardError as error:
            told.append(error.code)
        other.close()

    writer = threading.Thread(target=late)

    def start(point: str) -> None:
        if point == "move.verified":
            writer.start()

    with at_points(start):
        moved(urls)
    writer.join(20)
    assert told == ["catalog_moved"]


def _move_and_die(urls: URLS, where: str, nth: int) -> None:
    def die(*_args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    source, target = (Catalog(url) for url in urls)
    seen: list[int] = []

    def count(*_args: object) -> None:
        seen.append(1)
        if len(seen) == nth:
            die()

    if where == "write":
        event.listen(target._engine, "before_cursor_execute", count)
    elif where == "commit":
        event.listen(source._engine, "commit", count)
    with at_points(lambda point: die() if point == where else None):
        move(source, target, author="bo", at=NOW)
    raise AssertionError(f"{where} was not reached")


@pytest.mark.row(37)
@pytest.mark.parametrize(
    ("where", "nth"),
    [*(("write", nth) for nth in (3, 30, 45, 60)), ("move.copied", 0), ("move.verified", 0), ("commit", 1)],
)
def test_a_killed_move_leaves_the_source_in_charge(urls: URLS, where: str, nth: int) -> None:
    """Killed before the switch: the old catalog is as it was and works, the new one is refused, and moving again succeeds."""
    before = content(urls[0])
    process = FORK.Process(target=_move_and_die, args=(urls, where, nth))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert content(urls[0]) == before
    with pytest.raises(YardError) as error:
        Catalog(urls[1]).open()
    assert error.value.code in {"catalog_unfinished", "bad_input"}
    source = Catalog(urls[0]).open()
    with write(source) as tx:
        repos.ensure(tx, "model", "t/meanwhile")
    source.close()
    found = moved(urls)
    assert found.tables == content(urls[1])
    assert not found.resumed
    assert (state(urls[0]), state(urls[1])) == ("moved", revision.HEAD)


@pytest.mark.row(37)
def test_a_move_killed_after_the_switch_is_finished_by_the_next(urls: URLS) -> None:
    """Killed after the old catalog said `moved`: both are refused with the next step, and the same move finishes."""
    process = FORK.Process(target=_move_and_die, args=(urls, "move.switched", 0))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    for url, code in zip(urls, ("catalog_moved", "catalog_unfinished"), strict=True):
        with pytest.raises(YardError, match="catalog") as error:
            Catalog(url).open()
        assert error.value.code == code
        assert "yard catalog move" in str(error.value.hint)
    for _ in range(2):
        found = moved(urls)
        assert found.resumed
        assert found.tables == content(urls[1])
    Catalog(urls[1]).open().close()


def test_a_copy_that_differs_is_not_put_in_charge(urls: URLS) -> None:
    """Rows that change, vanish or appear in the copy before it is verified are found; the old catalog stays in charge."""
    for harm in (
        "UPDATE versions SET author = 'eve' WHERE seq = 1",
        "DELETE FROM segment_inputs WHERE position = 1",
        "INSERT INTO packs VALUES ('x', 1)",
        "UPDATE counters SET value = value - 1 WHERE name = 'version'",
    ):

        def spoil(point: str, harm: str = harm) -> None:
            if point == "move.copied":
                other = Catalog(urls[1])
                with other.unchecked(write=True) as connection:
                    connection.execute(text(harm))
                other.close()

        with at_points(spoil), pytest.raises(IntegrityError, match="is not what was copied"):
            moved(urls)
        Catalog(urls[0]).open().close()
        with pytest.raises(YardError) as error:
            Catalog(urls[1]).open()
        assert error.value.code == "catalog_unfinished"
    moved(urls)


def test_a_target_that_holds_something_is_left_alone(urls: URLS) -> None:
    """A database with a catalog, or with tables that are called like ours, is refused and keeps what it has."""
    fill(urls[1])
    before = content(urls[1])
    with pytest.raises(InputError, match="holds a catalog already"):
        moved(urls)
    assert content(urls[1]) == before
    target = Catalog(urls[1])
    with target.unchecked(write=True) as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text("CREATE TABLE runs (mine TEXT)"))
    with pytest.raises(InputError, match="tables of the same names \\(runs\\)"):
        moved(urls)
    target.close()
    Catalog(urls[0]).open().close()


def test_a_catalog_is_not_moved_onto_itself_or_from_nothing(tmp_path: Path) -> None:
    """The same database is refused under any spelling of its URL; a missing catalog is not created by moving it."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with pytest.raises(InputError, match="no catalog"):
        moved((url, f"sqlite:///{tmp_path / 'b.db'}"))
    assert list(tmp_path.iterdir()) == []
    fill(url)
    with pytest.raises(InputError, match="already"):
        moved((url, f"sqlite:///{tmp_path}/./a.db"))


def test_a_catalog_that_was_moved_elsewhere_is_not_moved_again(tmp_path: Path) -> None:
    """A move from a catalog that another one took over names that one."""
    here, there, elsewhere = (f"sqlite:///{tmp_path / name}.db" for name in ("a", "b", "c"))
    fill(here)
    moved((here, there))
    with pytest.raises(YardError) as error:
        moved((here, elsewhere))
    assert error.value.code == "catalog_moved"
    assert there in error.value.message


def test_there_and_back_again(urls: URLS, tmp_path: Path) -> None:
    """A catalog that moves on to a third database is the same, but for the two moves."""
    back = f"sqlite:///{tmp_path / 'back.db'}"
    before = content(urls[0])
    moved(urls)
    found = moved((urls[1], back)).tables
    same = set(metadata.tables) - {"audit", "outbox", "counters"}
    assert {name: found[name] for name in same} == {name: before[name] for name in same}
    assert found["audit"].rows == before["audit"].rows + 2
