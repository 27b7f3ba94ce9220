"""Log, lineage, tags, branches and listings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from modelyard.errors import ConflictError, NotFoundError
from registry.registry_helpers import DATA, Bench


def test_the_log_tells_everything_newest_first(any_bench: Bench) -> None:
    """Commits, tags, branches, promotions and deletions of a repo, with who and what, in the order they happened."""
    bench = any_bench
    one, two = bench.data("1", message="first"), bench.data("2")
    bench.yard.tag(one, "stable")
    bench.yard.branch(one, "dev")
    bench.yard.promote(two, "current")
    bench.data("x", to="datasets/team/other")
    entries = bench.yard.log(DATA)
    assert [(entry.action, entry.ref, entry.version) for entry in entries] == [
        ("promote", "current", f"{DATA}@v2"),
        ("branch", "dev", f"{DATA}@v1"),
        ("tag", "stable", f"{DATA}@v1"),
        ("commit", "main", f"{DATA}@v2"),
        ("commit", "main", f"{DATA}@v1"),
    ]
    assert {entry.author for entry in entries} == {"ana"}
    assert entries[-1].detail["message"] == "first"
    page = bench.yard.log(DATA, limit=2)
    assert [*page, *bench.yard.log(DATA, before=page[-1].seq)] == entries


def test_the_log_of_a_version_is_its_branch(bench: Bench) -> None:
    """With a REV the log is of that version and its parents, or of one tag or alias."""
    one = bench.data("1")
    bench.yard.branch(one, "dev")
    bench.data("2", branch="dev")
    bench.data("3")
    assert [entry.version for entry in bench.yard.log(f"{DATA}@v3") if entry.action == "commit"] == [
        f"{DATA}@v3",
        f"{DATA}@v1",
    ]
    assert len(bench.yard.log(f"{DATA}@dev", limit=1)) == 1
    bench.yard.tag(one, "stable")
    assert [entry.action for entry in bench.yard.log(f"{DATA}@stable")] == ["tag"]


@pytest.mark.row(51)
def test_a_clock_that_jumps_changes_no_order(bench: Bench) -> None:
    """Versions and the log are ordered by sequence, whatever the clock says; times are kept for people."""
    now = datetime(2036, 1, 1, tzinfo=UTC)
    for step in range(3):
        yard = bench.open(clock=lambda step=step: now - timedelta(days=400 * step))
        yard.commit(bench.write({"data.txt": str(step)}), DATA)
    assert [version.number for version in bench.yard.versions(DATA)] == [3, 2, 1]
    assert [entry.version for entry in bench.yard.log(DATA)] == [f"{DATA}@v{number}" for number in (3, 2, 1)]
    assert bench.yard.resolve(f"{DATA}@v1").created_at == now
    assert bench.yard.resolve(f"{DATA}@latest").number == 3


def test_tags_do_not_move(any_bench: Bench) -> None:
    """A tag on the same version again is fine; on another it is a conflict that names the holder."""
    bench = any_bench
    one, two = bench.data("1"), bench.data("2")
    assert bench.yard.tag(one, "stable") == bench.yard.tag(f"{DATA}@v1", "stable")
    with pytest.raises(ConflictError, match="the tag of v1") as error:
        bench.yard.tag(two, "stable")
    assert error.value.details["holder"] == one.id
    with pytest.raises(ConflictError, match="the tag of v1"):
        bench.yard.branch(one, "stable")
    with pytest.raises(ConflictError, match="the branch of v2"):
        bench.yard.tag(two, "main")


def test_lineage_goes_up_and_down(any_bench: Bench) -> None:
    """From an adapter: up to its base and data, down to what was merged from it."""
    bench = any_bench
    base, data = bench.model(0.0, to="team/base"), bench.data()
    adapter = bench.model(1.0, to="team/adapter", kind="adapter", from_=[base, data])
    merged = bench.model(2.0, kind="merged", from_=[("merged", base), ("merged", adapter)])
    up = bench.yard.lineage(adapter, direction="up")
    assert set(up.edges) == {(adapter.id, "finetuned", base.id), (adapter.id, "trained-on", data.id)}
    down = bench.yard.lineage(adapter, direction="down")
    assert down.edges == ((merged.id, "merged", adapter.id),)
    both = bench.yard.lineage("team/base")
    assert {name for node in both.nodes for name in node.names} == {"team/base@v1", "team/adapter@v1", "team/model@v1"}
    assert [node.kind for node in bench.yard.lineage(merged).nodes] == ["base", None, "adapter", "merged"]
    assert both.to_dict()["root"] == base.id


def test_lineage_survives_deletion_of_names(bench: Bench) -> None:
    """A deleted ancestor stays in the graph, without a name."""
    base = bench.model(0.0, to="team/base")
    tuned = bench.model(1.0, to="team/tuned", from_=[base])
    bench.yard.delete(base, force=True)
    graph = bench.yard.lineage(tuned)
    assert [(node.id, node.names) for node in graph.nodes] == [(base.id, ()), (tuned.id, ("team/tuned@v1",))]


def test_an_adapter_finds_its_base(bench: Bench) -> None:
    """The base of an adapter is the model at its `finetuned` edge; none or several are refused."""
    base, other, data = bench.model(0.0, to="team/base"), bench.model(9.0, to="team/other"), bench.data()
    adapter = bench.model(1.0, to="team/a", kind="adapter", from_=[base, data])
    assert bench.yard.base_of(adapter) == base
    lone = bench.model(1.0, to="team/b", kind="adapter")
    with pytest.raises(NotFoundError, match="does not say which base"):
        bench.yard.base_of(lone)
    both = bench.model(1.0, to="team/c", kind="adapter", from_=[base, other])
    with pytest.raises(ConflictError, match="several bases"):
        bench.yard.base_of(both)


def test_listings(any_bench: Bench) -> None:
    """Repos, versions and refs are listed in pages."""
    bench = any_bench
    for number in range(3):
        bench.data(str(number), to=f"datasets/team/d{number}")
    bench.model(1.0)
    bench.model(2.0)
    assert [(repo.repo_type, repo.name, repo.versions, repo.latest, repo.refs) for repo in bench.yard.repos()] == [
        ("dataset", "team/d0", 1, 1, 1),
        ("dataset", "team/d1", 1, 1, 1),
        ("dataset", "team/d2", 1, 1, 1),
        ("model", "team/model", 2, 2, 1),
    ]
    assert [repo.name for repo in bench.yard.repos("model")] == ["team/model"]
    assert [repo.name for repo in bench.yard.repos(limit=2, after=("team/d0", "dataset"))] == ["team/d1", "team/d2"]
    assert [version.number for version in bench.yard.versions("team/model", limit=1)] == [2]
    assert [version.number for version in bench.yard.versions("team/model", before=2)] == [1]
    assert [ref.name for ref in bench.yard.refs("team/d0", "dataset")] == ["main"]
    with pytest.raises(NotFoundError):
        bench.yard.versions("team/nothing")
