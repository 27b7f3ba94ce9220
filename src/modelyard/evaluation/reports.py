"""Reports: the outcome of evaluating one version on one data set, as a plain map that becomes JSON.

`read` is the one place that decides whether such a map is complete evidence; comparison and gates believe nothing that
it refuses. A report carries no clock and no host: the same evaluation gives the same report. This module knows no
models and no registry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelyard.errors import DataError

__all__ = ["FORMAT", "ReadReport", "read"]

FORMAT = "modelyard/report/1"


@dataclass(frozen=True)
class ReadReport:
    """A checked report.

    Attributes:
        model: Version id of what was evaluated; empty before the caller has filled it in.
        dataset: Version id of the data set; empty for a file that is in no yard.
        file: The file of the data set that the examples came from; empty where it is not known.
        data_digest: Digest of the examples.
        task: Name and options of the task.
        metrics: Every metric, finite.
        interval: 95 % intervals of metrics that have one.
        scores: Score in [0, 1] by example id, in the order of the examples.
    """

    model: str
    dataset: str
    file: str
    data_digest: str
    task: dict[str, Any]
    metrics: dict[str, float]
    interval: dict[str, tuple[float, float]]
    scores: dict[str, float]

    @property
    def n(self) -> int:
        """How many examples were scored."""
        return len(self.scores)

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"the report of {self.model[:12] or 'an unnamed model'} on `{self.task['name']}`"


def read(report: Mapping[str, Any]) -> ReadReport:
    """Check a report and give it typed.

    Raises:
        DataError: With code `incomplete_evidence`, if the format is another, an example has no finite score in [0, 1],
            an id occurs twice, `n` is not the number of examples, a metric is not finite, or `accuracy` is not the mean
            of the scores.
    """
    if report.get("format") != FORMAT:
        raise _refusal(f"not a report of format `{FORMAT}`: {str(report.get('format'))[:40]!r}")
    task = report.get("task")
    if not isinstance(task, Mapping) or not isinstance(task.get("name"), str):
        raise _refusal("the report names no task")
    if not isinstance(report.get("data_digest"), str):
        raise _refusal("the report does not say which examples it is about")
    scores = _scores(report.get("examples"))
    if report.get("n") != len(scores):
        raise _refusal(f"the report claims {report.get('n')!r} examples and holds {len(scores)}")
    metrics = report.get("metrics")
    if not isinstance(metrics, Mapping) or not all(_finite(value) for value in metrics.values()):
        raise _refusal("the report holds a metric that is not a finite number")
    accuracy = metrics.get("accuracy")
    if accuracy is None or not math.isclose(
        accuracy, math.fsum(scores.values()) / len(scores), rel_tol=0, abs_tol=1e-9
    ):
        raise _refusal(f"the report's accuracy, {accuracy!r}, is not the mean of its scores")
    return ReadReport(
        model=str(report.get("model") or ""),
        dataset=str(report.get("dataset") or ""),
        file=str(report.get("file") or ""),
        data_digest=report["data_digest"],
        task=dict(task),
        metrics={str(name): float(value) for name, value in metrics.items()},
        interval=_intervals(report.get("interval")),
        scores=scores,
    )


def _scores(examples: Any) -> dict[str, float]:
    if not isinstance(examples, list) or not examples:
        raise _refusal("the report holds no examples")
    scores: dict[str, float] = {}
    for position, example in enumerate(examples):
        name = example.get("id") if isinstance(example, Mapping) else None
        if not isinstance(name, str):
            raise _refusal(f"the report's example {position} has no id")
        if name in scores:
            raise _refusal(f"the report holds the example `{name}` twice")
        score = example.get("score")
        if not _finite(score) or not 0 <= score <= 1:
            raise _refusal(f"the report's example `{name}` has no score between 0 and 1: {score!r}")
        scores[name] = float(score)
    return scores


def _intervals(given: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(given, Mapping):
        raise _refusal("the report's intervals are no map")
    for name, bounds in given.items():
        if not (isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(_finite, bounds))):
            raise _refusal(f"the report's interval of `{name}` is not two numbers: {bounds!r}")
    return {str(name): (float(low), float(high)) for name, (low, high) in given.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refusal(message: str) -> DataError:
    return DataError(
        message, hint="evaluate again: an incomplete evaluation is no evidence", code="incomplete_evidence"
    )
