"""`number`: the final number of a worked answer, as GSM8K asks for it.

The final number is the first one after the last `####`; without `####`, the last number in the text. Numbers are
compared by value: `1,000`, `$1000` and `1000.00` are the same. Format: Cobbe et al., "Training Verifiers to Solve Math
Word Problems", arXiv:2110.14168.

>>> final_number("He has 3 + 4 = <<3+4=7>>7 apples. #### 1,007.0"), final_number("no digits")
(Decimal('1007.0'), None)
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modelyard.errors import DataError
from modelyard.evaluation.tasks.base import Family, Score, Task, TaskConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.evaluation.examples import Example

__all__ = ["FAMILY", "NumberConfig", "final_number"]

MARK = "####"
# A minus belongs to the number unless it stands between two operands ("10-5"); a comma only between groups of digits.
_NUMBER = re.compile(r"(?:(?<![\w.)])-\s?\$?)?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)", re.ASCII)


class NumberConfig(TaskConfig):
    """Options of `number`.

    Attributes:
        require_mark: Count an answer without `####` as wrong, instead of reading its last number.
    """

    name: Literal["number"] = "number"
    max_new_tokens: int = Field(default=256, ge=1)
    require_mark: bool = False


def final_number(text: str, *, require_mark: bool = False) -> Decimal | None:
    """The final number in `text`, or None where there is none."""
    before, mark, after = text.rpartition(MARK)
    if mark:
        found = _NUMBER.findall(after)[:1]
    elif require_mark:
        return None
    else:
        found = _NUMBER.findall(before or after)[-1:]
    return Decimal(re.sub(r"[,\s$]", "", found[0])) if found else None


class Number:
    """Scores 1 where the final numbers are equal."""

    def __init__(self, config: NumberConfig, expected: dict[str, Decimal]) -> None:
        self._config = config
        self._expected = expected

    def score(self, example: Example, output: str) -> Score:
        """1.0 for the expected number, else 0.0."""
        found = final_number(output, require_mark=self._config.require_mark)
        return Score(float(found == self._expected[example.id]), {"found": found is not None, "mark": MARK in output})

    def summarize(self, scores: Sequence[Score]) -> dict[str, float]:
        """`has_number` and `has_mark`: the shares of outputs with a final number, and with `####`."""
        return {
            "has_number": sum(score.facts["found"] for score in scores) / len(scores),
            "has_mark": sum(score.facts["mark"] for score in scores) / len(scores),
        }


def _build(config: NumberConfig, examples: Sequence[Example]) -> Task:
    expected = {}
    for example in examples:
        number = final_number(example.expected)
        if number is None:
            raise DataError(f"example `{example.id}`: the expected answer holds no number: {example.expected[:80]!r}")
        expected[example.id] = number
    return Number(config, expected)


FAMILY = Family("number", NumberConfig, _build)
