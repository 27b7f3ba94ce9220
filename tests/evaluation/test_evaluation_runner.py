"""Running an evaluation: complete or not at all, in order, and the same every time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import DataError, ModelError, RecipeError, RequestError
from modelyard.evaluation import Example, data_digest, evaluate, from_messages, from_rows
from modelyard.evaluation.reports import read
from modelyard.evaluation.tasks import Family, Score, TaskConfig, register
from modelyard.evaluation.tasks import base as tasks_base

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass
class Echo:
    """A model that answers by a rule on the question; it remembers how it was called."""

    answer: Callable[[str], Any] = str.upper
    batches: list[list[str]] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)

    def render(self, messages: Any) -> list[int]:
        return list(messages[-1]["content"].encode())

    def batch_generate(self, prompts: Sequence[Any], *, batch_size: int, **params: Any) -> list[str]:
        questions = [prompt[-1]["content"] for prompt in prompts]
        self.batches.append(questions)
        self.params.append({"batch_size": batch_size, **params})
        return [self.answer(question) for question in questions]


def ask(*questions: str) -> list[Example]:
    """Examples whose right answer is the question in capitals."""
    return [Example(str(i), [{"role": "user", "content": q}], q.upper()) for i, q in enumerate(questions)]


def test_a_report_holds_every_example_in_order() -> None:
    """The report keeps the order given, whatever order was decoded, with output and score of each."""
    report = evaluate(Echo(), ask("a", "ccc", "bb"), {"name": "exact-match", "batch_size": 2})
    assert [(e["id"], e["expected"], e["output"], e["score"]) for e in report["examples"]] == [
        ("0", "A", "A", 1.0),
        ("1", "CCC", "CCC", 1.0),
        ("2", "BB", "BB", 1.0),
    ]
    assert (report["format"], report["n"], report["metrics"]) == ("modelyard/report/1", 3, {"accuracy": 1.0})
    assert read(report).n == 3


def test_prompts_are_decoded_greedily_longest_first() -> None:
    """Batches hold prompts of similar length, the longest first, at temperature 0 with the task's token limit."""
    model = Echo()
    evaluate(model, ask("a", "dddd", "bb", "ccc", "e"), {"name": "exact-match", "batch_size": 2, "max_new_tokens": 5})
    assert model.batches == [["dddd", "ccc"], ["bb", "a"], ["e"]]
    assert all(params == {"batch_size": 2, "max_new_tokens": 5, "temperature": 0.0} for params in model.params)


def test_progress_counts_examples() -> None:
    """The callback hears after each batch how many of all examples are done."""
    seen: list[tuple[int, int]] = []
    evaluate(Echo(), ask(*"abcde"), {"name": "exact-match", "batch_size": 2}, progress=lambda *done: seen.append(done))
    assert seen == [(2, 5), (4, 5), (5, 5)]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_batch_size_changes_nothing(questions: list[str], size: int) -> None:
    """Any batch size gives the same report but for the option itself."""
    one = evaluate(Echo(), ask(*questions), {"name": "exact-match", "batch_size": 1})
    other = evaluate(Echo(), ask(*questions), {"name": "exact-match", "batch_size": size})
    assert {**one, "task": None} == {**other, "task": None}


def test_a_report_is_the_same_bytes_every_time() -> None:
    """Two evaluations give the same JSON: a report carries no clock and no host."""
    first, second = (json.dumps(evaluate(Echo(), ask("a", "b"), "exact-match")) for _ in range(2))
    assert first == second


def test_accuracy_comes_with_its_wilson_interval() -> None:
    """Nine of ten right is 0.9, with the interval 0.596 to 0.982."""
    report = evaluate(Echo(lambda q: q.upper() if q != "j" else "?"), ask(*"abcdefghij"), "exact-match")
    assert report["metrics"]["accuracy"] == 0.9
    assert report["interval"]["accuracy"] == pytest.approx([0.59585, 0.98212], abs=1e-4)


def test_limit_keeps_the_first_examples() -> None:
    """With `limit` the report, and its data digest, are about the first examples only."""
    examples = ask("a", "b", "c")
    report = evaluate(Echo(), examples, {"name": "exact-match", "limit": 2})
    assert report["n"] == 2
    assert report["data_digest"] == data_digest(examples[:2]) != data_digest(examples)


def test_repeated_questions_are_counted() -> None:
    """`duplicates` says how many examples ask what an earlier one asked."""
    assert evaluate(Echo(), ask("a", "b", "a", "a"), "exact-match")["duplicates"] == 2


def test_prompt_digest_is_of_what_the_model_sees() -> None:
    """Two models that render a question differently leave different prompt digests."""

    class Other(Echo):
        def render(self, messages: Any) -> list[int]:
            return [0, *super().render(messages)]

    first, second = (evaluate(model, ask("a"), "exact-match")["examples"][0] for model in (Echo(), Other()))
    assert first["prompt_digest"] != second["prompt_digest"]


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([], "no examples"),
        ([*ask("a"), *ask("b")], "two examples have the id `0`"),
        ([Example("x", [], "A")], "asks nothing"),
        ([Example("x", [{"role": "user", "content": None}], "A")], "not text"),
    ],
)
def test_unusable_examples_are_refused_before_any_compute(examples: list[Example], said: str) -> None:
    """Zero examples, duplicate ids and messages without text are a `DataError`, and the model is not asked."""
    model = Echo()
    with pytest.raises(DataError, match=said):
        evaluate(model, examples, "exact-match")
    assert model.batches == []


@pytest.mark.parametrize("answers", [[], ["A"], ["A", "B", "C"], ["A", None]])
def test_a_missing_answer_makes_no_report(answers: list[Any]) -> None:
    """A model that answers too few, too many or no text ends the evaluation with `incomplete_evaluation`."""

    class Broken(Echo):
        def batch_generate(self, prompts: Sequence[Any], *, batch_size: int, **params: Any) -> list[str]:
            return answers

    with pytest.raises(ModelError) as caught:
        evaluate(Broken(), ask("a", "b"), "exact-match")
    assert caught.value.code == "incomplete_evaluation"


def test_a_crash_half_way_makes_no_report() -> None:
    """What the model raises in its second batch is raised, and nothing is returned."""

    def fail(question: str) -> str:
        if question == "b":
            raise ModelError("the logits are not finite")
        return question

    with pytest.raises(ModelError, match="not finite"):
        evaluate(Echo(fail), ask("aa", "b"), {"name": "exact-match", "batch_size": 1})


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.5])
def test_a_score_that_is_no_score_makes_no_report(score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, infinity and anything outside [0, 1] end the evaluation with `incomplete_evaluation`."""
    monkeypatch.setattr(tasks_base, "_FAMILIES", dict(tasks_base._FAMILIES))

    class Broken:
        def score(self, example: Example, output: str) -> Score:
            return Score(score)

        def summarize(self, scores: Sequence[Score]) -> dict[str, float]:
            return {}

    register(Family("broken", TaskConfig, lambda config, examples: Broken()))
    with pytest.raises(ModelError) as caught:
        evaluate(Echo(), ask("a"), "broken")
    assert caught.value.code == "incomplete_evaluation"


def test_what_the_model_cannot_take_names_the_example() -> None:
    """A prompt that the template or the context refuses is a `DataError` with the example's id and the model's hint."""

    class Small(Echo):
        def batch_generate(self, prompts: Sequence[Any], *, batch_size: int, **params: Any) -> list[str]:
            raise RequestError("the prompt has 900 tokens and the context is 512", hint="shorten it")

    class Plain(Echo):
        def render(self, messages: Any) -> list[int]:
            raise RequestError("this model has no chat template")

    for model in (Small(), Plain()):
        with pytest.raises(DataError, match="example `0`"):
            evaluate(model, ask("a"), "exact-match")


def test_an_unknown_task_is_refused() -> None:
    """A task that is not registered is a `RecipeError`."""
    with pytest.raises(RecipeError):
        evaluate(Echo(), ask("a"), "exact-mach")


@dataclass(frozen=True)
class Row:
    """A row as the data readers give it."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    completion: str | None = None
    source: str = "test.jsonl:3"


def test_rows_become_examples() -> None:
    """The last answer of a conversation, or the completion of a prompt, is what is expected; ids count from 1."""
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "weight": 1},
    ]
    made = from_rows([Row(messages=talk), Row(prompt="p", completion=" c ")])
    assert made == [
        Example("1", [{"role": "user", "content": "q"}], "a"),
        Example("2", [{"role": "user", "content": "p"}], "c"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        Row(),
        Row(prompt="only a question"),
        Row(messages=[{"role": "assistant", "content": "a"}]),
        Row(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        Row(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]),
        Row(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]),
    ],
)
def test_a_row_without_question_and_answer_is_named(row: Row) -> None:
    """A row that holds no question with a text answer is a `DataError` that names its file and row."""
    with pytest.raises(DataError, match=r"test\.jsonl:3"):
        from_rows([row])


def test_data_digest_covers_every_part() -> None:
    """Another id, role, content, answer or order is another digest; the same examples have the same one."""
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    first = from_messages(talk, id="1")
    others = [
        from_messages(talk, id="2"),
        Example("1", [{"role": "system", "content": "q"}], "a"),
        Example("1", [{"role": "user", "content": "Q"}], "a"),
        Example("1", first.messages, "A"),
    ]
    digests = {data_digest([example]) for example in [first, *others]}
    assert len(digests) == 5
    assert data_digest([first, others[0]]) != data_digest([others[0], first])
    assert data_digest([first]) == data_digest([from_messages(talk, id="1")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers and torch
def test_a_real_model_is_evaluated(tmp_path: Path) -> None:
    """A tiny Llama with a chat template is evaluated to the same report twice, with the package versions in it."""
    from modelyard.weights.load import load
    from tiny_models import save_model

    model = load(save_model(tmp_path / "model"))
    examples = ask("hello there", "hi", "a longer question than the others")
    report = evaluate(model, examples, {"name": "exact-match", "max_new_tokens": 4, "batch_size": 2})
    assert report == evaluate(model, examples, {"name": "exact-match", "max_new_tokens": 4, "batch_size": 2})
    assert [example["output"] for example in report["examples"]] == [
        model.generate(example.messages, max_new_tokens=4, temperature=0.0) for example in examples
    ]
    assert {"torch", "transformers", "modelyard", "python"} <= report["environment"].keys()
