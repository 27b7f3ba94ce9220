"""Gates: may an alias move to this version, judged on reports of that very version.

A gate asks for a floor (`min`), for being better than another version (`better_than`, by the exact McNemar test on the
same examples), or both. `judge` answers `pass`, `fail`, or `more`: the candidate looks better and the examples are too
few to say so. No evidence, stale evidence and incomplete evidence never pass. This module knows no registry: whoever
calls it has resolved the versions and fetched their reports.

>>> verdict = judge({"min": 0.9}, candidate="c" * 64, reports=[], baseline=None, baseline_reports=[])
>>> verdict.decision, "yard eval" in verdict.reasons[0]
('fail', True)
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelyard.errors import DataError
from modelyard.evaluation import _strict
from modelyard.evaluation.comparison import Comparison, compare
from modelyard.evaluation.reports import ReadReport, read
from modelyard.evaluation.statistics import examples_needed, mcnemar_exact

__all__ = ["Check", "Decision", "Gate", "Verdict", "judge", "parse_gate"]

Decision = Literal["pass", "fail", "more"]

PRIMARY = "accuracy"
"""The metric that the paired test is about: the mean of the per-example scores."""


class Gate(BaseModel):
    """A rule that a version's reports must pass.

    Attributes:
        metric: Which metric `min` is about.
        min: The measured value must reach it; its interval is reported, and does not decide.
        better_than: `base`, `incumbent` or a reference: the candidate must beat it, significantly, on the same examples.
        alpha: Significance level of that test, two-sided.
        task: Only reports of this task count; None means every task that was evaluated.
        dataset: Only reports on this data set version count.
        allow_nonfinite: Let weights pass that hold NaN or infinity. The registry looks at them, not the judge.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    metric: str = PRIMARY
    min: float | None = Field(default=None, ge=0, le=1)
    better_than: str | None = Field(default=None, min_length=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    task: str | None = None
    dataset: str | None = None
    allow_nonfinite: bool | None = None

    @model_validator(mode="after")
    def _ask_for_something(self) -> Gate:
        if self.min is None and self.better_than is None:
            raise ValueError("a gate asks for `min`, for `better_than`, or for both")
        if self.better_than is not None and self.metric != PRIMARY:
            raise ValueError(
                f"`better_than` compares `{PRIMARY}`, example by example; it cannot compare `{self.metric}`"
            )
        return self


@dataclass(frozen=True)
class Check:
    """One question that the gate asked, and its answer.

    Attributes:
        name: `evidence`, `min` or `better_than`.
        decision: How this check went.
        reason: Why, in words and numbers.
        numbers: The numbers, for programs.
        further: With `more`: how many examples beyond the ones there are; else 0.
    """

    name: str
    decision: Decision
    reason: str
    numbers: dict[str, Any]
    further: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the gate says: `fail` if any check fails, else `more` if any needs more, else `pass`."""

    checks: tuple[Check, ...]

    @property
    def decision(self) -> Decision:
        """The decision over all checks; no check at all is a failure."""
        decisions = {check.decision for check in self.checks}
        if not decisions or "fail" in decisions:
            return "fail"
        return "more" if "more" in decisions else "pass"

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each check."""
        return tuple(check.reason for check in self.checks)

    @property
    def further(self) -> int:
        """With `more`: how many further examples are needed; else 0."""
        return max((check.further for check in self.checks), default=0) if self.decision == "more" else 0

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain values for JSON."""
        return {
            "decision": self.decision,
            "reasons": list(self.reasons),
            "further_examples": self.further,
            "checks": [
                {"check": check.name, "decision": check.decision, "reason": check.reason, **check.numbers}
                for check in self.checks
            ],
        }


def parse_gate(values: Mapping[str, Any]) -> Gate:
    """The gate that a mapping of options stands for.

    Raises:
        RecipeError: For an unknown key (with the near match), a wrong value, or a gate that asks for nothing.
    """
    return _strict.parse(Gate, values, "the gate")


def judge(
    gate: Mapping[str, Any],
    *,
    candidate: str,
    reports: Sequence[Mapping[str, Any]],
    baseline: str | None,
    baseline_reports: Sequence[Mapping[str, Any]],
) -> Verdict:
    """Judge a candidate on its reports.

    Of reports with the same task name and data set, only those on the most examples count: a quick look at the first ten
    rows neither helps nor hurts once all rows were evaluated. Every report that counts must pass: nothing is picked
    because it looks good.

    Args:
        gate: The gate's options, see `Gate`.
        candidate: Version id of what would be promoted; reports of any other version are no evidence.
        reports: Reports that may be about the candidate.
        baseline: Version id of what `better_than` names; None where there is none yet.
        baseline_reports: Reports that may be about the baseline.

    Raises:
        RecipeError: If the gate itself is wrong.
    """
    rule = parse_gate(gate)
    evidence, troubles = _evidence(rule, candidate, reports)
    if not evidence:
        return Verdict((*troubles, _missing(rule, candidate, reports)))
    checks = list(troubles)
    for report, checked in evidence:
        if rule.min is not None:
            checks.append(_floor(rule, checked))
        if rule.better_than is not None:
            checks.append(_better(rule, report, checked, baseline, baseline_reports))
    return Verdict(tuple(checks))


_Evidence = tuple[Mapping[str, Any], ReadReport]


def _evidence(rule: Gate, version: str, reports: Sequence[Mapping[str, Any]]) -> tuple[list[_Evidence], list[Check]]:
    """The reports that count, and a failed check for each report of this version that is not complete."""
    largest: dict[tuple[str, str], list[_Evidence]] = {}
    troubles = []
    for report in reports:
        if report.get("model") != version or not _asked(rule, report):
            continue
        try:
            checked = read(report)
        except DataError as error:
            troubles.append(Check("evidence", "fail", f"incomplete evidence: {error.message}", {"code": error.code}))
            continue
        kept = largest.setdefault((checked.task["name"], checked.dataset), [])
        if not kept or checked.n == kept[0][1].n:
            kept.append((report, checked))
        elif checked.n > kept[0][1].n:
            kept[:] = [(report, checked)]
    return [found for kept in largest.values() for found in kept], troubles


def _asked(rule: Gate, report: Mapping[str, Any]) -> bool:
    task = report.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    return rule.task in (None, name) and rule.dataset in (None, report.get("dataset"))


def _missing(rule: Gate, version: str, reports: Sequence[Mapping[str, Any]]) -> Check:
    others = sorted({str(report.get("model", "?"))[:12] for report in reports if report.get("model") != version})
    elsewhere = [report for report in reports if report.get("model") == version]
    about = " and ".join(
        [f"task `{rule.task}`"] * bool(rule.task) + [f"data set {str(rule.dataset)[:12]}"] * bool(rule.dataset)
    )
    reason = f"there is no report of {version[:12]}" + (f" for {about}" if about else "")
    if others:
        reason += f"; stale evidence: reports of {', '.join(others)} say nothing about it"
    elif elsewhere and about:
        reason += f"; stale evidence: its {len(elsewhere)} report(s) are about something else"
    reason += f"; run `{_command(rule, version)}`"
    return Check("evidence", "fail", reason, {"code": "stale_evidence" if others or elsewhere else "no_evidence"})


def _command(rule: Gate, version: str, report: ReadReport | None = None) -> str:
    """What to run for the evidence that is missing; a version's repo is not known here, its digest is."""
    task = report.task["name"] if report else rule.task or "TASK"
    dataset = report.dataset if report else rule.dataset
    data = f"datasets/REPO@{dataset[:12]}" if dataset else "DATA"
    file = f":{report.file}" if report and report.file and dataset else ""
    # The command is there to be pasted, and a report's file and task are other people's text.
    return f"yard eval REPO@{version[:12]} --data {shlex.quote(data + file)} --task {shlex.quote(task)}"


def _floor(rule: Gate, report: ReadReport) -> Check:
    value = report.metrics.get(rule.metric)
    numbers: dict[str, Any] = {"metric": rule.metric, "required": rule.min, "measured": value, "n": report.n}
    if value is None:
        known = ", ".join(f"`{name}`" for name in sorted(report.metrics))
        return Check("min", "fail", f"{report.label} did not produce `{rule.metric}`; it has {known}", numbers)
    reached = rule.min is not None and value >= rule.min
    bounds = report.interval.get(rule.metric)
    spread = ""
    if bounds is not None:
        numbers["interval"] = list(bounds)
        spread = f" (95 % interval {bounds[0]:.3f} to {bounds[1]:.3f})"
    verb = "reaches" if reached else "does not reach"
    reason = f"{rule.metric} {_short(value)} on {report.n} examples{spread} {verb} {rule.min}"
    return Check("min", "pass" if reached else "fail", reason, numbers)


def _better(
    rule: Gate,
    report: Mapping[str, Any],
    checked: ReadReport,
    baseline: str | None,
    baseline_reports: Sequence[Mapping[str, Any]],
) -> Check:
    named = f"`{rule.better_than}`"
    if baseline is None:
        if rule.better_than == "incumbent":
            return Check("better_than", "pass", "there is no incumbent yet, so there is nothing to be better than", {})
        return Check("better_than", "fail", f"there is no version {named} to compare with", {"code": "no_evidence"})
    if baseline == checked.model:
        reason = f"the candidate and {named} are the same version, which is not better than itself"
        return Check("better_than", "fail", reason, {})
    same = [other for other in baseline_reports if other.get("model") == baseline]
    matching = [other for other in same if other.get("data_digest") == checked.data_digest]
    cause = f"there is no report of {named} ({baseline[:12]}) on the same {checked.n} examples"
    for other in matching:
        try:
            return _paired(rule, compare(other, report), baseline)
        except DataError as error:
            cause = error.message
    code = "stale_evidence" if same else "no_evidence"
    reason = f"{cause}; run `{_command(rule, baseline, checked)}`"
    return Check("better_than", "fail", reason, {"code": code, "baseline": baseline})


def _paired(rule: Gate, found: Comparison, baseline: str) -> Check:
    numbers = {"baseline": baseline, "alpha": rule.alpha, **found.to_dict()}
    measured = (
        f"{_short(found.b_accuracy)} against {_short(found.a_accuracy)} of `{rule.better_than}` on the same {found.n} examples "
        f"({found.b_only} only the candidate got right, {found.a_only} only the other)"
    )
    if found.difference <= 0:
        return Check("better_than", "fail", f"accuracy {measured}: not better", numbers)
    if found.p_value < rule.alpha:
        reason = f"accuracy {measured}: better, exact McNemar p = {found.p_value:.3g}, below {rule.alpha}"
        return Check("better_than", "pass", reason, numbers)
    further = _further(found, rule.alpha)
    reason = (
        f"accuracy {measured}: better, but not significantly (exact McNemar p = {found.p_value:.3g}, not below {rule.alpha}); "
        f"needs about {further} more examples to decide, if the difference holds"
    )
    return Check("better_than", "more", reason, {**numbers, "further_examples": further}, further)


def _further(found: Comparison, alpha: float) -> int:
    """How many more examples a test with 80 % power needs if both shares stay as they are.

    Connor's formula is for the approximate test; the exact one needs a little more, so the total is raised until the same
    shares would be significant.
    """
    discordance = (found.a_only + found.b_only) / found.n
    total = max(found.n + 1, examples_needed(discordance, found.difference, alpha=alpha))
    while mcnemar_exact(found.a_only * total // found.n, found.b_only * total // found.n) >= alpha:
        total += max(1, total // 20)
    return total - found.n


def _short(value: float) -> str:
    return f"{value:.3f}"
