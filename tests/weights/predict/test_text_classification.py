"""Labels of texts, against transformers' pipelines on the same tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.predict import predict
from modelyard.weights.predict.results import Classification, Regression
from task_models.opened import open_tiny, pipeline
from task_models.text import ARCHITECTURES, LABELS, LONG, TEXTS

TASK = "text-classification"


def scores(result: Classification) -> dict[str, float]:
    """Score by label."""
    return {found.label: found.score for found in result.labels}


def close(value: dict[str, float], wanted: dict[str, float]) -> bool:
    """Whether two tables of scores agree."""
    return value == {name: pytest.approx(score, abs=1e-5) for name, score in wanted.items()}


@pytest.mark.parametrize("kind", list(ARCHITECTURES[TASK]))
def test_labels_and_scores_are_the_pipelines(kind: str) -> None:
    """Every label of every text has the pipeline's score, whatever the architecture, and the first is the likeliest."""
    model = open_tiny(TASK, kind)
    ours = predict(model, TEXTS, batch_size=4)
    for text, result in zip(TEXTS, ours, strict=True):
        theirs = pipeline(TASK, model)(text, top_k=None)
        assert close(scores(result), {row["label"]: row["score"] for row in theirs})
        assert result.label == theirs[0]["label"]
        assert result.score == max(found.score for found in result.labels)


@pytest.mark.parametrize("kind", list(ARCHITECTURES[TASK]))
def test_a_row_of_a_batch_equals_its_solo_result(kind: str) -> None:
    """Rows of different lengths say in one batch what they say alone: also where padding would leak, or there is none."""
    model = open_tiny(TASK, kind)
    rows = [TEXTS[1], TEXTS[3], TEXTS[0], TEXTS[1] + " now"]
    together = predict(model, rows, batch_size=4)
    for row, result in zip(rows, together, strict=True):
        assert close(scores(predict(model, row)), scores(result))


def test_pairs_of_texts_are_the_pipelines() -> None:
    """A pair is given as a dictionary or as two texts, and scores as in the pipeline."""
    model = open_tiny(TASK)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    theirs = pipeline(TASK, model)(pair, top_k=None)
    as_pair, as_dictionary = predict(model, [(TEXTS[0], TEXTS[1]), pair])
    assert as_pair == as_dictionary
    assert close(scores(as_pair), {row["label"]: row["score"] for row in theirs})


def test_texts_and_pairs_stand_in_one_list() -> None:
    """Rows that are texts and rows that are pairs are told apart in one batch."""
    model = open_tiny(TASK)
    rows = [TEXTS[0], (TEXTS[0], TEXTS[1]), TEXTS[2]]
    for row, result in zip(rows, predict(model, rows), strict=True):
        assert close(scores(predict(model, [row])[0]), scores(result))


def test_several_labels_at_once(tmp_path: Path) -> None:
    """A multi-label model scores each label for itself (sigmoid), as the pipeline does."""
    folder = ARCHITECTURES[TASK]["bert"](tmp_path / "model")
    model = load(folder, task=TASK, config={"problem_type": "multi_label_classification"})
    theirs = pipeline(TASK, model)(TEXTS[0], top_k=None)
    result = predict(model, TEXTS[0])
    assert close(scores(result), {row["label"]: row["score"] for row in theirs})
    assert sum(scores(result).values()) != pytest.approx(1, abs=1e-3)


def test_numbers(tmp_path: Path) -> None:
    """A regression model gives its numbers as they are."""
    folder = ARCHITECTURES[TASK]["bert"](tmp_path / "model")
    model = load(folder, task=TASK, config={"problem_type": "regression"})
    result = predict(model, TEXTS[0])
    theirs = {row["label"]: row["score"] for row in pipeline(TASK, model)(TEXTS[0], top_k=None)}
    assert isinstance(result, Regression)
    assert result.values == pytest.approx([theirs[name] for name in LABELS], abs=1e-5)
    assert result.value == result.values[0]


def test_top_k_and_function() -> None:
    """`top_k` gives as many labels as it says; `function="none"` gives logits."""
    model = open_tiny(TASK)
    best = predict(model, TEXTS[0], top_k=2)
    assert [found.label for found in best.labels] == [found.label for found in predict(model, TEXTS[0]).labels[:2]]
    theirs = pipeline(TASK, model)(TEXTS[0], top_k=None, function_to_apply="none")
    assert close(scores(predict(model, TEXTS[0], function="none")), {row["label"]: row["score"] for row in theirs})


@pytest.mark.parametrize("many", [False, True])
def test_zero_shot_is_the_pipelines(many: bool) -> None:
    """Candidate labels are scored by a model of natural-language inference as in the pipeline, together or each for itself."""
    model = open_tiny(TASK, "bart")
    candidates = ["refund", "travel", "dogs"]
    ours = predict(model, TEXTS[:3], candidate_labels=candidates, multi_label=many, batch_size=4)
    for text, result in zip(TEXTS, ours, strict=False):
        theirs = pipeline("zero-shot-classification", model)(text, candidates, multi_label=many)
        assert close(scores(result), dict(zip(theirs["labels"], theirs["scores"], strict=True)))
        assert result.label == theirs["labels"][0]


def test_zero_shot_needs_inference() -> None:
    """A model without a label for entailment is refused by its labels, where the pipeline takes the last one."""
    with pytest.raises(ModelError, match="no label `entailment`"):
        predict(open_tiny(TASK), TEXTS[0], candidate_labels=["a", "b"])


def test_zero_shot_cuts_the_text_and_never_the_candidate() -> None:
    """A text that is too long is cut when asked; every candidate is still told apart."""
    model = open_tiny(TASK, "bart")
    options: dict[str, Any] = {"candidate_labels": ["refund", "dogs"], "truncation": "end"}
    result = predict(model, LONG, **options)
    assert len({found.score for found in result.labels}) == 2
    with pytest.raises(RequestError, match="row 1 has"):
        predict(model, [TEXTS[0], LONG], candidate_labels=["refund", "dogs"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"function": "tanh"}, "function"),
        ({"top_k": 0}, "top_k"),
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, "hypothesis_template"),
        ({"truncation": "windows"}, "truncation"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], field: str) -> None:
    """An option that cannot be is an error that names it."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK, "bart"), TEXTS[0], **options)
    assert caught.value.details["field"] == field


@pytest.mark.parametrize("row", [3, {"text": "a", "pair": "b"}, ("a", "b", "c"), {"text": 4}])
def test_rows_that_are_no_texts_are_named(row: Any) -> None:
    """The error names the row that is no text and no pair."""
    with pytest.raises(RequestError, match="row 1"):
        predict(open_tiny(TASK), [TEXTS[0], row])
