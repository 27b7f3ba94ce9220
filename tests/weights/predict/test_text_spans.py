"""Extractive answers: transformers 5 has no pipeline for them, so every span is scored here by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelyard.errors import RequestError
from modelyard.weights.model import Model
from modelyard.weights.predict import predict
from modelyard.weights.predict.results import Answer
from task_models.opened import open_tiny
from task_models.text import LONG, TEXTS

TASK = "question-answering"
QUESTION = "where does anna work?"


def softmax(values: Any) -> Any:
    """Probabilities of logits."""
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def brute_force(model: Model, question: str, context: str, *, longest: int, missing: bool, **cut: Any) -> list[Answer]:
    """Every span of every window the slow way, the likeliest first; windows by the tokenizer."""
    given = model.processor(
        question, context, return_tensors="pt", return_offsets_mapping=True, padding=True, **cut
    )  # fmt: skip
    given.pop("overflow_to_sample_mapping", None)
    offsets = given.pop("offset_mapping").tolist()
    outputs = model.model(**given)
    found: dict[tuple[int, int], float] = {}
    nothing = 1.0
    for window, places in enumerate(offsets):
        inside = [at for at, text in enumerate(given.sequence_ids(window)) if text == 1]
        used = [0, *inside] if missing else inside
        starts = dict(zip(used, softmax(outputs.start_logits[window, used].detach().double().numpy()), strict=True))
        ends = dict(zip(used, softmax(outputs.end_logits[window, used].detach().double().numpy()), strict=True))
        nothing = min(nothing, starts.get(0, 0.0) * ends.get(0, 0.0))
        for start in inside:
            for end in inside:
                if start <= end < start + longest:
                    left, right = places[start][0], places[end][1]
                    while left < right and context[left].isspace():
                        left += 1
                    if left < right:
                        found[left, right] = max(found.get((left, right), 0.0), starts[start] * ends[end])
    answers = [Answer(context[a:b], float(score), a, b) for (a, b), score in found.items()]
    if missing:
        answers.append(Answer("", float(nothing), 0, 0))
    return sorted(answers, key=lambda answer: (-answer.score, answer.start, answer.end))


def listed(answer: Answer) -> list[Answer]:
    """An answer and its others, each by itself."""
    return [Answer(answer.text, answer.score, answer.start, answer.end), *answer.others]


def assert_same(ours: list[Answer], wanted: list[Answer]) -> None:
    """The same spans in the same order, scores within 1e-5 of one another (relative)."""
    assert [(answer.text, answer.start, answer.end) for answer in ours] == [
        (answer.text, answer.start, answer.end) for answer in wanted
    ]
    assert [answer.score for answer in ours] == pytest.approx([answer.score for answer in wanted], rel=1e-4)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "bart"])
def test_the_best_spans_are_those_of_brute_force(kind: str, missing: bool) -> None:
    """The n best answers are the n likeliest spans of the context, whatever the architecture."""
    model = open_tiny(TASK, kind)
    row = {"question": QUESTION, "context": TEXTS[3]}
    found = predict(model, row, top_k=8, max_answer_tokens=6, impossible=missing)
    wanted = brute_force(model, QUESTION, TEXTS[3], longest=6, missing=missing)
    assert_same(listed(found), wanted[:8])


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_long_contexts_are_read_in_windows(kind: str, missing: bool) -> None:
    """Over the windows of a long context each span counts once, and no answer counts as its least likely window says."""
    model = open_tiny(TASK, kind)
    row = {"question": QUESTION, "context": LONG}
    found = predict(model, row, top_k=5, truncation="windows", stride=12, impossible=missing, batch_size=3)
    windows = {"truncation": "only_second", "max_length": 64, "stride": 12, "return_overflowing_tokens": True}
    assert_same(listed(found), brute_force(model, QUESTION, LONG, longest=15, missing=missing, **windows)[:5])


def test_answers_stand_in_the_context() -> None:
    """The text of an answer is the context between its places, never the question or a special token."""
    model = open_tiny(TASK)
    rows = [{"question": QUESTION, "context": text} for text in TEXTS]
    for row, answer in zip(rows, predict(model, rows, top_k=4), strict=True):
        for found in listed(answer):
            assert found.text == row["context"][found.start : found.end]
            assert found.text.strip() == found.text != ""


def test_no_answer_is_longer_than_asked() -> None:
    """`max_answer_tokens=1` gives single tokens only."""
    model = open_tiny(TASK)
    answer = predict(model, {"question": QUESTION, "context": TEXTS[3]}, max_answer_tokens=1, top_k=10)
    given = model.processor(TEXTS[3], add_special_tokens=False, return_offsets_mapping=True)
    assert {(found.start, found.end) for found in listed(answer)} <= set(map(tuple, given["offset_mapping"]))


def test_a_row_of_a_batch_equals_its_solo_result() -> None:
    """Answers do not depend on the rows beside them."""
    model = open_tiny(TASK)
    rows = [{"question": QUESTION, "context": text} for text in TEXTS]
    for row, together in zip(rows, predict(model, rows, top_k=3), strict=True):
        assert_same(listed(predict(model, row, top_k=3)), listed(together))


def test_a_context_that_is_too_long_is_refused_or_cut() -> None:
    """Nothing is cut unasked; cut at its end, an answer lies in what is left."""
    model = open_tiny(TASK)
    row = {"question": QUESTION, "context": LONG}
    with pytest.raises(RequestError, match="row 0 has"):
        predict(model, row)
    cut = model.processor(QUESTION, LONG, truncation="only_second", max_length=64, return_offsets_mapping=True)
    last = max(end for _, end in cut["offset_mapping"])
    answers = listed(predict(model, row, truncation="end", top_k=20))
    assert max(answer.end for answer in answers) <= last < len(LONG)


@pytest.mark.parametrize(
    "row", ["a text", {"question": "a"}, {"question": "a", "context": ""}, {"question": 1, "context": "a"}]
)
def test_rows_without_a_question_and_a_context_are_named(row: Any) -> None:
    """The error names the row that lacks one of them."""
    with pytest.raises(RequestError, match="row 1"):
        predict(open_tiny(TASK), [{"question": "a", "context": "b"}, row])


@pytest.mark.parametrize("options", [{"top_k": 0}, {"max_answer_tokens": 0}, {"answers": 3}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """An option that cannot be is an error that names it."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK), {"question": "a", "context": "b"}, **options)
    assert caught.value.details["field"] in options
