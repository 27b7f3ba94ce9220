"""A merge reads versions for as long as it takes: nobody takes their bytes away meanwhile."""

from __future__ import annotations

from pathlib import Path

from crash.crash_helpers import make_family
from modelyard.registry import Yard
from registry.registry_helpers import Bench


def test_gc_never_removes_what_a_concurrent_merge_needs(tmp_path: Path) -> None:
    """A promise: while a merge runs, `gc --now` waits for it, although base and adapter were deleted; afterwards it does not."""
    bench = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
    family = make_family(tmp_path / "family")
    base = bench.yard.commit(family["base"].folder, "team/base", kind="base")
    adapter = bench.yard.commit(family["adapter"].folder, "team/adapter", kind="adapter", from_=[base])
    other: Yard = bench.open()
    waited: list[str] = []

    def deleted_meanwhile(done: int, total: int) -> None:
        if waited:
            return
        for version in (adapter, base):
            other.delete(version.name, force=True)
        collection = other.collect(now=True, force=True, wait_seconds=0)
        waited.extend(each.purpose for each in collection.waiting)
        assert all(bench.store.has_file(file.blake3) for version in (base, adapter) for file in version.files)
        for version in (base, adapter):
            other.undelete(version.name)

    merged = bench.yard.merge(adapter, "team/merged", base=base, check=False, progress=deleted_meanwhile).version
    assert merged is not None
    assert "merge" in waited
    files = bench.yard.files(merged)
    assert {name: files.read(name) for name in files.names()} == family["merged"].bytes_of()
    for version in (adapter, base, merged):
        other.delete(version.name, force=True)
    other.collect(now=True, force=True)
    assert not bench.store.has_file(base.files[0].blake3)
    bench.close()
