"""Comparison and gates: only complete evidence about this very version, on the same examples, can pass."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import DataError, RecipeError
from modelyard.evaluation import Gate, Verdict, compare, judge, parse_gate
from modelyard.evaluation.statistics import mcnemar_exact, wilson

CANDIDATE, BASE, OTHER = "c" * 64, "b" * 64, "0" * 64
DATA, DATASET = "d" * 64, "e" * 64


def report(scores: list[int], model: str = CANDIDATE, **changes: Any) -> dict[str, Any]:
    """A complete report with these scores."""
    accuracy = sum(scores) / len(scores)
    return {
        "format": "modelyard/report/1",
        "model": model,
        "dataset": DATASET,
        "file": "test.jsonl",
        "data_digest": DATA,
        "task": {"name": "exact-match", "batch_size": 32},
        "n": len(scores),
        "metrics": {"accuracy": accuracy},
        "interval": {"accuracy": list(wilson(sum(scores), len(scores)))},
        "examples": [{"id": str(i), "score": float(score)} for i, score in enumerate(scores)],
        **changes,
    }


def decide(
    gate: dict[str, Any],
    reports: list[dict[str, Any]],
    baseline_reports: list[dict[str, Any]] | None = None,
    baseline: str | None = BASE,
) -> Verdict:
    """Judge `CANDIDATE`."""
    return judge(gate, candidate=CANDIDATE, reports=reports, baseline=baseline, baseline_reports=baseline_reports or [])


GOOD = report([1] * 95 + [0] * 5)
POOR = report([0] * 90 + [1] * 10, BASE)
BOTH = {"min": 0.9, "better_than": "base"}


def test_compare_counts_pairs() -> None:
    """The comparison counts what only one got right, and its p-value is the exact McNemar test of those counts."""
    found = compare(report([1, 1, 0, 0, 1], BASE), report([1, 0, 1, 1, 1]))
    assert (found.n, found.a_only, found.b_only) == (5, 1, 2)
    assert [found.a_accuracy, found.b_accuracy, found.difference] == pytest.approx([0.6, 0.8, 0.2])
    assert found.p_value == mcnemar_exact(1, 2)
    assert found.interval[0] <= found.difference <= found.interval[1]
    json.dumps(found.to_dict(), allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_compare_is_antisymmetric(pairs: list[tuple[int, int]]) -> None:
    """Swapping the reports swaps the counts, negates the difference and keeps the p-value."""
    a, b = report([x for x, _ in pairs], BASE), report([y for _, y in pairs])
    forth, back = compare(a, b), compare(b, a)
    assert (forth.a_only, forth.b_only, forth.p_value) == (back.b_only, back.a_only, back.p_value)
    assert forth.difference == -back.difference == pytest.approx(forth.b_accuracy - forth.a_accuracy)


def test_compare_pairs_by_id() -> None:
    """The order of the examples in a report does not matter, their ids do."""
    a, b = report([1, 0, 0], BASE), report([1, 1, 0])
    shuffled = {**b, "examples": list(reversed(b["examples"]))}
    assert compare(a, shuffled) == compare(a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_digest": "f" * 64},
        {"dataset": "f" * 64},
        {"task": {"name": "label"}},
        {"task": {"name": "exact-match", "ignore_case": True}},
        {"examples": [{"id": "x", "score": 1.0}, {"id": "1", "score": 0.0}]},
    ],
)
def test_compare_refuses_other_questions(changes: dict[str, Any]) -> None:
    """Another data set, other examples or another task is `stale_evidence`, and the message names both reports."""
    with pytest.raises(DataError) as caught:
        compare(report([1, 0], BASE), report([1, 0], **changes))
    assert caught.value.code == "stale_evidence"
    assert BASE[:12] in caught.value.message
    assert CANDIDATE[:12] in caught.value.message


def test_batch_size_is_no_difference() -> None:
    """Reports that differ only in how many prompts were decoded at once can be compared."""
    assert compare(report([1, 0], BASE), report([1, 0], task={"name": "exact-match", "batch_size": 4})).n == 2


def test_a_good_candidate_passes() -> None:
    """A floor that is reached and a significant improvement pass, with the numbers in the reasons."""
    verdict = decide(BOTH, [GOOD], [POOR])
    assert verdict.decision == "pass"
    assert "0.950 on 100 examples (95 % interval 0.888 to 0.978) reaches 0.9" in verdict.reasons[0]
    assert "0.950 against 0.100 of `base` on the same 100 examples" in verdict.reasons[1]
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_below_the_floor_fails() -> None:
    """A measured value below `min` fails even where its interval reaches further."""
    verdict = decide({"min": 0.96}, [GOOD])
    assert verdict.decision == "fail"
    assert verdict.to_dict()["checks"][0]["measured"] == 0.95


def test_the_floor_itself_passes() -> None:
    """Exactly the required value is enough."""
    assert decide({"min": 0.95}, [GOOD]).decision == "pass"


def test_worse_or_equal_fails() -> None:
    """A candidate that is not better than the baseline fails, however many examples there are."""
    assert decide({"better_than": "base"}, [report([1, 0])], [report([0, 1], BASE)]).decision == "fail"
    assert decide({"better_than": "base"}, [report([0] * 50)], [report([1] * 50, BASE)]).decision == "fail"


def test_better_but_not_significant_needs_more() -> None:
    """A difference that may be chance is neither pass nor fail: the verdict says how many more examples are needed."""
    verdict = decide({"better_than": "base"}, [report([1] * 10 + [0] * 10)], [report([1] * 7 + [0] * 13, BASE)])
    assert verdict.decision == "more"
    assert verdict.further > 0
    assert f"needs about {verdict.further} more examples" in verdict.reasons[0]
    # With that many more, at the same shares, the same gate passes.
    scale = (20 + verdict.further) // 20 + 1
    again = decide(
        {"better_than": "base"},
        [report([1] * 10 * scale + [0] * 10 * scale)],
        [report([1] * 7 * scale + [0] * 13 * scale, BASE)],
    )
    assert again.decision == "pass"


def test_a_tiny_difference_needs_very_many_more() -> None:
    """One example of difference among two thousand is answered at once, with a number that says it is hopeless."""
    base, candidate = [1] * 1000 + [0] * 1001, [0] * 1000 + [1] * 1001
    verdict = decide({"better_than": "base"}, [report(candidate)], [report(base, BASE)])
    assert verdict.decision == "more"
    assert verdict.further > 10_000_000


def test_a_failed_floor_is_not_saved_by_needing_more() -> None:
    """`fail` outweighs `more`."""
    gate = {"min": 0.99, "better_than": "base"}
    assert decide(gate, [report([1] * 10 + [0] * 10)], [report([1] * 7 + [0] * 13, BASE)]).decision == "fail"


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60), st.floats(0.001, 0.3))
@settings(max_examples=60, deadline=None)
def test_passing_means_significantly_better(pairs: list[tuple[int, int]], alpha: float) -> None:
    """`pass` exactly if the difference is positive and p is below alpha; `more` exactly if it is positive and not."""
    base, candidate = [a for a, _ in pairs], [b for _, b in pairs]
    b, c = sum(y > x for x, y in pairs), sum(x > y for x, y in pairs)
    verdict = decide({"better_than": "base", "alpha": alpha}, [report(candidate)], [report(base, BASE)])
    expected = "fail" if b <= c else "pass" if mcnemar_exact(b, c) < alpha else "more"
    assert verdict.decision == expected


def test_no_report_fails_and_names_the_command() -> None:
    """Without any report the gate fails and says what to run."""
    verdict = decide({"min": 0.5}, [])
    assert verdict.decision == "fail"
    assert f"yard eval REPO@{CANDIDATE[:12]} --data DATA --task TASK" in verdict.reasons[0]
    pinned = decide({"min": 0.5, "task": "label", "dataset": DATASET}, [])
    assert f"--data datasets/REPO@{DATASET[:12]} --task label" in pinned.reasons[0]


def test_a_report_of_another_version_is_stale() -> None:
    """A perfect report of another version, such as the adapter it was merged from, is no evidence."""
    verdict = decide({"min": 0.5}, [report([1] * 100, OTHER)])
    assert verdict.decision == "fail"
    assert verdict.to_dict()["checks"][0]["code"] == "stale_evidence"
    assert "stale evidence" in verdict.reasons[0]


@pytest.mark.parametrize("gate", [{"dataset": "f" * 64}, {"task": "label"}])
def test_a_report_about_something_else_is_stale(gate: dict[str, Any]) -> None:
    """A report on another revision of the data set, or of another task, is no evidence."""
    verdict = decide({"min": 0.5, **gate}, [GOOD])
    assert verdict.decision == "fail"
    assert verdict.to_dict()["checks"][0]["code"] == "stale_evidence"


def test_a_baseline_on_other_examples_is_stale() -> None:
    """Without a baseline report on the same examples the gate fails and names the command for the baseline."""
    for reports in ([], [report([0] * 100, BASE, data_digest="f" * 64)], [report([0] * 100, OTHER)]):
        verdict = decide({"better_than": "base"}, [GOOD], reports)
        assert verdict.decision == "fail"
        command = f"yard eval REPO@{BASE[:12]} --data datasets/REPO@{DATASET[:12]}:test.jsonl --task exact-match"
        assert command in verdict.reasons[0]


def broken(**changes: Any) -> dict[str, Any]:
    """A good report with one part spoiled."""
    return {**copy.deepcopy(GOOD), **changes}


@pytest.mark.parametrize(
    "bad",
    [
        broken(metrics={}),
        broken(metrics={"accuracy": math.nan}),
        broken(metrics={"accuracy": None}),
        broken(metrics={"accuracy": 0.99}),
        broken(metrics=None),
        broken(n=101),
        broken(n=0, examples=[]),
        broken(examples=GOOD["examples"][:50]),
        broken(examples=[*GOOD["examples"][:99], GOOD["examples"][0]]),
        broken(examples=[*GOOD["examples"][:99], {"id": "99", "score": math.nan}]),
        broken(examples=[*GOOD["examples"][:99], {"id": "99"}]),
        broken(examples=[*GOOD["examples"][:99], {"id": "99", "score": "1"}]),
        broken(examples=[*GOOD["examples"][:99], {"score": 1.0}]),
        broken(format="lm-eval/1"),
        broken(data_digest=None),
        broken(interval={"accuracy": "wide"}),
        broken(interval=None),
    ],
)
def test_incomplete_evidence_never_passes(bad: dict[str, Any]) -> None:
    """A report whose metric is missing, not finite, or not what its examples say fails the gate, even beside a good one."""
    assert decide({"min": 0.0}, [bad]).decision == "fail"
    assert decide({"min": 0.0}, [GOOD, bad]).decision == "fail"
    assert decide({"better_than": "base"}, [GOOD], [{**bad, "model": BASE}]).decision == "fail"


def test_a_metric_that_was_not_produced_fails() -> None:
    """A gate on a metric that the report lacks fails and names the ones there are."""
    verdict = decide({"metric": "valid_json", "min": 0.0}, [GOOD])
    assert verdict.decision == "fail"
    assert "did not produce `valid_json`; it has `accuracy`" in verdict.reasons[0]


def test_a_secondary_metric_can_have_a_floor() -> None:
    """A metric without an interval is judged by its value."""
    both = report([1], metrics={"accuracy": 1.0, "valid_json": 0.7})
    assert decide({"metric": "valid_json", "min": 0.7}, [both]).decision == "pass"


def test_nothing_is_picked_because_it_looks_good() -> None:
    """Of two reports on as many examples of one data set, both must pass; a quick look at a few rows does not count."""
    worse = report([0] * 100, task={"name": "exact-match", "ignore_case": True})
    assert decide({"min": 0.9}, [GOOD, worse]).decision == "fail"
    assert decide({"min": 0.9}, [GOOD, report([0] * 10)]).decision == "pass"
    assert decide({"min": 0.9}, [report([1] * 10), report([0] * 100)]).decision == "fail"
    assert decide({"min": 0.9}, [GOOD, report([0] * 10, dataset="f" * 64)]).decision == "fail"


def test_the_first_promotion_has_no_incumbent() -> None:
    """`better_than: incumbent` passes with a reason while there is none; any other missing baseline fails."""
    verdict = decide({"better_than": "incumbent"}, [GOOD], baseline=None)
    assert verdict.decision == "pass"
    assert "no incumbent yet" in verdict.reasons[0]
    assert decide({"better_than": "base"}, [GOOD], baseline=None).decision == "fail"


def test_a_version_is_not_better_than_itself() -> None:
    """Promoting the version that is the baseline fails the comparison."""
    assert decide({"better_than": "incumbent"}, [GOOD], [GOOD], baseline=CANDIDATE).decision == "fail"


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({}, "asks for `min`"),
        ({"mim": 0.9}, "unknown key `mim`"),
        ({"min": 1.5}, "`min`"),
        ({"min": "0.9"}, "`min`"),
        ({"min": math.nan}, "`min`"),
        ({"min": 0.5, "alpha": 0}, "`alpha`"),
        ({"better_than": "base", "metric": "valid_json"}, "cannot compare `valid_json`"),
    ],
)
def test_a_wrong_gate_is_refused(gate: dict[str, Any], said: str) -> None:
    """A gate that asks for nothing, has an unknown key or an impossible value is a `RecipeError`."""
    with pytest.raises(RecipeError, match=said):
        parse_gate(gate)
    with pytest.raises(RecipeError):
        decide(gate, [GOOD])


def test_a_mistyped_key_gets_its_near_match() -> None:
    """`beter_than` is answered with `better_than`."""
    with pytest.raises(RecipeError) as caught:
        parse_gate({"beter_than": "base"})
    assert caught.value.hint == "did you mean `better_than`?"


def test_a_gate_reads_whole_numbers() -> None:
    """`min: 1` in YAML is the number 1.0."""
    assert parse_gate({"min": 1}) == Gate(min=1.0)


def test_no_check_is_no_pass() -> None:
    """A verdict over nothing is a failure."""
    assert Verdict(()).decision == "fail"
