"""Comparing two evaluations example by example.

Both reports must be about the same examples and the same task: a difference between different questions says nothing
about the models. This module knows no registry and no gates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import DataError
from modelyard.evaluation.reports import ReadReport, read
from modelyard.evaluation.statistics import mcnemar_exact, paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Comparison", "compare", "same_task"]

# Options that change how fast an answer is decoded, not what is asked or counted.
_SPEED_ONLY = {"batch_size"}


@dataclass(frozen=True)
class Comparison:
    """B against A on the same examples.

    Attributes:
        n: Examples in both.
        a_accuracy: Accuracy of A.
        b_accuracy: Accuracy of B.
        a_only: Examples that only A got right.
        b_only: Examples that only B got right.
        difference: `b_accuracy - a_accuracy`.
        interval: 95 % paired bootstrap interval of the difference.
        p_value: Two-sided exact McNemar test of no difference.
    """

    n: int
    a_accuracy: float
    b_accuracy: float
    a_only: int
    b_only: int
    difference: float
    interval: tuple[float, float]
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Compare two reports, paired by example id.

    Args:
        a: Report of the baseline.
        b: Report of the candidate.

    Raises:
        DataError: With code `stale_evidence`, if the two are about different examples, tasks or data sets; with code
            `incomplete_evidence`, if one is not a complete report or has scores other than 0 and 1.
    """
    first, second = read(a), read(b)
    _check_pair(first, second)
    differences = [second.scores[name] - score for name, score in first.scores.items()]
    a_only, b_only = differences.count(-1.0), differences.count(1.0)
    spread = paired_bootstrap(differences)
    return Comparison(
        n=len(differences),
        a_accuracy=first.metrics["accuracy"],
        b_accuracy=second.metrics["accuracy"],
        a_only=a_only,
        b_only=b_only,
        difference=(b_only - a_only) / len(differences),
        interval=(spread.low, spread.high),
        p_value=mcnemar_exact(a_only, b_only),
    )


def same_task(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two task configurations ask and count the same; how many prompts are decoded at once does not matter."""
    return {k: v for k, v in a.items() if k not in _SPEED_ONLY} == {k: v for k, v in b.items() if k not in _SPEED_ONLY}


def _check_pair(a: ReadReport, b: ReadReport) -> None:
    for what, left, right in (("data set", a.dataset, b.dataset), ("examples", a.data_digest, b.data_digest)):
        if left != right:
            raise _stale(
                f"{a.label} and {b.label} are about different {what}: {left[:12] or '-'} and {right[:12] or '-'}"
            )
    if not same_task(a.task, b.task):
        raise _stale(f"{a.label} and {b.label} ran with different options: {a.task} and {b.task}")
    if a.scores.keys() != b.scores.keys():
        raise _stale(f"{a.label} and {b.label} hold different example ids")
    for report in (a, b):
        if not set(report.scores.values()) <= {0.0, 1.0}:
            raise DataError(
                f"{report.label} has scores between 0 and 1, and the paired exact test needs right or wrong",
                code="incomplete_evidence",
            )


def _stale(message: str) -> DataError:
    return DataError(message, hint="evaluate both on the same data with the same task", code="stale_evidence")
