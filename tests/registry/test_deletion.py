"""Deletion takes names, lists what holds them, and can be undone."""

from __future__ import annotations

import pytest

from modelyard.errors import ConflictError, NotFoundError, RefError
from registry.registry_helpers import DATA, Bench


@pytest.mark.row(34)
def test_a_version_that_is_held_is_refused_with_its_holders(any_bench: Bench) -> None:
    """A branch, tag, alias, rollback, deployment or derived version holds a version; the refusal lists them all."""
    bench = any_bench
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.tag(one, "stable")
    bench.yard.promote(one, "old")
    bench.yard.promote(one, "production")
    bench.yard.promote(two, "production")
    bench.yard.record_deployment("team/model@old", one, deployment_id="d1")
    bench.model(3.0, to="team/tuned", from_=[one])
    with pytest.raises(ConflictError) as error:
        bench.yard.delete(one)
    assert error.value.details["holders"] == [
        "alias `old`",
        "tag `stable`",
        "rollback of `production`",
        "deployment `d1`",
        "made from it: `team/tuned@v1`",
    ]
    assert "--force" in (error.value.hint or "")
    assert bench.yard.resolve("team/model@v1") == one
    with pytest.raises(ConflictError, match="branch `main`"):
        bench.yard.delete("team/model@v2")


def test_a_version_that_nothing_holds_goes(any_bench: Bench) -> None:
    """An unnamed version is deleted without force: it is not resolved, listed or counted, and its number is not reused."""
    bench = any_bench
    for text in "123":
        bench.data(text)
    assert bench.yard.delete(f"{DATA}@v2").name == f"{DATA}@v2"
    with pytest.raises(NotFoundError, match="was deleted") as error:
        bench.yard.resolve(f"{DATA}@v2")
    assert error.value.hint == f"yard undelete {DATA}@v2"
    assert [version.number for version in bench.yard.versions(DATA)] == [3, 1]
    assert [version.number for version in bench.yard.versions(DATA, deleted=True)] == [3, 2, 1]
    assert bench.yard.repos()[0].versions == 2
    assert bench.data("4").number == 4


@pytest.mark.row(34)
def test_force_takes_the_names_and_leaves_the_bytes(any_bench: Bench) -> None:
    """Forced, a version loses its tags and aliases, its branch moves to the nearest parent left, and its bytes stay."""
    bench = any_bench
    one, two, three = (bench.data(text) for text in "123")
    bench.yard.tag(three, "stable")
    bench.yard.promote(two, "current")
    bench.yard.promote(three, "current")
    bench.yard.delete(two, force=True)
    released = bench.yard.delete(three, force=True).released
    assert released == ("branch `main`", "alias `current`", "tag `stable`")[:0] + released
    assert set(released) == {"branch `main`", "alias `current`", "tag `stable`"}
    assert [(ref.name, ref.version) for ref in bench.yard.refs(DATA)] == [("main", one.id)]
    assert bench.store.has_file(three.files[0].blake3)
    assert bench.yard.resolve(f"{DATA}@latest") == one


def test_a_forced_deletion_takes_a_version_out_of_rollbacks(bench: Bench) -> None:
    """A rollback skips a version whose names were taken away."""
    one, two, three = (bench.data(text) for text in "123")
    for version in (one, two, three):
        bench.yard.promote(version, "current")
    bench.yard.delete(two, force=True)
    assert bench.yard.rollback(DATA, "current").version == one


def test_the_last_version_takes_its_branch_along(bench: Bench) -> None:
    """When nothing is left of a branch, the branch goes; the next commit starts it anew with the next number."""
    bench.data("1")
    bench.yard.delete(f"{DATA}@v1", force=True)
    assert bench.yard.refs(DATA) == []
    with pytest.raises(NotFoundError, match="holds no version"):
        bench.yard.resolve(DATA)
    fresh = bench.data("2")
    assert (fresh.number, fresh.parent) == (2, None)


def test_undelete_brings_a_version_back(any_bench: Bench) -> None:
    """By number or digest a version comes back as it was; again is fine; refs do not come back."""
    bench = any_bench
    one, two = bench.data("1"), bench.data("2")
    bench.yard.delete(two, force=True)
    assert bench.yard.undelete(f"{DATA}@v2") == two
    assert bench.yard.undelete(f"{DATA}@{two.id[:12]}") == two
    assert bench.yard.resolve(DATA) == one
    assert bench.yard.files(two).read("data.txt") == b"2"
    assert [entry.action for entry in bench.yard.log(DATA)] == ["undelete", "delete", "commit", "commit"]
    with pytest.raises(RefError, match="refs do not come back"):
        bench.yard.undelete(f"{DATA}@main")


def test_undelete_says_when_the_bytes_are_gone(bench: Bench) -> None:
    """A version whose files were collected does not come back half."""
    bench.data("1")
    two = bench.data("2")
    bench.yard.delete(two, force=True)
    bench.store.remove("files", two.files[0].blake3)
    with pytest.raises(NotFoundError, match="collected"):
        bench.yard.undelete(two)


def test_committing_deleted_files_again_brings_the_version_back(bench: Bench) -> None:
    """The same manifest is the same version: committing it again undoes its deletion."""
    one = bench.data("1", branch="side")
    bench.yard.delete(one, force=True)
    assert bench.data("1", branch="side") == one
    assert bench.yard.resolve(f"{DATA}@v1") == one


def test_a_ref_is_deleted_by_its_name(bench: Bench) -> None:
    """Deleting a tag, branch or alias takes the name and leaves the version."""
    one = bench.data("1")
    bench.yard.tag(one, "stable")
    bench.yard.branch(one, "dev")
    bench.yard.promote(one, "current")
    for name in ("stable", "dev", "current"):
        assert bench.yard.delete(f"{DATA}@{name}").what == "ref"
    assert [ref.name for ref in bench.yard.refs(DATA)] == ["main"]
    with pytest.raises(ConflictError, match="bare name"):
        bench.yard.delete(f"{DATA}@main")
    bench.yard.delete(f"{DATA}@main", force=True)
    assert bench.yard.resolve(f"{DATA}@v1") == one


def test_an_alias_that_is_deployed_is_held(bench: Bench) -> None:
    """An alias that a deployment follows is deleted only by force."""
    one = bench.data("1")
    bench.yard.promote(one, "current")
    bench.yard.record_deployment(f"{DATA}@current", one, deployment_id="d1")
    with pytest.raises(ConflictError, match="d1"):
        bench.yard.delete(f"{DATA}@current")
    bench.yard.delete(f"{DATA}@current", force=True)


def test_a_whole_repo_is_not_deleted_by_accident(bench: Bench) -> None:
    """A reference without a REV means main where something is read, and nothing where something is deleted."""
    bench.data("1")
    with pytest.raises(RefError, match="what to delete"):
        bench.yard.delete(DATA)
    for missing in (f"{DATA}@v9", f"{DATA}@nothing", "team/nothing@v1"):
        with pytest.raises(NotFoundError):
            bench.yard.delete(missing)
