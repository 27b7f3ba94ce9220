"""Two who are at work on one yard at once, step by step, and processes that die between two steps of each other."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from modelyard import points
from modelyard.catalog import Catalog, files, segments
from modelyard.catalog.segments import SegmentRow
from modelyard.digest import Digest
from modelyard.errors import NotFoundError
from modelyard.registry import Yard, collection
from modelyard.registry import deposit as deposits
from modelyard.registry.rebuild import rebuild
from modelyard.registry.settlement import KEPT_RAW
from modelyard.store.packs import PackWriter, read_index
from registry.registry_helpers import DATA, Bench, report
from registry.segment_models import contents, folder, on_disk, outdate, tuned, weights
from services import fresh_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelyard.registry import Version


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A yard on each database."""
    if request.param == "sqlite":
        made = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
        yield made
        made.close()
        return
    with fresh_postgres() as url:
        made = Bench(tmp_path, url)
        yield made
        made.close()


class DiedError(BaseException):
    """The process was killed here; what its transaction wrote is undone, what it unlinked is not."""


def die_at(wanted: str) -> Any:
    """A hook that dies when a point is reached first."""

    def reached(point: str) -> None:
        if point == wanted:
            raise DiedError

    return points.at(reached)


def squeeze(bench: Bench, *references: str) -> Any:
    """Compact what no name holds, on a machine that computes fast enough."""
    return bench.yard.compact(references, idle_days=0, least_rate=0)


def weights_file(version: Version) -> Digest:
    """The digest of a version's weights."""
    entry = version.file("model.safetensors")
    assert entry is not None
    return entry.blake3


def twins(bench: Bench) -> tuple[tuple[Version, Path], tuple[Version, Path]]:
    """Two versions with the same tensors under other headers, both whole, both with a tag; the smaller weights' digest first."""
    found = []
    for note in ("one", "two"):
        source = folder(bench, weights(), note=note)
        version = bench.yard.commit(source, "team/model")
        bench.yard._context.store.make_whole([weights_file(version)])
        bench.yard.tag(version, note)
        found.append((version, source))
    outdate(bench)
    first, second = sorted(found, key=lambda each: weights_file(each[0]))
    return first, second


def damage(bench: Bench, area: str, digest: str, offset: int) -> None:
    """Flip a bit in a stored object, in place, as a disk does."""
    path = bench.root / area / digest[:2] / digest
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))
    path.chmod(0o444)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_whole_file_is_not_let_go_for_the_sake_of_a_damaged_copy(bench: Bench, kept: int) -> None:
    """A file whose segments lie in another whole file goes only after they were read there and are sound."""
    pair = twins(bench)
    (hot, _), (cold, source) = pair[kept], pair[1 - kept]
    bench.yard.collect(now=True, force=True)
    damage(bench, "files", weights_file(hot), hot.files[-1].size - 5)
    for ref in ("one", "two"):
        if bench.yard.resolve(f"team/model@{ref}").id == cold.id:
            bench.yard.delete(f"team/model@{ref}")
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, cold) == on_disk(source)


def test_a_copy_that_a_killed_collection_unlinked_is_not_counted_on(bench: Bench) -> None:
    """Killed between unlinking and its commit, a sweep leaves rows of a file that is gone: nothing reads it, nothing is let go for it."""
    (gone, _), (kept, source) = twins(bench)
    third = folder(bench, weights(), note="three")
    made = bench.yard.commit(third, "team/model")
    outdate(bench)
    bench.yard.delete(gone, force=True)
    for ref in ("one", "two"):
        if any(each.name == ref for each in bench.yard.refs("team/model")):
            bench.yard.delete(f"team/model@{ref}")
    with pytest.raises(DiedError), die_at("gc.unlinked"):
        bench.yard.collect(now=True, force=True)
    assert not bench.store.has_file(weights_file(gone))
    assert contents(bench.yard, made) == on_disk(third)
    assert [each for each in bench.yard.check(read_data=True).findings if each.level != "info"] == []
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, kept) == on_disk(source)
    assert contents(bench.yard, made) == on_disk(third)
    assert [each for each in bench.yard.check(read_data=True).findings if each.level != "info"] == []


def test_a_commit_hears_of_what_a_collection_unlinked_before_it_was_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is younger than the mark and older than the sweep, and it looked between the sweep's two transactions."""
    bench.data("kept", to="datasets/team/kept")
    version = bench.data("x")
    bench.yard.delete(version, force=True)
    bench.yard.collect()
    leased, swept, looked, killed = (threading.Event() for _ in range(4))
    deposited, sizes = deposits.deposit, collection._size

    def deposit(*arguments: Any, **options: Any) -> Any:
        leased.set()
        assert swept.wait(30)
        return deposited(*arguments, **options)

    def size(*arguments: Any) -> int:
        swept.set()  # `collections` was counted up, nothing is unlinked
        assert looked.wait(30)
        return sizes(*arguments)

    def reached(point: str) -> None:
        if point == "commit.stored" and not looked.is_set():
            looked.set()
            assert killed.wait(30)
        if point == "gc.unlinked":
            raise DiedError

    monkeypatch.setattr("modelyard.registry.commit.deposit", deposit)
    monkeypatch.setattr(collection, "_size", size)
    other, failed = bench.open(), list[BaseException]()

    def collect() -> None:
        assert leased.wait(30)
        try:
            other.collect(now=True, force=True, wait_seconds=0)
        except DiedError as error:
            failed.append(error)
        finally:
            looked.set()
            killed.set()

    with points.at(reached):
        thread = threading.Thread(target=collect)
        thread.start()
        made = bench.yard.commit(bench.write({"data.txt": "x"}), DATA)
        thread.join()
    assert contents(bench.yard, made) == {"data.txt": b"x"}


def test_a_damaged_pack_does_not_stop_the_rest(bench: Bench) -> None:
    """A segment of a half-dead pack that is damaged stays there and is reported; everything else moves and is compacted."""
    sources = [folder(bench, weights(seed)) for seed in range(4)]
    made = [bench.yard.commit(source, f"team/m{at}") for at, source in enumerate(sources[:3])]
    for at in range(3):
        outdate(bench, f"team/m{at}")
    squeeze(bench)
    for at in (1, 2):
        bench.yard.delete(f"team/m{at}@v1")
    bench.yard.collect(now=True, force=True)
    with bench.yard._context.catalog.read() as connection:
        names = [piece.segment for piece in files.pieces(connection, weights_file(made[0]))]
        row = max(segments.find(connection, names).values(), key=lambda row: row.length)
    assert row.pack is not None
    damage(bench, "packs", row.pack, row.offset + row.length // 2)
    other = bench.yard.commit(sources[3], "team/m3")
    outdate(bench, "team/m3")
    done = squeeze(bench)
    assert list(done.refused) == [row.digest]
    assert len(done.packs) == 2
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, other) == on_disk(sources[3])


def test_a_file_made_of_what_lies_raw_in_packs_is_described(bench: Bench) -> None:
    """All its segments are in packs of other files, which nothing shortens: its cut is in a pack all the same, for a rebuild."""
    whole = folder(bench, weights(), note="new")
    first = bench.yard.commit(whole, "team/model")
    outdate(bench)
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    file = weights_file(first)
    with bench.yard._context.catalog.read() as connection:
        row = files.find(connection, [file])[file]
        pieces = files.pieces(connection, file)
        rows = segments.find(connection, [piece.segment for piece in pieces])
    assert not row.whole
    # As if other files' packs held them, and this file were whole: nothing describes it.
    packs = {each.pack for each in rows.values() if each.pack is not None}
    with PackWriter(bench.store) as writer:
        decoder = bench.yard._context.store._decoder
        for name in rows:
            writer.add(Digest(name), rows[name].size, "raw", decoder.segment(name))
        pack, index = writer.close()
    bench.yard._context.store.make_whole([file])
    with bench.yard._context.change() as tx:
        segments.record_pack(tx, pack, bench.store.file_size(pack, area="packs"))
        segments.place_all(
            tx,
            [
                SegmentRow(str(each.digest), each.size, "raw", str(pack), each.offset, each.length, KEPT_RAW)
                for each in index.segments
            ],
        )
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert packs.isdisjoint(bench.store.digests("packs"))
    with bench.yard._context.catalog.read() as connection:
        assert not files.find(connection, [file])[file].whole
        held = segments.find(connection, rows)
    described = {
        record.digest
        for each in {row.pack for row in held.values()}
        for record in read_index(bench.store, Digest(str(each))).files
    }
    assert file in described
    assert contents(bench.yard, first) == on_disk(whole)


def test_a_report_that_a_collection_took_before_it_counted_is_stored_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing refers to a report between its bytes and its row: where a collection comes in between, it is written again."""
    version, other = bench.model(), bench.open()
    put, seen = type(bench.store).put, list[str]()

    def stored(store: Any, area: Any, data: bytes) -> Any:
        digest = put(store, area, data)
        if area == "reports" and not seen:
            seen.append(str(digest))
            other.collect(now=True, force=True)
        return digest

    monkeypatch.setattr(type(bench.store), "put", stored)
    bench.yard.add_report(version, report(version, [True, False]))
    assert seen
    assert [each["n"] for each in bench.yard.reports(version)] == [2]


def test_a_commit_during_a_check_is_no_finding(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored and committed after the store was listed is looked for before it is called missing."""
    one = bench.yard.commit(folder(bench, weights(), note="one"), "team/model")
    other, listed, made = bench.open(), type(bench.store).digests, list[object]()

    def meanwhile(store: Any, area: Any) -> Any:
        if area == "reports" and not made:  # the last area that is listed
            made.append(other.commit(folder(bench, weights(), note="two"), "team/model"))
            made.append(other.commit(folder(bench, tuned(weights())), "team/other"))
        return listed(store, area)

    monkeypatch.setattr(type(bench.store), "digests", meanwhile)
    found = bench.yard.check(read_data=True).findings
    assert len(made) == 2
    assert [each for each in found if each.level != "info"] == []
    assert one.number == 1


def test_a_rebuilt_catalog_counts_the_steps_to_a_base_in_use(bench: Bench, tmp_path: Path) -> None:
    """Deltas of segments that lie in a whole file are one step from bytes, and two the deltas of those; a check agrees."""
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    source = folder(bench, tuned(weights()))
    made = bench.yard.commit(source, "team/model", from_=[("finetuned", base)])
    bench.yard.commit(folder(bench, tuned(tuned(weights()), 5)), "team/model", from_=[("finetuned", made)])
    outdate(bench)
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    catalog = Catalog(f"sqlite:///{tmp_path / 'rebuilt.db'}")
    rebuild(bench.store, catalog)
    yard = Yard(bench.store, catalog, author="ana", links=bench.root / "links").init()
    with catalog.read() as connection:
        rows = segments.find(connection, [piece.segment for piece in files.pieces(connection, weights_file(made))])
    assert {row.depth for row in rows.values() if row.inputs} == {1}
    assert contents(yard, made.name) == on_disk(source)
    assert [each for each in yard.check(read_data=True).findings if each.level != "info"] == []
    catalog.close()


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_base_force_deleted_under_its_children_and_brought_back(bench: Bench, compacted: bool, held: bool) -> None:
    """Compact, collect at once, check: the child reads; the base comes back if the child is made from it, else by a commit."""
    below, above = folder(bench, weights()), folder(bench, tuned(weights()) if held else weights(9))
    base = bench.yard.commit(below, "team/base", kind="base")
    child = bench.yard.commit(above, "team/model", from_=[("finetuned", base)])
    outdate(bench)
    squeeze(bench)
    bench.yard.delete(base, force=True)
    if compacted:
        squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, child) == on_disk(above)
    assert [each for each in bench.yard.check(read_data=True).findings if each.level != "info"] == []
    came = _comes_back(bench, base)
    if not came:
        bench.yard.commit(below, "team/base", kind="base")
    # A child that is not like it shares the header, which keeps the whole base until a compaction moves it to a pack.
    assert came is (held or not compacted)
    assert contents(bench.yard, base) == on_disk(below)
    assert contents(bench.yard, child) == on_disk(above)
    assert [each for each in bench.yard.check(read_data=True).findings if each.level != "info"] == []


def _comes_back(bench: Bench, version: Version) -> bool:
    try:
        bench.yard.undelete(version)
    except NotFoundError:
        return False
    return True


def test_v1_a_v2_b_v3_a(bench: Bench) -> None:
    """A, then B, then A again: one set of bytes for v1 and v3, deltas one way, and all three read after everything."""
    a, b = folder(bench, weights()), folder(bench, tuned(weights()))
    one, two, three = (bench.yard.commit(each, "team/model") for each in (a, b, a))
    assert [one.number, two.number, three.number] == [1, 2, 3]
    assert one.id != three.id
    outdate(bench)
    for _ in range(2):
        squeeze(bench)
        bench.yard.collect(now=True, force=True)
        assert [contents(bench.yard, each) for each in (one, two, three)] == [on_disk(a), on_disk(b), on_disk(a)]
    bench.yard.delete(two, force=True)
    bench.yard.delete(one, force=True)
    bench.yard.collect(now=True, force=True)
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, three) == on_disk(a)
    assert [each for each in bench.yard.check(read_data=True).findings if each.level != "info"] == []
