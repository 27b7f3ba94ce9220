"""What takes how much: the figures agree with what is on disk, and with what a collection really frees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from modelyard.errors import NotFoundError
from registry.segment_models import folder, outdate, tuned, weights

if TYPE_CHECKING:
    from modelyard.registry.usage import VersionUsage
    from registry.registry_helpers import Bench


def on_disk(bench: Bench) -> int:
    """Bytes of all files and packs in the store."""
    return sum(
        path.stat().st_size for area in ("files", "packs") for path in (bench.root / area).rglob("*") if path.is_file()
    )


def line(bench: Bench, name: str) -> VersionUsage:
    """What one version takes."""
    return bench.yard.usage(name).repos[0].versions[0]


def payloads(bench: Bench) -> int:
    """Bytes of the indexes of all packs: what is on disk beside whole files and payloads."""
    return sum(bench.store.file_size(pack, area="packs") for pack in bench.store.digests("packs"))


def test_an_empty_yard_takes_nothing(bench: Bench) -> None:
    """Nothing is stored, nothing is garbage."""
    usage = bench.yard.usage()
    assert (usage.repos, usage.logical, usage.stored, usage.garbage, usage.dead) == ((), 0, 0, 0, 0)


def test_stored_bytes_are_those_on_disk(any_bench: Bench) -> None:
    """The total is what lies in `files/` and `packs/`, on both databases, before and after compaction and collection."""
    bench = any_bench
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    bench.yard.commit(folder(bench, tuned(weights())), "team/model", from_=[("finetuned", base)])
    outdate(bench)
    assert bench.yard.usage().stored == on_disk(bench)
    bench.yard.compact(idle_days=0)
    usage = bench.yard.usage()
    assert usage.stored + usage.garbage == on_disk(bench)
    assert usage.garbage > 0
    bench.yard.collect(now=True, force=True)
    usage = bench.yard.usage()
    assert (usage.stored, usage.garbage) == (on_disk(bench), 0)
    assert usage.stored < usage.logical


def test_what_is_shared_is_counted_once_and_freed_by_nobody_alone(bench: Bench) -> None:
    """Two versions with one file in common: it is shared, and deleting either frees only the other file."""
    bench.yard.commit(bench.write({"a.txt": "a" * 100, "b.txt": "b" * 10}), "datasets/team/one")
    bench.yard.commit(bench.write({"a.txt": "a" * 100, "c.txt": "c" * 7}), "datasets/team/two")
    one, two = line(bench, "datasets/team/one@v1"), line(bench, "datasets/team/two@v1")
    assert (one.logical, one.stored, one.unique, one.shared, one.freed) == (110, 110, 10, 100, 10)
    assert (two.logical, two.stored, two.unique, two.shared, two.freed) == (107, 107, 7, 100, 7)
    assert one.encodings == {"whole": 110}
    repos = {repo.name: repo for repo in bench.yard.usage().repos}
    assert (repos["datasets/team/one"].unique, repos["datasets/team/one"].shared) == (10, 100)
    assert bench.yard.usage().stored == 117


def test_what_the_versions_of_one_repo_share_the_repo_has_alone(bench: Bench) -> None:
    """A repo's own figures count it as one: what only its versions share would go with it."""
    for text in ("x", "y"):
        bench.yard.commit(bench.write({"same.txt": "s" * 50, "data.txt": text}), "datasets/team/data")
    (repo,) = bench.yard.usage("datasets/team/data").repos
    assert (repo.logical, repo.stored, repo.unique, repo.freed) == (102, 52, 52, 52)
    assert [version.unique for version in repo.versions] == [1, 1]


def test_a_base_that_others_are_made_from_frees_nothing(bench: Bench) -> None:
    """Deltas need their base: it is unique and frees nothing, and what is made from it is told; deleting all of them frees all."""
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    made = bench.yard.commit(folder(bench, tuned(weights())), "team/model", from_=[("finetuned", base)])
    outdate(bench)
    bench.yard.compact(idle_days=0)
    bench.yard.collect(now=True, force=True)
    under, over = line(bench, base.name), line(bench, made.name)
    assert under.unique > 0.9 * base.size
    assert under.freed < 1000  # its configuration and nothing of its weights
    assert "branch `main`" in under.held_by
    assert "4 segments of `team/model@v1` are made from it" in under.held_by
    assert over.encodings["delta"] > 0.9 * over.logical
    before = bench.yard.usage().stored
    bench.yard.delete(base.name, force=True)
    bench.yard.collect(now=True, force=True)
    gone = line(bench, base.name)
    assert (gone.deleted, gone.freed) == (True, 0)
    assert gone.stored > 0.9 * base.size
    assert line(bench, made.name).freed > over.freed + 0.9 * base.size  # the base's bytes go with it now
    freed = line(bench, made.name).freed
    bench.yard.delete(made.name)
    bench.yard.collect(now=True, force=True)
    left = bench.yard.usage()
    assert before - left.stored >= freed
    assert left.stored == on_disk(bench)


@pytest.mark.parametrize("compacted", [False, True])
def test_deleting_a_version_frees_what_was_said(bench: Bench, compacted: bool) -> None:
    """The figure before is the difference after, up to the index of a pack."""
    for step in range(3):
        bench.yard.commit(folder(bench, tuned(weights(), step), note=f"model {step}"), f"team/m{step}")
        outdate(bench, f"team/m{step}")
        if compacted:
            bench.yard.compact(idle_days=0)
            bench.yard.collect(now=True, force=True)
    said, before, indexes = line(bench, "team/m1@v1").freed, on_disk(bench), payloads(bench)
    bench.yard.delete("team/m1@v1")
    bench.yard.collect(now=True, force=True)
    freed = before - on_disk(bench)
    assert said > 50_000
    assert said <= freed <= said + (indexes if compacted else 0)


def test_what_nobody_knows_is_garbage(bench: Bench) -> None:
    """Objects that the catalog does not name are counted with their size on disk."""
    bench.data("kept")
    bench.store.put_file([b"left by a commit that was killed"])
    assert bench.yard.usage().garbage == 32


def test_names_and_deployments_are_told(bench: Bench) -> None:
    """What holds a version: refs, former holders of an alias, deployments."""
    first, second = bench.model(1), bench.model(2)
    bench.yard.promote(first, "production")
    bench.yard.promote(second, "production")
    bench.yard.tag(first, "release")
    bench.yard.record_deployment("team/model@production", second, deployment_id="blue")
    assert line(bench, first.name).held_by == ("tag `release`", "rollback of `production`")
    assert line(bench, second.name).held_by == ("alias `production`", "branch `main`", "deployment `blue`") or line(
        bench, second.name
    ).held_by == ("branch `main`", "alias `production`", "deployment `blue`")


def test_usage_is_plain_json(bench: Bench) -> None:
    """The value prints as JSON with every figure in it."""
    bench.data("x" * 20)
    plain = json.loads(json.dumps(bench.yard.usage("datasets/team/data").to_dict()))
    (version,) = plain["repos"][0]["versions"]
    assert (version["name"], version["unique"], version["shared"]) == ("datasets/team/data@v1", 20, 0)
    assert plain["repos"][0]["shared"] == 0
    with pytest.raises(NotFoundError):
        bench.yard.usage("team/none")
