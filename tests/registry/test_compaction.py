"""Compaction: fewer bytes, the same bits, whatever happens meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelyard.catalog import Catalog, files, segments
from modelyard.errors import ConflictError, InputError
from modelyard.points import at
from modelyard.registry.compaction import compact
from modelyard.registry.decoding import MAX_DEPTH
from modelyard.store.packs import read_index
from modelyard.weights.merge import merge_lora
from registry.segment_models import contents, folder, on_disk, outdate, tuned, weights
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelyard.catalog.segments import SegmentRow
    from modelyard.registry import Version
    from modelyard.registry.savings import Compaction
    from registry.registry_helpers import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def merge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real `base`, a real `adapter` of it, and `merged` by `lora/1`."""
    import torch

    from modelyard.weights import FolderFiles

    made = tmp_path_factory.mktemp("merge")
    base = save_model(made / "base", make_llama(hidden_size=128, intermediate_size=256).to(torch.bfloat16))
    adapter = save_adapter(made / "adapter", base)
    merge_lora(FolderFiles(base), FolderFiles(adapter), made / "merged")
    return made


@pytest.fixture
def rows(bench: Bench) -> Iterator[Any]:
    """Asks the catalog how a version's weights are kept: by segment, in order."""
    catalog = Catalog(bench.url)

    def ask(version: Version, path: str = "model.safetensors") -> list[SegmentRow]:
        entry = version.file(path)
        assert entry is not None
        with catalog.read() as connection:
            names = [piece.segment for piece in files.pieces(connection, entry.blake3)]
            found = segments.find(connection, names)
        return [found[name] for name in names]

    yield ask
    catalog.close()


def squeeze(bench: Bench, *references: str, **options: Any) -> Compaction:
    """Compact everything that no name holds, on a machine that computes fast enough."""
    return bench.yard.compact(references, idle_days=0, least_rate=0, **options)


def encodings(found: list[SegmentRow]) -> set[str | None]:
    """How segments are kept."""
    return {row.encoding for row in found}


def commit_merge(bench: Bench, merge: Path) -> tuple[Version, Version, Version]:
    """The base, its adapter and their merge as versions; nothing names the merge any more."""
    base = bench.yard.commit(merge / "base", "team/base", kind="base")
    adapter = bench.yard.commit(merge / "adapter", "team/adapter", kind="adapter", from_=[("finetuned", base)])
    merged = bench.yard.commit(
        merge / "merged", "team/model", kind="merged", from_=[("merged", adapter), ("merged", base)]
    )
    outdate(bench)
    return base, adapter, merged


def test_a_merged_version_costs_what_its_adapter_costs(bench: Bench, merge: Path) -> None:
    """Beside its stored base and adapter, a merge takes at most 1 % of its size, and reads bit for bit as it was."""
    _, _, merged = commit_merge(bench, merge)
    done = squeeze(bench)
    assert done.segments == {"derived": 4}  # q_proj and v_proj of two layers
    assert done.packs_size <= 0.01 * merged.size
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, merged) == on_disk(merge / "merged")
    assert bench.yard.usage("team/model@v1").repos[0].versions[0].unique <= 0.01 * merged.size


def test_after_a_compaction_everything_reads_checks_out_and_loads_as_before(
    any_bench: Bench, merge: Path, tmp_path: Path
) -> None:
    """Files, checkout and load give the same bits from segments as from the whole file; on both databases."""
    bench = any_bench
    bench.yard.commit(merge / "base", "team/base", kind="base")
    merged = bench.yard.commit(merge / "merged", "team/model", kind="merged")
    outdate(bench)
    outdate(bench, "team/base")
    done = squeeze(bench)
    assert done.files > 0
    bench.yard.collect(now=True, force=True)
    for version, source in (("team/base@v1", "base"), ("team/model@v1", "merged")):
        assert contents(bench.yard, version) == on_disk(merge / source)
    bench.yard.checkout(merged, tmp_path / "out")
    assert on_disk(tmp_path / "out") == on_disk(merge / "merged")
    model = bench.yard.load("team/base@v1")
    assert model.generate("where is my card", max_new_tokens=2) is not None


def test_a_fine_tune_is_a_delta_of_its_base(bench: Bench, rows: Any) -> None:
    """Tensors of the same name, dtype and shape as in the base are kept as deltas of the base's, which stay raw while it is in use."""
    base_folder = folder(bench, weights())
    base = bench.yard.commit(base_folder, "team/base", kind="base")
    tuned_folder = folder(bench, tuned(weights()))
    made = bench.yard.commit(tuned_folder, "team/model", kind="finetuned", from_=[("finetuned", base)])
    outdate(bench)
    done = squeeze(bench)
    found = rows(made)
    assert [row.encoding for row in found[1:]] == ["delta", "delta", "delta", "delta"]
    assert [row.inputs for row in found[1:]] == [(row.digest,) for row in rows(base)[1:]]
    assert encodings(rows(base)) == {None}
    assert done.after["delta"] < 0.75 * (made.size - 1000)
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, made) == on_disk(tuned_folder)


def test_a_lone_model_is_packed_and_noise_stays_raw(bench: Bench, rows: Any) -> None:
    """Weights without relatives are packed; bytes that nothing makes smaller are kept as they are, and are not tried again."""
    import numpy as np

    made = bench.yard.commit(folder(bench, weights()), "team/model", kind="base")
    outdate(bench)
    noise = np.random.default_rng(0).bytes(100_000)
    data = bench.yard.commit(bench.write({"noise.bin": noise}), "datasets/team/noise")
    outdate(bench, "datasets/team/noise")
    assert squeeze(bench).after.keys() == {"packed", "raw"}
    assert "packed" in encodings(rows(made))
    assert encodings(rows(data, "noise.bin")) == {"raw"}
    again = squeeze(bench)
    assert (again.segments, again.files, again.packs) == ({}, 0, ())


def test_versions_in_use_stay_whole(bench: Bench, rows: Any) -> None:
    """What a name holds, or somebody used lately, is left alone; naming it is refused with the reason."""
    made = bench.model()
    kept = bench.yard.commit(folder(bench, weights()), "team/other")
    assert squeeze(bench).segments == {}
    assert encodings(rows(kept)) == {None}
    with pytest.raises(ConflictError, match="in use: branch `main`"):
        squeeze(bench, made.name)
    outdate(bench, "team/other")
    list(contents(bench.yard, kept))
    bench.yard.checkout(kept, bench.folder / "out")
    with pytest.raises(ConflictError, match="used at"):
        bench.yard.compact([kept], idle_days=7)
    with pytest.raises(InputError, match="idle"):
        bench.yard.compact(idle_days=-1)


def test_a_dry_run_changes_nothing_and_says_what_it_would_save(bench: Bench, rows: Any) -> None:
    """A dry run encodes everything: its bytes are those of the real one."""
    made = bench.yard.commit(folder(bench, weights()), "team/model")
    outdate(bench)
    packs = list(bench.store.digests("packs"))
    dry = squeeze(bench, dry_run=True)
    assert list(bench.store.digests("packs")) == packs
    assert encodings(rows(made)) == {None}
    real = squeeze(bench)
    assert dry.dry_run
    assert not real.dry_run
    assert (dry.segments, dry.after, dry.before, dry.files) == (real.segments, real.after, real.before, real.files)
    assert dry.saved > 0


def test_only_the_versions_that_were_named_are_compacted(bench: Bench, rows: Any) -> None:
    """With references, nothing else is touched."""
    one = bench.yard.commit(folder(bench, weights(1)), "team/one")
    two = bench.yard.commit(folder(bench, weights(2)), "team/two")
    outdate(bench, "team/one")
    outdate(bench, "team/two")
    squeeze(bench, "team/one@v1")
    assert encodings(rows(one)) != {None}
    assert encodings(rows(two)[1:]) == {None}  # the header is the same in both


def test_a_pack_has_a_bound_and_each_says_how_its_files_are_cut(bench: Bench, rows: Any) -> None:
    """Large compactions write several packs; some pack that holds a segment of a file says how that file is cut."""
    made = bench.yard.commit(folder(bench, weights()), "team/model")
    outdate(bench)
    done = compact(bench.yard._context, idle_days=0, pack_bytes=20_000)
    assert len(done.packs) > 1
    assert done.files == len(made.files)
    entry = made.file("model.safetensors")
    assert entry is not None
    described = {row.pack for row in rows(made)}
    cuts = [file for pack in described for file in read_index(bench.store, pack).files if file.digest == entry.blake3]
    assert cuts
    assert all(list(file.segments) == [row.digest for row in rows(made)] for file in cuts)
    bench.yard.collect(now=True, force=True)
    bench.yard.files(made).read("model.safetensors")


def test_the_same_bytes_again_need_nothing_but_a_header(bench: Bench, rows: Any) -> None:
    """A file that differs from one in use by its header alone is let go for the price of the header."""
    bench.yard.commit(folder(bench, weights()), "team/kept")
    renamed = folder(bench, weights(), note="renamed")
    made = bench.yard.commit(renamed, "team/model")
    outdate(bench)
    done = squeeze(bench)
    assert sum(done.after.values()) < 1000
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, made) == on_disk(renamed)
    assert encodings(rows(made)[1:]) == {None}  # they lie in the file that stays whole


def test_deltas_both_ways_make_no_ring(bench: Bench, rows: Any) -> None:
    """v1 = A, v2 = B, v3 = A: whatever is chosen, no segment is made from itself, and all three read."""
    a, b = folder(bench, weights()), folder(bench, tuned(weights()))
    made = [bench.yard.commit(source, "team/model") for source in (a, b)]
    made.append(bench.yard.commit(folder(bench, weights()), "team/model", branch="other"))
    outdate(bench)
    bench.yard.delete("team/model@other", force=True)
    squeeze(bench)
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    for version, source in zip(made, (a, b, a), strict=True):
        assert contents(bench.yard, version) == on_disk(source)
    for row in rows(made[0]) + rows(made[1]):
        assert row.depth <= 1
        assert row.digest not in row.inputs


def test_a_line_of_versions_stays_within_four_steps(bench: Bench, rows: Any) -> None:
    """Ten versions, each compacted as soon as the next is there: no way through inputs is longer than the bound."""
    line, made = weights(), []
    for step in range(10):
        made.append((bench.yard.commit(folder(bench, line), "team/model"), line))
        line = tuned(line, step)
        squeeze(bench)
    bench.yard.collect(now=True, force=True)
    depths = [row.depth for version, _ in made for row in rows(version)]
    assert max(depths) <= MAX_DEPTH
    assert max(depths) >= 1
    for version, tensors in made:
        assert contents(bench.yard, version) == on_disk(folder(bench, tensors))


def test_two_hosts_compact_one_segment_against_different_bases(bench: Bench, rows: Any) -> None:
    """The first to record wins; the other one's segments are left as they are, and everything reads."""
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    source = folder(bench, tuned(weights()))
    made = bench.yard.commit(source, "team/model", from_=[("finetuned", base)])
    bench.yard.commit(folder(bench, tuned(weights(), 2)), "team/model")
    other, seen = bench.open(), list[str]()

    def meanwhile(point: str) -> None:
        if point == "compact.verified" and not seen:
            seen.append(point)
            bench.yard.delete("team/base@v1", force=True)  # so the other host finds another delta base
            other.compact(idle_days=0, least_rate=0)

    with at(meanwhile):
        first = squeeze(bench)
    assert set(first.refused.values()) == {"somebody else moved it meanwhile"}
    assert {row.inputs for row in rows(made)[1:]}.isdisjoint({(row.digest,) for row in rows(base)[1:]})
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, made) == on_disk(source)


def test_two_hosts_with_deltas_both_ways_make_no_ring(bench: Bench, rows: Any) -> None:
    """One host makes A from B while the other one made B from A: the second is refused, and both read."""
    a, b = folder(bench, weights()), folder(bench, tuned(weights()))
    one, two = bench.yard.commit(a, "team/model"), bench.yard.commit(b, "team/model")
    outdate(bench)
    other, seen = bench.open(), list[str]()

    def meanwhile(point: str) -> None:
        if point == "compact.verified" and not seen:
            seen.append(point)
            other.compact([two], idle_days=0)

    with at(meanwhile):
        done = squeeze(bench, one.name)
    assert any("made from itself" in why for why in done.refused.values())
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, one) == on_disk(a)
    assert contents(bench.yard, two) == on_disk(b)


def test_an_input_that_was_collected_meanwhile_is_not_counted_on(bench: Bench, rows: Any) -> None:
    """When a collection removed a delta base before the pack counts, its segments stay as they are."""
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    source = folder(bench, tuned(weights()))
    made = bench.yard.commit(source, "team/model", from_=[("finetuned", base)])
    outdate(bench)
    entry = base.file("model.safetensors")
    assert entry is not None

    def meanwhile(point: str) -> None:
        if point == "compact.verified":
            with bench.yard._context.change() as tx:
                tx.next("collections")
                bench.store.remove("files", entry.blake3)

    with at(meanwhile):
        done = squeeze(bench, made.name)
    assert len(done.refused) == 4
    assert all("is gone" in why for why in done.refused.values())
    assert encodings(rows(made)[1:]) == {None}
    assert contents(bench.yard, made) == on_disk(source)


def test_a_version_that_came_into_use_meanwhile_stays_whole(bench: Bench) -> None:
    """A tag that is given before the pack counts keeps the file whole; its segments count all the same."""
    source = folder(bench, weights())
    made = bench.yard.commit(source, "team/model")
    outdate(bench)

    def meanwhile(point: str) -> None:
        if point == "compact.verified":
            bench.yard.tag(made, "release")

    with at(meanwhile):
        done = squeeze(bench)
    assert done.segments
    assert not done.files
    bench.yard.collect(now=True, force=True)
    assert all(bench.store.has_file(entry.blake3) for entry in made.files)
    assert contents(bench.yard, made) == on_disk(source)


def test_a_base_force_deleted_under_derived_children_keeps_working(bench: Bench, merge: Path) -> None:
    """Its bytes stay as long as something is made from them, `usage` says what, and once that is gone they go."""
    base, _, merged = commit_merge(bench, merge)
    squeeze(bench)
    bench.yard.delete(base.name, force=True)
    bench.yard.delete("team/adapter@v1", force=True)
    for _ in range(2):
        bench.yard.collect(now=True, force=True)
        assert contents(bench.yard, merged) == on_disk(merge / "merged")
        squeeze(bench)
    line = bench.yard.usage(base.name).repos[0].versions[0]
    assert line.deleted
    assert 0 < line.stored <= base.size
    assert any("of `team/model@v1` are made from it" in holder for holder in line.held_by)
    stored = bench.yard.usage().stored
    freed = bench.yard.usage(merged.name).repos[0].versions[0].freed
    bench.yard.delete(merged.name)
    bench.yard.collect(now=True, force=True)
    left = bench.yard.usage()
    assert left.garbage == 0
    assert stored - left.stored >= freed > 0


def test_a_pack_more_than_half_dead_is_written_anew(bench: Bench, rows: Any) -> None:
    """What is live in it moves to a new pack, as it is; the old pack is garbage then."""
    made = [
        (bench.yard.commit(source, f"team/m{at}"), source) for at in range(3) for source in [folder(bench, weights(at))]
    ]
    for number in range(3):
        outdate(bench, f"team/m{number}")
    squeeze(bench)
    before = {row.pack for row in rows(made[0][0])}
    for number in (1, 2):
        bench.yard.delete(f"team/m{number}@v1")
    bench.yard.collect(now=True, force=True)
    assert bench.yard.usage().dead > 0
    done = squeeze(bench)
    assert len(done.packs) == 1
    assert before.isdisjoint({row.pack for row in rows(made[0][0])})
    bench.yard.collect(now=True, force=True)
    assert before.isdisjoint(bench.store.digests("packs"))
    assert bench.yard.usage().dead == 0
    assert contents(bench.yard, made[0][0]) == on_disk(made[0][1])


def test_one_damaged_segment_does_not_stop_the_rest(bench: Bench, rows: Any) -> None:
    """It is named, its file stays whole, and every other file is compacted."""
    hurt = bench.yard.commit(folder(bench, weights(1)), "team/hurt")
    fine = bench.yard.commit(folder(bench, weights(2)), "team/fine")
    outdate(bench, "team/hurt")
    outdate(bench, "team/fine")
    entry = hurt.file("model.safetensors")
    assert entry is not None
    path = bench.store.file_path(entry.blake3)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    done = squeeze(bench)
    assert list(done.refused) == [rows(hurt)[-1].digest]
    assert rows(hurt)[-1].encoding is None
    assert None not in encodings(rows(fine))


def test_a_file_that_nobody_cut_is_cut_first(bench: Bench, rows: Any) -> None:
    """Files from before there were segments are cut by the compaction that meets them."""
    from sqlalchemy import text

    source = folder(bench, weights())
    made = bench.yard.commit(source, "team/model")
    outdate(bench)
    with bench.yard._context.change() as tx:
        tx.connection.execute(text("DELETE FROM file_segments"))
        tx.connection.execute(text("UPDATE files SET cut = NULL"))
    squeeze(bench)
    assert None not in encodings(rows(made))
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, made) == on_disk(source)


def test_an_operation_that_is_too_slow_here_is_not_used(bench: Bench, merge: Path) -> None:
    """A machine that cannot compute fast enough keeps deltas instead; the measure is this machine's own."""
    _, _, merged = commit_merge(bench, merge)
    done = bench.yard.compact(idle_days=0, least_rate=1e15)
    assert "derived" not in done.segments
    assert done.segments["delta"] == 4
    assert contents(bench.yard, merged) == on_disk(merge / "merged")


def test_progress_ends_at_everything(bench: Bench) -> None:
    """Progress counts the bytes of the files that are taken up, to the last one."""
    bench.yard.commit(folder(bench, weights()), "team/model")
    outdate(bench)
    seen: list[tuple[int, int]] = []
    squeeze(bench, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_dead_file_that_one_live_segment_is_left_in_is_let_go(bench: Bench) -> None:
    """A deleted version's whole file, whose header another file shares, goes after a compaction, and the other reads as before."""
    dead = bench.yard.commit(folder(bench, weights(1)), "team/dead")
    outdate(bench, "team/dead")
    source = folder(bench, weights(2))
    made = bench.yard.commit(source, "team/model")
    bench.yard.delete(dead.name)
    entry = dead.file("model.safetensors")
    assert entry is not None
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert not bench.store.has_file(entry.blake3)
    assert contents(bench.yard, made) == on_disk(source)


def test_check_finds_nothing_wrong_after_a_compaction_and_a_collection(bench: Bench) -> None:
    """Every row agrees with its pack's index, every byte with its digest, raw segments too."""
    bench.yard.commit(bench.write({"noise.bin": bytes(range(256)) * 4}), "datasets/team/noise")
    outdate(bench, "datasets/team/noise")
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    bench.yard.commit(folder(bench, tuned(weights())), "team/model", from_=[("finetuned", base)])
    outdate(bench)
    squeeze(bench)
    bench.yard.collect(now=True, force=True)
    assert bench.yard.check(read_data=True).findings == ()
