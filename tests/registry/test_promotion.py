"""Promotion, gates and rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import (
    ConflictError,
    GateRefusedError,
    InputError,
    IntegrityError,
    NotFoundError,
    RecipeError,
    RefError,
    YardError,
)
from modelyard.evaluation.gates import judge, parse_gate
from registry.registry_helpers import DATA, processes, race, report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.registry import Yard
    from registry.registry_helpers import Bench

REPO = "team/model"


def gated(bench: Bench) -> Yard:
    """A yard with the judge that `app` gives it."""

    def check(gate: Mapping[str, Any]) -> Mapping[str, Any]:
        return parse_gate(gate).model_dump(exclude_none=True)

    return bench.open(judge=judge, check_gate=check)


def holder(yard: Yard, alias: str = "production") -> int:
    return yard.resolve(f"{REPO}@{alias}").number


def test_an_alias_moves_and_is_journaled(any_bench: Bench) -> None:
    """A promotion moves the alias, is an audit row, and is in the store's journal before it returns."""
    bench = any_bench
    one, two = bench.model(1.0), bench.model(2.0)
    first = bench.yard.promote(one, "production")
    second = bench.yard.promote(f"{REPO}@v2", "production")
    assert (first.moved, first.previous, second.previous) == (True, None, one)
    assert bench.yard.resolve(f"{REPO}@production") == two
    entries = bench.yard.log(f"{REPO}@production")
    assert [(entry.action, entry.version, entry.previous) for entry in entries] == [
        ("promote", f"{REPO}@v2", f"{REPO}@v1"),
        ("promote", f"{REPO}@v1", None),
    ]
    published = dict(bench.store.journal())
    assert sorted(published) == [1, 2, 3, 4]
    assert f'"version":"{two.id}"'.encode() in published[4]


def test_promoting_the_holder_changes_nothing(bench: Bench) -> None:
    """An alias that is there already is not moved, and a rollback does not go through it."""
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.promote(one, "production")
    bench.yard.promote(two, "production")
    assert not bench.yard.promote(two, "production").moved
    assert bench.yard.rollback(REPO, "production").version == one


def test_the_loser_is_told_the_winner(any_bench: Bench) -> None:
    """A promotion that expects another holder is refused with the one that is there."""
    bench = any_bench
    one, two, three = (bench.model(float(value)) for value in range(3))
    bench.yard.promote(one, "production", expect="none")
    bench.yard.promote(two, "production", expect="v1")
    for expect in ("none", "v1", one, one.id, f"{REPO}@v1", one.id[:8]):
        with pytest.raises(ConflictError, match="v2") as error:
            bench.yard.promote(three, "production", expect=expect)
        assert error.value.details["holder"] == two.id
    bench.yard.promote(three, "production", expect=two.id.short)
    assert holder(bench.yard) == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # pytest-xdist's threads
@pytest.mark.row(32)
def test_exactly_one_of_twelve_processes_wins_each_round(any_bench: Bench) -> None:
    """Twelve processes promote with the same expectation at once: one wins, eleven are told a holder, round after round."""
    bench = any_bench
    for value in range(13):
        bench.model(float(value))
    bench.yard.promote(f"{REPO}@v13", "production")
    context = processes()
    for _ in range(3):
        before = bench.yard.resolve(f"{REPO}@production")
        racers = [number for number in range(1, 14) if number != before.number]
        barrier, outcomes = context.Barrier(12), context.Queue()
        started = [
            context.Process(target=race, args=(bench.url, bench.root, number, before.id, barrier, outcomes))
            for number in racers
        ]
        for process in started:
            process.start()
        found = [outcomes.get(timeout=60) for _ in racers]
        for process in started:
            process.join(60)
        after = bench.yard.resolve(f"{REPO}@production")
        assert [outcome.number for outcome in found if outcome.won] == [after.number]
        assert {outcome.holder for outcome in found if not outcome.won} == {after.id}
    moves = bench.yard.log(f"{REPO}@production")
    assert [move.previous for move in moves[:-1]] == [move.version for move in moves[1:]]


def test_rollback_goes_back_and_further_back(any_bench: Bench) -> None:
    """Repeated rollbacks walk the promotions backwards; a promotion in between starts a new top."""
    bench = any_bench
    for value in range(4):
        bench.yard.promote(bench.model(float(value)), "production")
    back = [bench.yard.rollback(REPO, "production").version.number for _ in range(2)]
    assert back == [3, 2]
    bench.yard.promote(f"{REPO}@v4", "production")
    assert [bench.yard.rollback(REPO, "production").version.number for _ in range(2)] == [2, 1]
    with pytest.raises(ConflictError, match="no holder before v1"):
        bench.yard.rollback(REPO, "production")
    assert bench.yard.log(REPO)[0].action == "rollback"


def test_rollback_is_compare_and_swap(bench: Bench) -> None:
    """A rollback that expects another holder is refused; an alias that is not there is named."""
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.promote(one, "production")
    bench.yard.promote(two, "production")
    with pytest.raises(ConflictError):
        bench.yard.rollback(REPO, "production", expect="v1")
    assert bench.yard.rollback(REPO, "production", expect="v2").version == one
    with pytest.raises(NotFoundError):
        bench.yard.rollback(REPO, "staging")


def test_a_rollback_needs_no_gate(bench: Bench) -> None:
    """Going back is always possible, even where the gate would refuse the former holder today."""
    yard = gated(bench)
    one, two = bench.model(1.0), bench.model(2.0)
    yard.promote(one, "production")
    yard.promote(two, "production")
    yard.set_gate(REPO, "production", {"min": 0.99})
    assert yard.rollback(REPO, "production").version == one


def test_only_an_alias_is_promoted_to(bench: Bench) -> None:
    """A branch, a tag, and a name that is no ref's name are refused."""
    one = bench.model()
    bench.yard.tag(one, "stable")
    for name, error in (("main", ConflictError), ("stable", ConflictError), ("v7", RefError), ("latest", RefError)):
        with pytest.raises(error):
            bench.yard.promote(one, name)
    bench.yard.promote(one, "production")
    for make in (bench.yard.tag, bench.yard.branch):
        with pytest.raises(ConflictError, match="alias"):
            make(one, "production")


def test_what_is_promoted_can_be_loaded(bench: Bench) -> None:
    """A version with a missing file is not promoted."""
    one = bench.model()
    bench.store.file_path(one.files[1].blake3).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        bench.yard.promote(one, "production")


@pytest.mark.row(33)
def test_a_gate_lets_only_evidence_pass(any_bench: Bench) -> None:
    """Without reports, with bad ones and with too few the alias stays; the refusal carries the verdict."""
    bench, yard = any_bench, gated(any_bench)
    data, base = bench.data(), bench.model(0.0, to="team/base")
    made = bench.model(1.0, kind="merged", from_=[base])
    yard.set_gate(REPO, "production", {"min": 0.9, "better_than": "base"})
    assert yard.gate(REPO, "production") == {"metric": "accuracy", "min": 0.9, "better_than": "base", "alpha": 0.05}

    def refused() -> dict[str, Any]:
        with pytest.raises(GateRefusedError) as error:
            yard.promote(made, "production")
        assert error.value.exit_code == 7
        with pytest.raises(NotFoundError):
            yard.resolve(f"{REPO}@production")
        found: dict[str, Any] = error.value.details["verdict"]
        return found

    assert refused()["decision"] == "fail"
    yard.add_report(made, report(made, [True] * 19 + [False], data))
    assert refused()["decision"] == "fail"  # nothing is known of the base yet
    yard.add_report(base, report(base, [True] * 17 + [False] * 3, data))
    assert refused()["decision"] == "more"  # two examples are no evidence
    yard.add_report(made, report(made, [True] * 39 + [False], data, rows="more"))
    yard.add_report(base, report(base, [False] * 40, data, rows="more"))
    promotion = yard.promote(made, "production")
    assert promotion.verdict is not None
    assert promotion.verdict["decision"] == "pass"
    assert yard.log(f"{REPO}@production")[0].detail["verdict"]["decision"] == "pass"


@pytest.mark.row(15)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gate_refuses_weights_that_are_not_finite(any_bench: Bench, value: float) -> None:
    """NaN and infinity are kept and counted; evidence or not, a gated alias does not move to them unless its gate allows it."""
    bench, yard = any_bench, gated(any_bench)
    data, made = bench.data(), bench.model(value)
    yard.set_gate(REPO, "production", {"min": 0.5})
    yard.add_report(made, report(made, [True] * 20, data))
    for _ in range(2):  # the second time from the record
        with pytest.raises(GateRefusedError, match="NaN or infinity") as error:
            yard.promote(made, "production")
        assert (error.value.code, error.value.details["nonfinite"]) == ("nonfinite", {"model.safetensors": 12})
    yard.set_gate(REPO, "production", {"min": 0.5, "allow_nonfinite": True})
    assert yard.promote(made, "production").version == made


def test_a_gate_compares_with_the_incumbent(bench: Bench) -> None:
    """`incumbent` is the alias's holder: the first passes, a later one must be better."""
    yard = gated(bench)
    data, one, two = bench.data(), bench.model(1.0), bench.model(2.0)
    yard.set_gate(REPO, "production", {"better_than": "incumbent"})
    yard.add_report(one, report(one, [True] * 30, data))
    yard.promote(one, "production")
    yard.add_report(two, report(two, [True] * 15 + [False] * 15, data))
    with pytest.raises(GateRefusedError, match="not better"):
        yard.promote(two, "production")
    assert holder(yard) == 1


def test_a_gate_that_moved_meanwhile_does_not_let_a_promotion_through(bench: Bench) -> None:
    """The incumbent that was judged against must still be the holder when the alias moves."""
    one, two, three = (bench.model(float(value)) for value in range(3))
    bench.yard.promote(one, "production")

    class Pass:
        decision = "pass"
        reasons = ()

        def to_dict(self) -> dict[str, Any]:
            return {"decision": "pass"}

    def slow(gate: Mapping[str, Any], **_: Any) -> Pass:
        bench.yard.set_gate(REPO, "production", None)
        bench.yard.promote(two, "production")
        return Pass()

    yard = bench.open(judge=slow)
    yard.set_gate(REPO, "production", {"min": 0.5})
    with pytest.raises(ConflictError, match="v2"):
        yard.promote(three, "production")
    assert holder(yard) == 2


@pytest.mark.row(33)
def test_reports_of_other_versions_are_refused(bench: Bench) -> None:
    """A report belongs to the version it was made of; a data set it names is in the yard; it holds no NaN."""
    one, two, data = bench.model(1.0), bench.model(2.0), bench.data()
    good = report(one, [True], data)
    with pytest.raises(InputError, match="not about"):
        bench.yard.add_report(two, good)
    with pytest.raises(NotFoundError, match="not in this yard"):
        bench.yard.add_report(one, good | {"dataset": "0" * 64})
    with pytest.raises(InputError):
        bench.yard.add_report(one, good | {"metrics": {"accuracy": float("nan")}})
    with pytest.raises(InputError, match="not a report"):
        bench.yard.add_report(one, {})
    for missing in ("task", "metrics", "n"):
        with pytest.raises(InputError):
            bench.yard.add_report(one, {key: value for key, value in good.items() if key != missing})
    assert bench.yard.reports(one) == []


def test_reports_are_kept_by_digest_once(any_bench: Bench) -> None:
    """A report comes back as it went in, by version and by digest, and storing it again adds nothing."""
    bench = any_bench
    one, data = bench.model(), bench.data()
    first, second = report(one, [True, False], data), report(one, [True], data)
    digest = bench.yard.add_report(one, first)
    bench.yard.add_report(one, second)
    assert bench.yard.add_report(one, first) == digest
    assert bench.yard.reports(one) == [first, second]
    assert bench.yard.report(digest) == first
    with pytest.raises(NotFoundError):
        bench.yard.report("0" * 64)
    with pytest.raises(InputError):
        bench.yard.report("xyz")


def test_a_report_counts_wherever_its_version_was_committed(any_bench: Bench) -> None:
    """The same bytes in two repos are one version: a report made of it in one repo is evidence in the other, once."""
    bench = any_bench
    one, data = bench.model(), bench.data()
    made = report(one, [True, False], data)
    bench.yard.add_report(one, made)
    twin = bench.yard.commit(bench.yard.files(one), "elsewhere/twin", kind=one.kind)
    assert twin.id == one.id
    assert bench.yard.reports(twin) == [made]
    bench.yard.add_report(twin, made)
    assert bench.yard.reports(one) == bench.yard.reports(twin) == [made]


def test_gates_are_checked_when_they_are_set(bench: Bench) -> None:
    """A gate with a misspelled key is refused at once; None removes a gate; a branch has none."""
    yard = gated(bench)
    bench.model()
    with pytest.raises(RecipeError):
        yard.set_gate(REPO, "production", {"minimum": 0.9})
    yard.set_gate(REPO, "production", {"min": 0.9})
    yard.set_gate(REPO, "production", None)
    assert yard.gate(REPO, "production") is None
    assert [entry.action for entry in yard.log(REPO)] == ["gate", "gate", "commit"]
    with pytest.raises(ConflictError, match="only an alias"):
        yard.set_gate(REPO, "main", {"min": 0.9})


def test_without_a_judge_a_gate_holds(bench: Bench) -> None:
    """A yard that cannot judge does not let anything past a gate."""
    one = bench.model()
    bench.yard.set_gate(REPO, "production", {"min": 0.5})
    with pytest.raises(YardError, match="without a judge"):
        bench.yard.promote(one, "production")


def test_data_sets_have_aliases_too(bench: Bench) -> None:
    """Promotion and rollback work on data sets, whose short expectations mean their own versions."""
    one, two = bench.data("1"), bench.data("2")
    bench.yard.promote(one, "current", expect="none")
    bench.yard.promote(two, "current", expect="v1")
    assert bench.yard.resolve(f"{DATA}@current") == two
    assert bench.yard.rollback(DATA, "current").version == one
