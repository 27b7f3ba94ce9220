"""A lost catalog comes back: table by table what it was, but for what the page in `docs/design/catalog.md` names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import select

from modelyard.catalog import Catalog, schema
from modelyard.errors import ConflictError, IntegrityError
from modelyard.registry import Yard
from modelyard.registry.rebuild import Rebuilt, rebuild
from registry.registry_helpers import DATA, Bench, report

# What does not come back, or not as it was: see "Rebuild" in docs/design/catalog.md.
LEFT_OUT = {"deployments", "leases", "candidates", "outbox", "file_segments", "segments", "segment_inputs"}
COLUMNS_LEFT_OUT = {"files": {"cut", "used_at", "nonfinite"}, "runs": {"seq"}}
COUNTERS_LEFT_OUT = {"lease", "collections", "run", "deployment"}


def tables(catalog: Catalog) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that must come back, sorted."""
    found = {}
    with catalog.read() as connection:
        for table in schema.metadata.sorted_tables:
            if table.name in LEFT_OUT or table.name == "alembic_version":
                continue
            columns = [each for each in table.c if each.name not in COLUMNS_LEFT_OUT.get(table.name, set())]
            query = select(*columns)
            if table.name in {"versions", "version_files", "lineage"}:
                # Of a version whose manifest was collected only what the journal says of it is left.
                seq = table.c.seq if table.name == "versions" else table.c.version_seq
                gone = select(schema.versions.c.seq).where(schema.versions.c.deleted == 2)
                query = query.where(seq.not_in(gone))
            rows = [tuple(row) for row in connection.execute(query)]
            if table.name == "counters":
                rows = [row for row in rows if row[0] not in COUNTERS_LEFT_OUT]
            found[table.name] = sorted(rows, key=repr)
    return found


@pytest.fixture
def lost(any_bench: Bench, tmp_path: Path) -> Iterator[tuple[Bench, Catalog]]:
    """A yard with something of everything, and a fresh catalog."""
    fill(any_bench)
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.db'}")
    yield any_bench, fresh
    fresh.close()


def big(bench: Bench, values: dict[str, float]) -> Path:
    """A model folder whose weights are large enough to be cut at tensors."""
    folder = bench.write({"config.json": '{"model_type": "llama"}'})
    tensors = {
        name: np.full((200, 200), value, np.float32) + np.arange(40_000, dtype=np.float32).reshape(200, 200)
        for name, value in values.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def fill(bench: Bench) -> None:
    """Commits, branches, tags, promotions, a rollback, gates, reports, runs, deletions, a collection."""
    yard = bench.yard
    data = bench.data("rows")
    base = bench.model(1.0, "team/base", metadata={"licence": "mit", "note": "mine"}, message="the base")
    made = [bench.model(value, kind="finetuned", from_=[base, data]) for value in (2.0, 3.0, 4.0, 5.0)]
    yard.tag(made[0], "first")
    yard.branch(made[1], "side")
    bench.model(6.0, branch="side", from_=base)
    for each in made[:3]:
        yard.promote(each, "production")
    yard.rollback("team/model", "production")
    yard.set_gate("team/model", "staging", {"metric": "accuracy", "min": 0.5})
    yard.add_report(made[2], report(made[2], [True, False], data))
    yard.tag(made[2], "wrong")
    yard.delete("team/model@wrong")
    bench.data("1", to="datasets/team/other")
    gone = bench.data("2", to="datasets/team/other")
    bench.data("3", to="datasets/team/other")
    yard.delete(gone, force=True)
    yard.delete(made[3], force=True)
    yard.start_run("k1", step="train", inputs={"a": 1})
    yard.finish_run("k1", {"version": "team/model@v1"})
    yard.start_run("k2", step="train")
    yard.fail_run("k2", "it failed")
    yard.collect(now=True, force=True)
    yard.delete("datasets/team/other@v3", force=True)
    yard.undelete("datasets/team/other@v3")


def again(bench: Bench, fresh: Catalog, **options: Any) -> Rebuilt:
    """Rebuild into the fresh catalog."""
    return rebuild(bench.store, fresh, **options)


@pytest.mark.row(44)
def test_a_lost_catalog_is_rebuilt(lost: tuple[Bench, Catalog]) -> None:
    """A promise: repos, numbers, refs, stacks, gates, lineage, reports, metadata, runs, deletions and the log come back."""
    bench, fresh = lost
    before = tables(bench.yard._context.catalog)
    done = again(bench, fresh)
    after = tables(fresh)
    assert done.problems == ()
    for table, rows in before.items():
        assert after[table] == rows, table
    assert done.entries == len(before["audit"])


@pytest.mark.row(44)
def test_a_rebuilt_yard_goes_on(lost: tuple[Bench, Catalog]) -> None:
    """Versions read, a check is clean, a rollback goes where it would have gone, and numbers go on after the last one."""
    bench, fresh = lost
    again(bench, fresh)
    yard = Yard(bench.store, fresh, author="ana").open()
    assert yard.check(read_data=True).exit_code == 0
    assert yard.rollback("team/model", "production").version.number == 1
    for repo in yard.repos():
        for version in yard.versions(f"datasets/{repo.name}" if repo.repo_type == "dataset" else repo.name):
            files = yard.files(version)
            assert all(len(files.read(name)) == files.size(name) for name in files.names())
    assert yard.commit(bench.write({"data.txt": "new"}), "datasets/team/other").number == 4
    assert yard.commit(bench.model_folder(9.0), "team/model").number == 6


def test_collected_versions_keep_their_numbers(lost: tuple[Bench, Catalog]) -> None:
    """A version whose bytes and manifest are gone is known to have been there, and cannot come back."""
    bench, fresh = lost
    again(bench, fresh)
    yard = Yard(bench.store, fresh, author="ana").open()
    numbers = {version.number: version.deleted for version in yard.versions("datasets/team/other", deleted=True)}
    assert numbers == {3: False, 2: True, 1: False}


def test_files_in_packs_come_back(any_bench: Bench, tmp_path: Path) -> None:
    """Files that are not whole are put together from packs, and from whole files that are cut again for it."""
    values = {f"t{at}": float(at) for at in range(6)}
    any_bench.yard.commit(big(any_bench, values), "team/model", kind="base")
    second = any_bench.yard.commit(big(any_bench, values | {"t0": 9.0}), "team/model", kind="base")
    with any_bench.yard._context.catalog.read() as connection:
        whole = {
            row.digest: row.whole for row in connection.execute(select(schema.files.c.digest, schema.files.c.whole))
        }
    scattered = [digest for digest, is_whole in whole.items() if not is_whole]
    assert scattered, "the second model should share all but one tensor with the first"
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.db'}")
    again(any_bench, fresh)
    with fresh.read() as connection:
        found = {
            row.digest: row.whole for row in connection.execute(select(schema.files.c.digest, schema.files.c.whole))
        }
    assert found == whole
    yard = Yard(any_bench.store, fresh, author="ana").open()
    assert yard.files(second).read("model.safetensors") == any_bench.yard.files(second).read("model.safetensors")
    assert yard.check(read_data=True).exit_code == 0
    fresh.close()


def test_a_rebuild_fills_a_fresh_catalog_only(lost: tuple[Bench, Catalog]) -> None:
    """What is there already is not mixed with what the journal tells."""
    bench, fresh = lost
    again(bench, fresh)
    before = tables(fresh)
    with pytest.raises(ConflictError, match="not empty"):
        again(bench, fresh)
    assert tables(fresh) == before


def test_a_damaged_entry_stops_a_rebuild(bench: Bench, tmp_path: Path) -> None:
    """Nothing is written while something is missing; with `force` the rest is, and what could not be is named."""
    bench.data("1")
    bench.data("2", to="datasets/team/other")
    second = bench.data("3")
    entry = bench.root / "journal" / "1"
    entry.chmod(0o600)
    data = bytearray(entry.read_bytes())
    data[80] ^= 1
    entry.write_bytes(data)
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.db'}")
    with pytest.raises(IntegrityError, match="entry 1 is damaged") as caught:
        again(bench, fresh)
    assert caught.value.code == "rebuild_incomplete"
    assert tables(fresh)["versions"] == []
    done = again(bench, fresh, force=True)
    assert done.problems == ("journal entry 1 is damaged",)
    yard = Yard(bench.store, fresh, author="ana").open()
    assert yard.resolve(DATA).id == second.id
    assert yard.resolve("datasets/team/other").number == 1
    assert bench.data("4").number == 3
    fresh.close()


def test_a_missing_manifest_is_named(bench: Bench, tmp_path: Path) -> None:
    """A version that was not deleted and has no manifest is a problem, and with `force` a number that stays taken."""
    first = bench.data("1")
    bench.data("2")
    bench.store.remove("manifests", first.id)
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.db'}")
    with pytest.raises(IntegrityError, match="v1` cannot be rebuilt"):
        again(bench, fresh)
    again(bench, fresh, force=True)
    yard = Yard(bench.store, fresh, author="ana").open()
    assert [version.number for version in yard.versions(DATA)] == [2]
    assert yard.commit(bench.write({"data.txt": "3"}), DATA).number == 3
    fresh.close()
