"""Task families: what counts as right, and what is refused before anything is generated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import ConflictError, DataError, RecipeError
from modelyard.evaluation.examples import Example
from modelyard.evaluation.tasks import Family, Score, TaskConfig, build_task, parse_task, register, task_names
from modelyard.evaluation.tasks import base as tasks_base
from modelyard.evaluation.tasks.number import final_number

if TYPE_CHECKING:
    from collections.abc import Sequence


def example(expected: str, name: str = "1") -> Example:
    """An example whose question does not matter."""
    return Example(name, [{"role": "user", "content": "?"}], expected)


def value(task: str | dict[str, Any], expected: str, output: str) -> float:
    """How one output scores."""
    asked = example(expected)
    return build_task(parse_task(task), [asked]).score(asked, output).value


@pytest.mark.parametrize(
    ("options", "expected", "output", "right"),
    [
        ({}, "Yes.", "  Yes.\n", True),
        ({}, "Yes.", "yes.", False),
        ({}, "a b", "a   b", True),
        ({"collapse_spaces": False}, "a b", "a   b", False),
        ({"ignore_case": True}, "Straße", "STRASSE", True),
        ({"ignore_punctuation": True}, "Yes.", "Yes!", True),
        ({}, "é", "e\u0301", True),
        ({}, "4", "4\nAnd more", False),
        ({"first_line": True}, "4", "4\nAnd more", True),
        ({}, "", "something", False),
    ],
)
def test_exact_match_counts_what_its_options_say(
    options: dict[str, Any], expected: str, output: str, right: bool
) -> None:
    """Equal after the normalisation that was asked for, and only then."""
    assert value({"name": "exact-match", **options}, expected, output) == float(right)


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ('{"intent": "refund", "order": "12"}', True),
        (' {"order":"12","intent":"refund"}\n', True),
        ('{"intent": "refund", "order": 12}', False),
        ('{"intent": "refund"}', False),
        ('{"intent": "refund", "order": "12", "more": 1}', False),
        ('{"intent": "refund", "intent": "refund", "order": "12"}', False),
        ('Sure: {"intent": "refund", "order": "12"}', False),
        ('["refund"]', False),
        ("[" * 100_000, False),
        ('{"intent": NaN}', False),
        ("1" * 10_000, False),
        ("", False),
    ],
)
def test_json_fields_compares_whole_objects(output: str, right: bool) -> None:
    """Exactly the expected keys and values, in any order; everything else is wrong and no output is an error."""
    assert value("json-fields", '{"intent": "refund", "order": "12"}', output) == float(right)


@pytest.mark.parametrize(
    ("expected", "output", "same"), [("1", "1.0", True), ("1", "true", False), ("[0]", "[false]", False)]
)
def test_json_values_compare_as_json(expected: str, output: str, same: bool) -> None:
    """1 is 1.0, and true is not 1, at any depth."""
    assert value("json-fields", f'{{"a": {expected}}}', f'{{"a": {output}}}') == float(same)


def test_json_fields_counts_fields() -> None:
    """Beside the score: valid objects, right intents, and right slots over all slots."""
    examples = [
        example('{"intent": "a", "x": "1", "y": "2"}', "1"),
        example('{"intent": "b"}', "2"),
        example('{"z": "3"}', "3"),
    ]
    task = build_task(parse_task("json-fields"), examples)
    outputs = ['{"intent": "a", "x": "1", "y": "9"}', "no", '{"z": "3"}']
    scores = [task.score(asked, output) for asked, output in zip(examples, outputs, strict=True)]
    assert [score.value for score in scores] == [0.0, 0.0, 1.0]
    assert task.summarize(scores) == {"valid_json": 2 / 3, "intent_accuracy": 0.5, "slot_accuracy": 2 / 3}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7 #### 7", "7"),
        ("#### 1,234,567", "1234567"),
        ("It costs $1,000.50.", "1000.50"),
        ("The answer is -3", "-3"),
        ("#### -$40 and 2 more", "-40"),
        ("10-5", "5"),
        ("about .5", ".5"),
        ("#### 5 #### 6 then 9", "6"),
        ("#### none but 4 before", "4"),
        ("1,2", "2"),
        ("nothing", None),
        ("5 ####", None),
        ("Bücher: ٣", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    """The number after the last `####`, else the last number."""
    from decimal import Decimal

    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**12), 10**12))
def test_final_number_reads_any_grouping(whole: int) -> None:
    """A whole number is read back with and without thousands separators."""
    assert final_number(f"so #### {whole:,}") == whole == final_number(f"is {whole}.")


def test_number_reads_real_gsm8k_answers(shared_data: Any) -> None:
    """Every reference answer of the GSM8K test set scores 1 against itself and holds the mark."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()
    examples = [example(json.loads(line)["answer"], str(number)) for number, line in enumerate(lines)]
    task = build_task(parse_task("number"), examples)
    scores = [task.score(asked, asked.expected) for asked in examples]
    assert len(scores) == 1319
    assert {score.value for score in scores} == {1.0}
    assert task.summarize(scores) == {"has_number": 1.0, "has_mark": 1.0}


def test_number_can_require_the_mark() -> None:
    """With `require_mark` a last number without `####` does not count."""
    assert value("number", "#### 7", "it is 7") == 1.0
    assert value({"name": "number", "require_mark": True}, "#### 7", "it is 7") == 0.0


@pytest.mark.parametrize(
    ("output", "right"),
    [("card_arrival", True), ("Card arrival.\nmore", True), ("cash", False), ("card", False), ("", False)],
)
def test_label_names_one_of_the_set(output: str, right: bool) -> None:
    """Case, punctuation and `_` do not count; part of a label is no label."""
    options = {"name": "label", "labels": ["card_arrival", "cash"]}
    assert value(options, "card_arrival", output) == float(right)


def test_label_summary() -> None:
    """`valid_label` counts outputs in the set; `macro_f1` is the mean F1 over expected labels."""
    examples = [example(label, str(index)) for index, label in enumerate(["a", "a", "b", "b"])]
    task = build_task(parse_task("label"), examples)
    scores = [task.score(asked, output) for asked, output in zip(examples, ["a", "b", "b", "what?"], strict=True)]
    assert task.summarize(scores) == {"valid_label": 0.75, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 2)}


@pytest.mark.parametrize(
    ("task", "expected", "said"),
    [
        ("json-fields", "not json", "not a JSON object"),
        ("number", "no digits", "holds no number"),
        ({"name": "label", "labels": ["x"]}, "y", "not in the set"),
    ],
)
def test_an_unusable_expected_answer_is_named(task: Any, expected: str, said: str) -> None:
    """A task refuses an example that it could never score right, naming it."""
    with pytest.raises(DataError, match=said) as caught:
        build_task(parse_task(task), [example(expected, "row-9")])
    assert "row-9" in caught.value.message


@pytest.mark.parametrize("labels", [["a b", "a_b"], ["?"]])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str]) -> None:
    """Two labels with one normalised form, or an empty one, are a `RecipeError`."""
    with pytest.raises(RecipeError):
        build_task(parse_task({"name": "label", "labels": labels}), [example("a b")])


def test_an_unknown_task_gets_its_near_match() -> None:
    """A mistyped task name is a `RecipeError` that names the one meant."""
    with pytest.raises(RecipeError) as caught:
        parse_task("json_field")
    assert caught.value.hint == "did you mean `json-fields`?"


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"name": "number", "max_new_token": 4}, "did you mean `max_new_tokens`?"),
        ({"name": "exact-match", "labels": ["a"]}, None),
        ({"name": "number", "batch_size": 0}, None),
        ({"name": "number", "batch_size": "8"}, None),
        ({"max_new_tokens": 4}, None),
    ],
)
def test_a_wrong_option_is_named(values: dict[str, Any], hint: str | None) -> None:
    """An unknown key, another family's key, a wrong type or range is a `RecipeError`, with the near match if any."""
    with pytest.raises(RecipeError) as caught:
        parse_task(values)
    if hint:
        assert caught.value.hint == hint


def test_a_plain_config_becomes_its_familys() -> None:
    """A `TaskConfig` by name takes the family's defaults for what was not set."""
    parsed = parse_task(TaskConfig(name="number", batch_size=4))
    assert (parsed.max_new_tokens, parsed.batch_size) == (256, 4)
    assert parse_task(parsed) == parsed


def test_a_family_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered family is found by name; another one under the same name is a conflict."""
    monkeypatch.setattr(tasks_base, "_FAMILIES", dict(tasks_base._FAMILIES))

    class LengthConfig(TaskConfig):
        least: int = 1

    @dataclass
    class Length:
        config: LengthConfig

        def score(self, example: Example, output: str) -> Score:
            return Score(float(len(output) >= self.config.least))

        def summarize(self, scores: Sequence[Score]) -> dict[str, float]:
            return {}

    register(Family("length", LengthConfig, lambda config, examples: Length(config)))
    assert "length" in task_names()
    assert value({"name": "length", "least": 3}, "", "abc") == 1.0
    with pytest.raises(ConflictError):
        register(Family("length", LengthConfig, lambda config, examples: Length(config)))
