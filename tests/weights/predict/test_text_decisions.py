"""Decisions, against transformers' pipeline on the same tiny model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from modelyard.errors import RequestError
from modelyard.weights.predict import predict
from task_models.opened import open_tiny, pipeline
from task_models.text import SAMPLES

TASK = "decision"
REQUEST = SAMPLES[TASK]


def numbers(value: Any) -> list[float]:
    """Every number in an answer, in order."""
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    return [value] if isinstance(value, float) else []


def test_answers_are_the_pipelines() -> None:
    """Every answer of every kind of question has the pipeline's form and numbers, in a batch too."""
    model = open_tiny(TASK)
    other = {**REQUEST, "state": "where is my card"}
    for request, found in zip([REQUEST, other], predict(model, [REQUEST, other]), strict=True):
        with torch.no_grad():
            theirs = pipeline(TASK, model)(copy.deepcopy(request))
        assert {name: row["type"] for name, row in found.answers.items()} == {
            name: row["type"] for name, row in theirs.items()
        }
        assert numbers(found.answers) == pytest.approx(numbers(theirs), abs=1e-5)
        assert found.answers["topic"]["choice"] == theirs["topic"]["choice"]


def test_the_models_tokenizer_stays_as_it_was() -> None:
    """Transformers adds two tokens to the tokenizer that it is given; the model's own keeps its size."""
    model = open_tiny(TASK)
    before = len(model.processor)
    predict(model, REQUEST)
    assert len(model.processor) == before


@pytest.mark.parametrize(
    "row",
    ["a text", {"state": "a"}, {"state": "a", "questions": {"q": {"type": "guess"}}}, {"state": "a", "questions": {}}],
)
def test_requests_that_are_none_are_named(row: Any) -> None:
    """The error names the row and says what transformers says."""
    with pytest.raises(RequestError, match="row 1"):
        predict(open_tiny(TASK), [REQUEST, row])


def test_a_long_request_is_refused() -> None:
    """A state that the model cannot hold is refused by its row, before it runs."""
    with pytest.raises(RequestError, match="row 0 has"):
        predict(open_tiny(TASK), {**REQUEST, "state": "my card has not arrived " * 200})


def test_images_are_never_fetched() -> None:
    """An image by address is refused: no input comes from a network."""
    with pytest.raises(RequestError):
        predict(open_tiny(TASK), {**REQUEST, "assets": {"img-1": "https://example.org/a.png"}})
