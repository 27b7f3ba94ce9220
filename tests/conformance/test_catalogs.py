"""What every catalog promises, run against SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text

from catalog_helpers import NOW, add, digest, write
from modelyard.catalog import Catalog, audit, deployments, leases, refs, reports, repos, revision, runs, versions
from modelyard.catalog.runs import RunRow
from modelyard.catalog.schema import metadata
from modelyard.catalog.transaction import discard, pending
from modelyard.errors import BusyError, InputError, YardError

if TYPE_CHECKING:
    from pathlib import Path


def test_init_twice_changes_nothing(catalog: Catalog) -> None:
    """Creating a catalog that exists leaves what is in it."""
    with write(catalog) as tx:
        repos.ensure(tx, "model", "team/a")
    with catalog.init().open().read() as connection:
        assert repos.names(connection) == [("model", "team/a")]


def test_opening_nothing_is_refused(url: str, tmp_path: Path) -> None:
    """A database without a catalog is refused, and opening creates none."""
    catalog = Catalog(url)
    with pytest.raises(InputError, match="no catalog") as error:
        catalog.open()
    assert error.value.hint == "yard init"
    assert not (tmp_path / "catalog.db").exists()
    catalog.close()


@pytest.mark.parametrize(("found", "code"), [("9999", "catalog_newer"), ("", "catalog_newer")])
@pytest.mark.row(52)
def test_a_newer_catalog_is_refused(catalog: Catalog, found: str, code: str) -> None:
    """An older program refuses a catalog of a revision it does not know, for opening and upgrading, naming both."""
    with write(catalog) as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = :found"), {"found": found})
    for use in (catalog.open, catalog.init):
        with pytest.raises(YardError, match=f"revision {found}; this program knows .* {revision.HEAD}") as error:
            use()
        assert error.value.code == code


def test_an_older_catalog_is_refused_and_upgraded(
    catalog: Catalog, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older catalog is refused by `open`; `init` backs it up first, or asks for a backup."""
    monkeypatch.setattr(revision, "KNOWN", (*revision.KNOWN, "9000"))
    monkeypatch.setattr(revision, "HEAD", "9000")
    with pytest.raises(YardError, match="has revision 0002; this program needs 9000") as error:
        catalog.open()
    assert error.value.code == "catalog_older"
    ran: list[str] = []
    monkeypatch.setattr(revision, "_run", lambda connection: ran.append(str(revision.current(connection))))
    if url.startswith("postgresql"):
        with pytest.raises(InputError, match="backup"):
            catalog.init()
        catalog.init(have_backup=True)
    else:
        catalog.init()
        assert (tmp_path / "catalog.db.0002.bak").stat().st_size > 0
    assert ran == ["0002"]


def test_the_migrations_make_the_schema(catalog: Catalog) -> None:
    """The tables that the migrations make are the tables that the code uses."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with catalog.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_text_compares_bytewise(catalog: Catalog) -> None:
    """Names sort by their bytes, whatever the language of the database's cluster."""
    names = ["t/Z", "t/_", "t/a", "t/a-b", "t/a.b", "t/aa", "t/b", "T/a"]
    with write(catalog) as tx:
        for name in names:
            repos.ensure(tx, "model", name)
    with catalog.read() as connection:
        assert [name for _, name in repos.names(connection)] == sorted(names, key=str.encode)
        assert [found.name for found in repos.summaries(connection)] == sorted(names, key=str.encode)


def test_numbers_count_without_gaps(catalog: Catalog) -> None:
    """Each repo counts its versions from 1, and a transaction that fails takes no number."""
    with write(catalog) as tx:
        a, b = repos.ensure(tx, "model", "t/a"), repos.ensure(tx, "dataset", "t/a")
        assert [repos.next_number(tx, a.id), repos.next_number(tx, a.id), repos.next_number(tx, b.id)] == [1, 2, 1]

    def fail() -> None:
        with write(catalog) as tx:
            assert repos.next_number(tx, a.id) == 3
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with write(catalog) as tx:
        assert repos.next_number(tx, a.id) == 3


def test_a_transaction_that_raises_leaves_nothing(catalog: Catalog) -> None:
    """A change, its audit row and its outbox row exist together or not at all."""

    def fail() -> None:
        with write(catalog) as tx:
            repo = repos.ensure(tx, "model", "t/a")
            tx.record("commit", repo=repo.key, ref="main", version=digest(1))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with catalog.read() as connection:
        assert repos.names(connection) == []
        assert audit.entries(connection) == []
        assert pending(connection) == []


def test_writers_take_turns(catalog: Catalog) -> None:
    """What a write transaction read stays true until it ends: concurrent read-then-write loses nothing."""
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        first = add(tx, repo, digest(0))
        refs.point(tx, repo.id, "main", "branch", first)
    together = threading.Barrier(4)

    def work(worker: int) -> None:
        together.wait()
        for step in range(5):
            with write(catalog) as tx:
                head = refs.find(tx.connection, repo.id, "main")
                assert head is not None
                seq = add(tx, repo, digest(1 + worker * 5 + step), edges=(("imported", head.version_id),))
                refs.point(tx, repo.id, "main", "branch", seq)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with catalog.read() as connection:
        found = versions.in_repo(connection, repo.id)
        head = refs.find(connection, repo.id, "main")
    assert [record.number for record in found] == list(range(21, 0, -1))
    # Each commit was made on top of the one before: one unbroken line.
    line = [record.lineage[0][1] for record in found[:-1]]
    assert line == [record.id for record in found[1:]]
    assert head is not None
    assert head.number == 21


@pytest.mark.row(46)
def test_a_writer_that_waits_too_long_is_told(catalog: Catalog, url: str) -> None:
    """Waiting for another writer ends in BusyError, and the catalog works afterwards."""
    hasty = Catalog(url, busy_seconds=0.2)
    with write(catalog) as tx:
        repos.ensure(tx, "model", "t/a")
        with pytest.raises(BusyError), write(hasty):
            pass
    with write(hasty) as tx:
        repos.ensure(tx, "model", "t/b")
    hasty.close()


def test_version_lookups(catalog: Catalog) -> None:
    """Versions are found by number, by prefix in their repo only, by digest anywhere, and as the latest not deleted."""
    with write(catalog) as tx:
        a, b = repos.ensure(tx, "model", "t/a"), repos.ensure(tx, "model", "t/b")
        one, two = add(tx, a, "ab" + "0" * 62), add(tx, a, "ab" + "1" * 62)
        three = add(tx, b, "ab" + "0" * 62)
        versions.set_deleted(tx, two, deleted=True)
    with catalog.read() as connection:
        assert versions.by_number(connection, a.id, 2) == two
        assert versions.by_number(connection, a.id, 3) is None
        assert versions.by_prefix(connection, a.id, "ab") == [one, two]
        assert versions.by_prefix(connection, a.id, "ab0") == [one]
        assert versions.by_prefix(connection, a.id, "ac") == []
        assert versions.by_digest(connection, ["ab" + "0" * 62]) == [one, three]
        assert versions.latest(connection, a.id) == one
        assert [found.seq for found in versions.load(connection, [three, 999, one])] == [three, one]
        assert [found.seq for found in versions.in_repo(connection, a.id)] == [one]
        assert [found.seq for found in versions.in_repo(connection, a.id, deleted=True)] == [two, one]


def test_listings_are_paged_and_cost_a_fixed_number_of_statements(catalog: Catalog) -> None:
    """A page of versions or repos takes the same few statements however many rows it has, and pages join up."""
    with write(catalog) as tx:
        many = repos.ensure(tx, "model", "t/many")
        for number in range(60):
            add(tx, many, digest(number), edges=(("imported", digest(999)),), files=3)
        for number in range(10):
            repos.ensure(tx, "dataset", f"t/d{number}")
    statements: list[str] = []
    engine = catalog._engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with catalog.read() as connection:
        statements.clear()
        small = versions.in_repo(connection, many.id, limit=2)
        few = len(statements)
        statements.clear()
        page = versions.in_repo(connection, many.id, limit=50)
        assert len(statements) == few <= 3
        rest = versions.in_repo(connection, many.id, limit=50, before=page[-1].number)
        assert [record.number for record in (*page, *rest)] == list(range(60, 0, -1))
        assert all(len(record.files) == 3 and len(record.lineage) == 1 for record in (*small, *page, *rest))
        statements.clear()
        first = repos.summaries(connection, limit=4)
        others = repos.summaries(connection, after=(first[-1].name, first[-1].type))
        assert len(statements) == 2
    assert [(found.type, found.name) for found in (*first, *others)] == [
        *(("dataset", f"t/d{number}") for number in range(10)),
        ("model", "t/many"),
    ]
    assert (others[-1].versions, others[-1].latest, others[-1].size) == (60, 60, 1800)


def test_refs_and_former_holders(catalog: Catalog) -> None:
    """A ref moves, is listed and removed; an alias's former holders are a stack."""
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        seqs = [add(tx, repo, digest(number)) for number in range(3)]
        refs.point(tx, repo.id, "main", "branch", seqs[0])
        refs.point(tx, repo.id, "main", "branch", seqs[2])
        refs.point(tx, repo.id, "live", "alias", seqs[2])
        for seq in seqs[:2]:
            refs.push(tx, repo.id, "live", seq)
        assert refs.former(tx.connection, repo.id, "live") == [seqs[1], seqs[0]]
        refs.pop(tx, repo.id, "live")
        assert refs.former(tx.connection, repo.id, "live") == [seqs[0]]
        assert refs.former_holders(tx.connection, seqs[0]) == ["live"]
        assert [(ref.name, ref.type, ref.number) for ref in refs.in_repo(tx.connection, repo.id)] == [
            ("live", "alias", 3),
            ("main", "branch", 3),
        ]
        assert [ref.name for ref in refs.names_of(tx.connection, seqs[2])] == ["live", "main"]
        refs.forget_version(tx, seqs[0])
        assert refs.former(tx.connection, repo.id, "live") == []
        refs.remove(tx, repo.id, "live")
        assert refs.find(tx.connection, repo.id, "live") is None
        refs.set_gate(tx, repo.id, "live", '{"min":0.9}')
        refs.set_gate(tx, repo.id, "live", '{"min":0.8}')
        assert refs.gate(tx.connection, repo.id, "live") == '{"min":0.8}'
        refs.set_gate(tx, repo.id, "live", None)
        assert refs.gate(tx.connection, repo.id, "live") is None


def test_children_follow_lineage(catalog: Catalog) -> None:
    """Edges are found from what they point at; those of deleted versions only when asked for."""
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        add(tx, repo, digest(0))
        add(tx, repo, digest(1), edges=(("finetuned", digest(0)),))
        gone = add(tx, repo, digest(2), edges=(("merged", digest(0)), ("merged", digest(1))))
        versions.set_deleted(tx, gone, deleted=True)
    with catalog.read() as connection:
        assert versions.children(connection, [digest(0)]) == [(digest(1), "finetuned", digest(0))]
        assert len(versions.children(connection, [digest(0), digest(1)], deleted=True)) == 3


def test_reports_runs_deployments_leases(catalog: Catalog) -> None:
    """Reports are noted once and in order, runs are found by key, deployments and leases come and go."""
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        seq = add(tx, repo, digest(0))
        for number in (2, 1):
            assert reports.save(tx, seq, digest(number), dataset=None, task="t", n=1, metrics="{}")
        assert not reports.save(tx, seq, digest(2), dataset=None, task="t", n=1, metrics="{}")
        assert [found.digest for found in reports.of_version(tx.connection, seq)] == [digest(2), digest(1)]

        row = RunRow("key", "train", "running", 1, "me", "{}", "{}", None, tx.at, None)
        runs.save(tx, row)
        runs.save(tx, RunRow("key", "train", "failed", 2, "me", "{}", "{}", "why", tx.at, tx.at))
        found = runs.find(tx.connection, "key")
        assert found is not None
        assert (found.state, found.attempt, found.error) == ("failed", 2, "why")
        assert len(runs.listing(tx.connection)) == 1

        deployments.save(tx, "d1", reference="t/a@live", version_seq=seq, owner="me", address="", info="{}")
        assert deployments.of_version(tx.connection, seq) == ["d1"]
        assert deployments.beat(tx, "d1")
        assert not deployments.beat(tx, "d2")
        assert deployments.listing(tx.connection)[0].version_name == "t/a@v1"
        assert deployments.remove(tx, "d1")
        assert not deployments.remove(tx, "d1")

        leases.acquire(tx, "l1", purpose="commit", owner="me")
        taken = leases.listing(tx.connection)[0]
        assert leases.beat(tx, "l1")
        assert leases.listing(tx.connection)[0].heartbeat_seq > taken.seq
        leases.release(tx, "l1")
        assert not leases.beat(tx, "l1")


def test_the_audit_is_ordered_by_sequence_not_clock(catalog: Catalog) -> None:
    """A clock that jumps back changes what people read, never the order; the outbox holds the same entries."""
    with catalog.write(author="ana", at=NOW) as tx:
        repo = repos.ensure(tx, "dataset", "t/a")
        tx.record(
            "commit", repo=repo.key, ref="main", version=digest(1), detail={"message": 'say "hi" — ü; DROP TABLE'}
        )
    with catalog.write(author="bo", at=NOW.replace(year=2016)) as tx:
        tx.record("tag", repo=repo.key, ref="v", version=digest(1), previous=digest(2))
    with catalog.read() as connection:
        found = audit.entries(connection, repo_id=repo.id)
        left = pending(connection)
        assert [entry.author for entry in audit.entries(connection, limit=1)] == ["bo"]
        assert [entry.author for entry in audit.entries(connection, before=found[0].seq)] == ["ana"]
    assert [(entry.seq, entry.author, entry.action) for entry in found] == [(2, "bo", "tag"), (1, "ana", "commit")]
    assert [entry.seq for entry in left] == [1, 2]
    assert json.loads(left[0].data) == {
        "format": "modelyard/journal/1",
        "seq": 1,
        "at": "2026-11-22T12:00:00.000000Z",
        "author": "ana",
        "action": "commit",
        "repo_type": "dataset",
        "repo": "t/a",
        "ref": "main",
        "version": digest(1),
        "detail": {"message": 'say "hi" — ü; DROP TABLE'},
    }
    with write(catalog) as tx:
        discard(tx, [1])
        assert [entry.seq for entry in pending(tx.connection)] == [2]
