"""Collection: what is needed stays, whoever is at work; what is not goes; and nothing that stops it half-way does harm."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard import points
from modelyard.catalog import candidates, leases
from modelyard.digest import Digest
from modelyard.errors import ConflictError, NotFoundError, YardError
from modelyard.registry import Version
from modelyard.registry import leases as registry_leases
from registry.registry_helpers import DATA, Bench, Wrapper

NOW = datetime(2026, 11, 22, tzinfo=UTC)
GC_POINTS = [point for point in points.POINTS if point.startswith("gc.")]


def stored(bench: Bench, version: Version) -> bool:
    """Whether every file of a version lies in the store."""
    return all(bench.store.has_file(each.blake3) for each in version.files)


def lease_of(bench: Bench, owner: str) -> None:
    """A lease that somebody else holds, or held."""
    with bench.yard._context.catalog.write(author="x", at=NOW) as tx:
        leases.acquire(tx, f"of {owner}", purpose="checkout", owner=owner)


def marks(bench: Bench) -> dict[candidates.Name, candidates.Candidate]:
    """Every candidate."""
    with bench.yard._context.catalog.read() as connection:
        return {(each.area, each.name): each for each in candidates.listing(connection)}


def gone(bench: Bench, text: str = "gone") -> Version:
    """A version that was committed and deleted, beside one that stays."""
    bench.data("kept", to="datasets/team/kept")
    version = bench.data(text)
    bench.yard.delete(version, force=True)
    return version


@pytest.mark.row(34, 49)
def test_what_nothing_needs_goes_after_the_grace_period(any_bench: Bench) -> None:
    """Marked first; removed when the mark is 14 days old; then the version cannot come back, and says why."""
    kept = any_bench.data("kept", to="datasets/team/kept")
    version = gone(any_bench)
    time = NOW
    yard = any_bench.open(clock=lambda: time)
    assert (yard.collect().marked, yard.collect().objects) == (1, 0)
    time += timedelta(days=13, hours=23)
    assert yard.collect().objects == 0
    assert yard.undelete(version).number == 1
    yard.delete(version, force=True)
    yard.collect()
    time += timedelta(days=14)
    done = yard.collect()
    assert (done.removed["files"], done.collected) == (1, (version.id,))
    assert not stored(any_bench, version)
    assert stored(any_bench, kept)
    with pytest.raises(NotFoundError, match="collected"):
        yard.undelete(version)
    assert yard.check(read_data=True).exit_code == 0
    assert yard.commit(any_bench.write({"data.txt": "gone"}), DATA).number == 1
    assert yard.check(read_data=True).exit_code == 0


def test_now_removes_everything_at_once(any_bench: Bench) -> None:
    """`now` takes what a collected version needed along with it: manifests and reports, in the same call."""
    version = gone(any_bench)
    done = any_bench.yard.collect(now=True)
    assert done.removed == {"files": 1, "manifests": 1}
    assert done.freed == version.size
    assert any_bench.yard.collect(now=True, dry_run=True).objects == 0


@pytest.mark.row(49)
def test_a_commit_that_counts_on_a_file_being_collected(any_bench: Bench) -> None:
    """A promise: the file was marked before the commit began and goes while it runs; the commit stores it again."""
    version = gone(any_bench)
    any_bench.yard.collect()
    collector = any_bench.open()
    removed: list[int] = []

    def collect(point: str) -> None:
        if point == "commit.stored" and not removed:
            removed.append(0)
            removed[0] = collector.collect(now=True, wait_seconds=0).removed["files"]

    with points.at(collect):
        made = any_bench.data("gone", to="datasets/team/again")
    assert removed == [1]
    assert stored(any_bench, version)
    assert any_bench.yard.files(made).read("data.txt") == b"gone"
    assert any_bench.yard.check(read_data=True).exit_code == 0


@pytest.mark.row(49)
def test_what_a_commit_stores_itself_stays(any_bench: Bench) -> None:
    """A promise: bytes that nothing refers to yet are garbage to look at, and their writer's lease keeps them."""
    any_bench.data("other")
    collector = any_bench.open()
    done: list[Any] = []

    def collect(point: str) -> None:
        if point in {"commit.stored", "commit.manifest"} and len(done) < 2:
            done.append(None)
            done[-1] = collector.collect(now=True, wait_seconds=0, force=True)

    with points.at(collect):
        made = any_bench.data("mine")
    assert [each.objects for each in done] == [0, 0]
    assert [each.purpose for each in done[0].waiting] == ["commit"]
    assert any_bench.yard.files(made).read("data.txt") == b"mine"


@pytest.mark.row(49)
def test_a_long_checkout_during_gc_now(any_bench: Bench) -> None:
    """A promise: `now` waits for whoever began before it, says so, and goes on when they have finished."""
    version = gone(any_bench)
    told = threading.Event()
    results: list[Any] = []
    collector = any_bench.open()
    thread = threading.Thread(
        target=lambda: results.append(collector.collect(now=True, progress=lambda _text: told.set()))
    )
    with any_bench.yard.lease("checkout"):
        thread.start()
        assert told.wait(30)
        assert stored(any_bench, version)
        assert not results
    thread.join(30)
    assert results[0].objects == 2
    assert not stored(any_bench, version)


@pytest.mark.row(48, 49)
def test_a_lease_of_a_dead_process_keeps_nothing(any_bench: Bench) -> None:
    """A process of this machine that has ended is not waited for, and its lease is taken away."""
    host, pid, _ = registry_leases.owner().split(":")
    gone(any_bench)
    lease_of(any_bench, f"{host}:{pid}:long ago")
    assert any_bench.yard.collect(now=True).objects == 2
    with any_bench.yard._context.catalog.read() as connection:
        assert leases.listing(connection) == []


@pytest.mark.row(49, 51)
def test_a_lease_on_another_host_is_waited_for(any_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here can tell whether it lives: it keeps what it may need until its heartbeat was seen to stand still."""
    version = gone(any_bench)
    lease_of(any_bench, "elsewhere:1:2")
    done = any_bench.yard.collect(now=True, wait_seconds=0)
    assert (done.objects, [each.owner for each in done.waiting]) == (0, ["process 1 on elsewhere"])
    assert stored(any_bench, version)
    with any_bench.yard._context.catalog.read() as connection:
        assert leases.listing(connection)[0].observed_seq is not None
    monkeypatch.setattr(registry_leases, "SILENT_SECONDS", 0.0)
    assert any_bench.yard.collect(now=True).objects == 2
    with any_bench.yard._context.catalog.read() as connection:
        assert leases.listing(connection) == []


@pytest.mark.row(34, 49)
def test_what_a_deployment_serves_stays(any_bench: Bench) -> None:
    """A version that was deleted by force while it is served keeps its bytes until the deployment is dropped."""
    any_bench.data("kept", to="datasets/team/kept")
    version = any_bench.data("served")
    deployment = any_bench.yard.record_deployment(version.name, version)
    any_bench.yard.delete(version, force=True)
    assert any_bench.yard.collect(now=True).objects == 0
    any_bench.yard.drop_deployment(deployment.id)
    assert any_bench.yard.collect(now=True).objects == 2


@pytest.mark.row(49)
def test_a_mark_does_not_outlive_the_need_for_its_object(any_bench: Bench) -> None:
    """Marked, committed again, read, and deleted once more while it is read: the reader is younger than the first mark only."""
    version = gone(any_bench)
    any_bench.yard.collect()
    before = marks(any_bench)["files", version.files[0].blake3]
    again = any_bench.data("gone")
    with any_bench.yard.lease("checkout"):
        any_bench.yard.delete(again, force=True)
        assert any_bench.yard.collect(now=True, wait_seconds=0).objects == 0
        assert stored(any_bench, again)
        assert marks(any_bench)["files", version.files[0].blake3].marked_seq > before.marked_seq
    assert any_bench.yard.collect(now=True).objects == 2


@pytest.fixture
def derived(any_bench: Bench) -> tuple[Bench, Version, Version, bytes]:
    """A base and a fine-tune that is kept as deltas of it, under a head that is whole."""

    def folder(scale: float) -> Path:
        made = any_bench.write({"config.json": '{"model_type": "llama"}'})
        tensor = np.random.default_rng(1).standard_normal((200, 300), dtype=np.float32)
        noise = np.random.default_rng(2).standard_normal((200, 300), dtype=np.float32)
        save_file({"w": tensor + noise * np.float32(scale)}, made / "model.safetensors")
        return made

    base = any_bench.yard.commit(folder(0), "team/model", kind="base")
    tuned = any_bench.yard.commit(folder(1e-6), "team/model", kind="finetuned", from_=base)
    any_bench.data("head", to="datasets/team/head")
    any_bench.yard.commit(any_bench.write({"note.txt": "head"}), "team/model", kind="finetuned")
    any_bench.yard.compact(idle_days=0)
    return any_bench, base, tuned, (any_bench.folder / "in2" / "model.safetensors").read_bytes()


@pytest.mark.row(34)
def test_a_base_force_deleted_under_derived_children(derived: tuple[Bench, Version, Version, bytes]) -> None:
    """A promise: deleting a base, forced or not, removes its name and no byte that something live is made from."""
    bench, base, tuned, data = derived
    bench.yard.delete(base, force=True)
    done = bench.yard.collect(now=True, force=True)
    assert done.removed["files"] > 0
    assert bench.yard.files(tuned).read("model.safetensors") == data
    assert bench.yard.check(read_data=True).exit_code == 0
    bench.yard.delete(tuned, force=True)
    bench.yard.collect(now=True, force=True)
    assert list(bench.store.digests("packs")) == []
    assert bench.yard.check(read_data=True).exit_code == 0


@pytest.mark.row(37, 50)
@pytest.mark.parametrize("point", GC_POINTS)
def test_a_collection_that_is_interrupted_goes_on_later(bench: Bench, point: str) -> None:
    """At every point: what is live reads, `check` is clean, and the next collection finishes the work."""
    version = gone(bench)

    class StoppedError(Exception):
        """Stops here."""

    def stop(name: str) -> None:
        if name == point:
            raise StoppedError

    with points.at(stop), pytest.raises(StoppedError):
        bench.yard.collect(now=True)
    assert bench.yard.check(read_data=True).exit_code == 0
    bench.open().collect(now=True)
    assert not stored(bench, version)
    assert bench.yard.check(read_data=True).exit_code == 0
    assert bench.yard.collect(now=True, dry_run=True).objects == 0


@pytest.mark.row(50)
def test_most_of_a_yard_goes_only_when_told_to(bench: Bench) -> None:
    """More than half of more than twenty objects is refused; nothing goes; `force` means it."""
    for number in range(12):
        bench.data(str(number))
    for number in range(1, 13):
        bench.yard.delete(f"{DATA}@v{number}", force=True)
    for number in range(2):
        bench.store.put_file([b"left by an interrupted commit %d" % number])
    before = {area: list(bench.store.digests(area)) for area in ("files", "manifests")}
    with pytest.raises(ConflictError, match="14 of the yard's 26 objects") as caught:
        bench.yard.collect(now=True)
    assert caught.value.code == "too_much"
    assert {area: list(bench.store.digests(area)) for area in ("files", "manifests")} == before
    assert bench.yard.collect(now=True, force=True).objects == 26


@pytest.mark.row(50)
def test_a_listing_that_fails_aborts(bench: Bench) -> None:
    """Half a listing is none: nothing is marked and nothing goes."""

    class Unlisted(Wrapper):
        def digests(self, area: Any) -> Iterator[Digest]:
            yield from self.inner.digests(area)
            if area == "manifests":
                raise YardError("the store went away")

    version = gone(bench)
    with pytest.raises(YardError, match="went away"):
        bench.open(store=Unlisted(bench.store)).collect(now=True)
    assert marks(bench) == {}
    assert stored(bench, version)


@pytest.mark.row(45)
def test_a_catalog_from_an_older_backup_collects_nothing(bench: Bench) -> None:
    """While the journal tells of changes that the catalog does not know, what is unknown may be what was lost."""
    version = gone(bench)
    last = max(seq for seq, _ in bench.store.journal())
    bench.store.publish_journal(last + 1, b'{"action":"commit"}')
    with pytest.raises(ConflictError, match="older backup") as caught:
        bench.yard.collect(now=True, force=True)
    assert caught.value.code == "catalog_behind"
    assert stored(bench, version)


@pytest.mark.row(51)
def test_marks_from_the_future_are_made_anew(bench: Bench) -> None:
    """A clock that was ten years ahead does not keep garbage for ten years, and is told of."""
    gone(bench)
    bench.open(clock=lambda: NOW + timedelta(days=3650)).collect()
    time = NOW
    yard = bench.open(clock=lambda: time)
    assert [finding.code for finding in yard.check().findings if finding.code == "future_mark"] == ["future_mark"]
    done = yard.collect()
    assert (done.future, done.objects) == (1, 0)
    time += timedelta(days=14)
    assert yard.collect().objects == 1


def test_a_dry_run_changes_nothing(bench: Bench) -> None:
    """It says what would go, and leaves marks, rows and objects as they are."""
    version = gone(bench)
    planned = bench.yard.collect(now=True, dry_run=True)
    assert (planned.removed, planned.freed, planned.dry_run) == ({"files": 1}, version.size, True)
    assert marks(bench) == {}
    assert bench.yard.undelete(version).number == 1


def test_folders_beside_the_store_go_too(bench: Bench) -> None:
    """Links of versions that are gone, scratch whose lock is free, and leftovers of dead writers; nothing that is in use."""
    kept = bench.data("kept", to="datasets/team/kept")
    version = bench.data("gone")
    folders = [bench.yard.folder(each) for each in (kept, version)]
    bench.yard.delete(version, force=True)
    for name in ("free", "unknown"):
        (bench.root / "runs" / "scratch" / name).mkdir(parents=True)
    (bench.root / "runs" / "locks").mkdir()
    (bench.root / "runs" / "locks" / "free.lock").touch()
    (bench.root / "tmp" / ("0" * 32)).touch()
    done = bench.yard.collect(now=True)
    assert done.removed == {"tmp": 1, "scratch": 1, "links": 1, "files": 1, "manifests": 1}
    assert [folder.exists() for folder in folders] == [True, False]
    assert [path.name for path in (bench.root / "runs" / "scratch").iterdir()] == ["unknown"]
    assert done.left == 1


def test_deleting_one_of_several_with_an_equal_header_frees_its_bytes(any_bench: Bench) -> None:
    """A header that two whole files share keeps neither for the other: `du` says what goes, and it goes."""
    rng = np.random.default_rng(5)
    made = []
    for repo in ("team/one", "team/two"):
        folder = any_bench.write({"config.json": json.dumps({"model_type": "llama"})})
        save_file({"weight": rng.standard_normal((160, 160), dtype=np.float32)}, folder / "model.safetensors")
        made.append(any_bench.yard.commit(folder, repo, kind="base"))
    one, two = (version.file("model.safetensors") for version in made)
    assert one is not None
    assert two is not None
    freed = {repo.name: repo.freed for repo in any_bench.yard.usage().repos}
    assert freed["team/one"] >= one.size
    any_bench.yard.delete(made[0].name, force=True)
    done = any_bench.yard.collect(now=True, force=True)
    assert not any_bench.store.has_file(one.blake3)
    assert any_bench.store.has_file(two.blake3)
    assert done.freed >= one.size
    assert [finding for finding in any_bench.yard.check(read_data=True).findings if finding.level != "info"] == []
