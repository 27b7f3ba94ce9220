"""A merge is derived although its base and adapter grow cold in the same compaction."""

from __future__ import annotations

from pathlib import Path

from crash.crash_helpers import make_family
from registry.registry_helpers import Bench

REPO = "team/model"


def test_a_merge_is_derived_when_all_of_one_repo_grows_cold_at_once(tmp_path: Path) -> None:
    """Base, adapter and merge in one repo, all cold: the base is no delta of its merge, so the merge is computed from it."""
    bench = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
    family = make_family(tmp_path / "family")
    base = bench.yard.commit(family["base"].folder, REPO, kind="base")
    adapter = bench.yard.commit(family["adapter"].folder, REPO, kind="adapter", from_=[base])
    merged = bench.yard.commit(family["merged"].folder, REPO, kind="merged", from_=[base, adapter])
    bench.yard.commit({"note.txt": b"x"}, REPO, kind="merged")
    done = bench.yard.compact(idle_days=0, least_rate=0)
    assert done.segments["derived"] == 2
    files = bench.yard.files(merged)
    assert {name: files.read(name) for name in files.names()} == family["merged"].bytes_of()
    bench.close()
