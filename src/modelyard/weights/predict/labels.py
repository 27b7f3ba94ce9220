"""From a classifier's logits to labels with scores, the same for texts, pictures, sounds, videos and series.

Knows nothing of what was classified, nor of how the logits were made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.results import Classification, Label, Regression

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FUNCTIONS", "LabelOptions", "decode", "rank", "softmax"]

FUNCTIONS = ("softmax", "sigmoid", "none")
"""What may make scores of logits."""


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What tasks whose results are labels take.

    Attributes:
        top_k: Labels to give, the likeliest first; None for all.
        function: `softmax`, `sigmoid` or `none`, instead of what the checkpoint's problem type says.
    """

    top_k: int | None = None
    function: str | None = None

    def __post_init__(self) -> None:
        if self.function is not None and self.function not in FUNCTIONS:
            raise RequestError(
                f"`function` is {self.function!r}", hint=f"one of {', '.join(FUNCTIONS)}", field="function"
            )
        check_counts(self, "top_k")


def decode(config: Any, logits: Sequence[float], chosen: LabelOptions) -> Classification | Regression:
    """The labels of one row's logits by the checkpoint's configuration; for a regression model its numbers."""
    if config.problem_type == "regression" and chosen.function is None:
        return Regression(tuple(logits))
    # A model that says no problem type and has one label answers yes or no.
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    scores = _apply(logits, chosen.function or ("sigmoid" if several else "softmax"))
    return rank(scores, config.id2label, chosen.top_k)


def rank(scores: Sequence[float], names: Any, top_k: int | None) -> Classification:
    """The labels by their scores, the highest first; equal scores stay in order."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])[:top_k]
    labels = tuple(Label(str(names[at]), scores[at]) for at in order)
    return Classification(labels[0].label, labels[0].score, labels)


def softmax(logits: Sequence[float]) -> list[float]:
    """Scores that sum to 1."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


def _apply(logits: Sequence[float], function: str) -> list[float]:
    if function == "none":
        return list(logits)
    return [_sigmoid(value) for value in logits] if function == "sigmoid" else softmax(logits)


def _sigmoid(value: float) -> float:
    # exp of a large positive number overflows.
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
