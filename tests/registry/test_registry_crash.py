"""The registry's promises under `kill -9`: every point of a commit is a process that dies there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from modelyard.catalog import Catalog
from modelyard.catalog.transaction import pending
from modelyard.errors import YardError
from registry.registry_helpers import DATA, Bench, Wrapper, commit_and_die, commit_and_report, commit_many, processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # pytest-xdist's threads

SIGKILLED = -9
OLD = [
    ("before", "file", 1),
    ("after", "file", 1),
    ("after", "file", 2),
    ("before", "manifests", 1),
    ("after", "manifests", 1),
]
IN_SQL = [("inside", "transaction", 1)]
NEW = [("before", "journal", 1), ("after", "journal", 1)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A yard on SQLite."""
    made = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
    yield made
    made.close()


@pytest.mark.parametrize(("when", "what", "nth"), [*OLD, *IN_SQL, *NEW])
@pytest.mark.row(37)
def test_an_interrupted_command_leaves_the_old_state_or_the_new_one(
    bench: Bench, when: str, what: str, nth: int
) -> None:
    """A promise: a commit that is killed anywhere leaves the old version or the new one, whole; a retry makes exactly one."""
    old = bench.yard.commit(bench.write({"data.txt": "1", "more.txt": "1"}), DATA)
    folder = bench.write({"data.txt": "2", "more.txt": "22"})
    process = processes().Process(target=commit_and_die, args=(bench.url, bench.root, folder, when, what, nth))
    process.start()
    process.join(60)
    assert process.exitcode == SIGKILLED

    yard = bench.open()
    found = yard.resolve(DATA)
    assert found.number == (2 if (when, what, nth) in NEW else 1)
    assert (found == old) == (found.number == 1)
    for version in yard.versions(DATA):
        files = yard.files(version)
        assert all(len(files.read(name)) == files.size(name) for name in files.names())
    retried = yard.commit(folder, DATA)
    assert (retried.number, retried.parent) == (2, old.id)
    assert [version.number for version in yard.versions(DATA)] == [2, 1]
    published = {seq: json.loads(entry) for seq, entry in bench.store.journal()}
    assert [(entry["action"], entry["version"]) for entry in published.values()] == [
        ("commit", old.id),
        ("commit", retried.id),
    ]


@pytest.mark.row(37)
def test_an_acknowledged_commit_survives_kill_9(bench: Bench) -> None:
    """A promise: once a commit has returned, killing the process changes nothing."""
    context = processes()
    mine, theirs = context.Pipe()
    folder = bench.write({"data.txt": "1"})
    process = context.Process(target=commit_and_report, args=(bench.url, bench.root, folder, theirs))
    process.start()
    assert mine.poll(60)
    acknowledged = mine.recv()
    process.join(60)
    assert process.exitcode == SIGKILLED
    made = bench.open().resolve(DATA)
    assert made.id == acknowledged
    assert bench.yard.files(made).read("data.txt") == b"1"
    assert acknowledged in dict(bench.store.journal())[1].decode()


def test_an_unpublished_entry_is_published_on_open(bench: Bench) -> None:
    """When the store fails after the transaction, the command is not acknowledged, and the next open publishes the entry."""

    class Broken(Wrapper):
        def before(self, what: str) -> None:
            if what == "journal":
                raise YardError("the store went away")

    with pytest.raises(YardError, match="went away"):
        bench.open(store=Broken(bench.store)).commit(bench.write({"data.txt": "1"}), DATA)
    assert list(bench.store.journal()) == []
    fresh = bench.open()
    assert [seq for seq, _ in bench.store.journal()] == [1]
    fresh.commit(bench.write({"data.txt": "2"}), DATA)
    catalog = Catalog(bench.url)
    with catalog.read() as connection:
        assert pending(connection) == []
    catalog.close()


def test_concurrent_commits_all_land_on_one_line(bench: Bench) -> None:
    """Four processes commit three times each to one branch: twelve versions, one unbroken line of parents."""
    context = processes()
    barrier, made = context.Barrier(4), context.Queue()
    started = []
    for worker in range(4):
        folders = [bench.write({"data.txt": f"{worker} {step}"}) for step in range(3)]
        started.append(context.Process(target=commit_many, args=(bench.url, bench.root, folders, barrier, made)))
        started[-1].start()
    numbers = sorted(made.get(timeout=60) for _ in range(12))
    for process in started:
        process.join(60)
    assert numbers == list(range(1, 13))
    found = bench.yard.versions(DATA)
    assert [version.parent for version in found] == [*(version.id for version in found[1:]), None]
