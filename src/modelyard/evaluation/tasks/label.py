"""`label`: the output names one of a closed set of labels.

Case, surrounding white space and punctuation around the label do not count, and `_`, `-` and spaces are the same, so
`Card arrival.` names `card_arrival`. An output that names no label of the set is wrong, and `valid_label` says how many
did name one.

>>> normalise(" Card arrival. "), normalise("card_arrival")
('card arrival', 'card arrival')
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modelyard.errors import DataError, RecipeError
from modelyard.evaluation.tasks.base import Family, Score, Task, TaskConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.evaluation.examples import Example

__all__ = ["FAMILY", "LabelConfig", "normalise"]

_EDGES = re.compile(r"^[^\w]+|[^\w]+$")
_JOINTS = re.compile(r"[\s_\-]+")


class LabelConfig(TaskConfig):
    """Options of `label`.

    Attributes:
        labels: The closed set; None takes it from the examples' expected answers.
        first_line: Read only the first line of the output that is not empty.
    """

    name: Literal["label"] = "label"
    max_new_tokens: int = Field(default=32, ge=1)
    labels: list[str] | None = None
    first_line: bool = True


def normalise(text: str) -> str:
    """The form of a label in which it is compared."""
    return _JOINTS.sub(" ", _EDGES.sub("", text.casefold())).strip()


class Label:
    """Scores 1 where the output names the expected label."""

    def __init__(self, config: LabelConfig, labels: dict[str, str]) -> None:
        self._config = config
        self._labels = labels

    def score(self, example: Example, output: str) -> Score:
        """1.0 for the expected label, else 0.0."""
        text = output.strip()
        named = self._labels.get(normalise(text.split("\n", 1)[0] if self._config.first_line else text))
        expected = self._labels[normalise(example.expected)]
        return Score(float(named == expected), {"named": named, "expected": expected})

    def summarize(self, scores: Sequence[Score]) -> dict[str, float]:
        """`valid_label`, and `macro_f1`: the plain mean of each expected label's F1."""
        expected = Counter(score.facts["expected"] for score in scores)
        named = Counter(score.facts["named"] for score in scores)
        right = Counter(score.facts["expected"] for score in scores if score.value == 1.0)
        f1 = [2 * right[label] / (named[label] + expected[label]) for label in sorted(expected)]
        return {"valid_label": (len(scores) - named[None]) / len(scores), "macro_f1": sum(f1) / len(f1)}


def _build(config: LabelConfig, examples: Sequence[Example]) -> Task:
    labels: dict[str, str] = {}
    for text in (
        config.labels if config.labels is not None else sorted({example.expected.strip() for example in examples})
    ):
        key = normalise(text)
        if not key:
            raise RecipeError(f"the label {text!r} has no letter or digit", field="labels")
        if labels.setdefault(key, text) != text:
            raise RecipeError(f"the labels `{labels[key]}` and `{text}` cannot be told apart", field="labels")
    for example in examples:
        if normalise(example.expected) not in labels:
            raise DataError(
                f"example `{example.id}` expects the label {example.expected[:80]!r}, which is not in the set",
                hint="add it to `labels`, or leave `labels` out to take the set from the examples",
            )
    return Label(config, labels)


FAMILY = Family("label", LabelConfig, _build)
