"""`json-fields`: the output is a JSON object with exactly the expected fields and values.

The score is the match of the whole object, whatever the order of its keys. Beside it: how many outputs were a valid
object, how often the intent was right, and how many of the expected slots were right. A key that occurs twice, NaN and
text around the object make an output invalid: a program that reads the answer would stumble over them too.

>>> parse_object('{"intent": "hello"}'), parse_object('{"a": 1, "a": 2}'), parse_object("[1]")
({'intent': 'hello'}, None, None)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from modelyard.errors import DataError
from modelyard.evaluation.tasks.base import Family, Score, Task, TaskConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.evaluation.examples import Example

__all__ = ["FAMILY", "JsonFieldsConfig", "parse_object"]


class JsonFieldsConfig(TaskConfig):
    """Options of `json-fields`.

    Attributes:
        intent_field: The key reported as `intent_accuracy`; all others count as slots.
        first_line: Read only the first line of the output that is not empty.
    """

    name: Literal["json-fields"] = "json-fields"
    intent_field: str = "intent"
    first_line: bool = False


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None where it is not exactly one."""
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):  # not JSON, or nested deeper than anything a task asks for
        return None
    return found if isinstance(found, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _same(left: Any, right: Any) -> bool:
    """Equality as JSON means it: `true` is not 1, and 1 is 1.0."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


class JsonFields:
    """Scores 1 where the whole object matches."""

    def __init__(self, config: JsonFieldsConfig, expected: dict[str, dict[str, Any]]) -> None:
        self._config = config
        self._expected = expected

    def score(self, example: Example, output: str) -> Score:
        """1.0 for the expected object, else 0.0; the facts count fields."""
        text = output.strip()
        found = parse_object(text.split("\n", 1)[0] if self._config.first_line else text)
        expected = self._expected[example.id]
        right = {
            key for key, value in expected.items() if found is not None and key in found and _same(found[key], value)
        }
        slots = expected.keys() - {self._config.intent_field}
        facts = {
            "valid": found is not None,
            "intent": self._config.intent_field in right if self._config.intent_field in expected else None,
            "slots": len(slots),
            "right_slots": len(right & slots),
        }
        return Score(float(found is not None and _same(found, expected)), facts)

    def summarize(self, scores: Sequence[Score]) -> dict[str, float]:
        """`valid_json`; `intent_accuracy` and `slot_accuracy` where any example has an intent or a slot."""
        metrics = {"valid_json": sum(score.facts["valid"] for score in scores) / len(scores)}
        intents = [score.facts["intent"] for score in scores if score.facts["intent"] is not None]
        if intents:
            metrics["intent_accuracy"] = sum(intents) / len(intents)
        slots = sum(score.facts["slots"] for score in scores)
        if slots:
            metrics["slot_accuracy"] = sum(score.facts["right_slots"] for score in scores) / slots
        return metrics


def _build(config: JsonFieldsConfig, examples: Sequence[Example]) -> Task:
    expected = {}
    for example in examples:
        parsed = parse_object(example.expected)
        if parsed is None:
            raise DataError(
                f"example `{example.id}`: the expected answer is not a JSON object: {example.expected[:80]!r}",
                hint="use the task `exact-match` for plain text",
            )
        expected[example.id] = parsed
    return JsonFields(config, expected)


FAMILY = Family("json-fields", JsonFieldsConfig, _build)
