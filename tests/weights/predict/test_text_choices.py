"""Multiple choice and next sentences: no pipeline of transformers, so logits are read here by hand."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.errors import RequestError
from modelyard.weights.predict import predict
from task_models.opened import open_tiny
from task_models.text import LONG, TEXTS

CHOICES = ["my card", "the lazy dog", "ten"]
ROWS = [
    {"prompt": TEXTS[0], "choices": CHOICES},
    {"prompt": TEXTS[1], "choices": CHOICES[:2]},
    {"prompt": TEXTS[3], "choices": CHOICES[::-1]},
]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_choices_are_scored_as_the_model_scores_them(kind: str) -> None:
    """Probabilities are the softmax of the logits over a row's choices, in a batch of rows with different counts too."""
    model = open_tiny("multiple-choice", kind)
    for row, found in zip(ROWS, predict(model, ROWS, batch_size=3), strict=True):
        choices: Any = row["choices"]
        batch = model.processor([row["prompt"]] * len(choices), choices, padding=True, return_tensors="pt")
        wanted = model.model(**{name: values[None] for name, values in batch.items()}).logits[0].softmax(-1).tolist()
        assert list(found.scores) == pytest.approx(wanted, abs=1e-5)
        assert found.index == max(range(len(wanted)), key=wanted.__getitem__)
        assert (found.text, found.score) == (choices[found.index], max(found.scores))


def test_a_row_of_choices_in_a_batch_equals_its_solo_result() -> None:
    """Probabilities do not depend on the rows beside them."""
    model = open_tiny("multiple-choice")
    for row, together in zip(ROWS, predict(model, ROWS), strict=True):
        assert predict(model, row).scores == pytest.approx(together.scores, abs=1e-5)


def test_a_long_prompt_is_cut_and_never_its_choices() -> None:
    """What is cut is the prompt: the choices stay whole and apart."""
    model = open_tiny("multiple-choice")
    row = {"prompt": LONG, "choices": CHOICES}
    with pytest.raises(RequestError, match="row 1 has"):
        predict(model, [ROWS[0], row])
    assert len(set(predict(model, row, truncation="end").scores)) == 3


def test_the_next_sentence_is_scored_as_the_model_scores_it() -> None:
    """The probability is that of output 0 ("is the next"), for dictionaries and pairs, solo and in a batch."""
    model = open_tiny("next-sentence-prediction")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[3], TEXTS[2]), (TEXTS[1], TEXTS[4])]
    found = predict(model, [{"text": pairs[0][0], "next": pairs[0][1]}, *pairs[1:]])
    for pair, result in zip(pairs, found, strict=True):
        wanted = model.model(**model.processor(*pair, return_tensors="pt")).logits[0].softmax(-1)[0].item()
        assert result.score == pytest.approx(wanted, abs=1e-5)
        assert result.follows == (wanted > 0.5)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("multiple-choice", "a text"),
        ("multiple-choice", {"prompt": "a", "choices": ["b"]}),
        ("multiple-choice", {"prompt": "a", "choices": "bc"}),
        ("multiple-choice", {"prompt": "a", "choices": ["b", 3]}),
        ("next-sentence-prediction", "a text"),
        ("next-sentence-prediction", {"text": "a"}),
    ],
)
def test_rows_of_another_form_are_named(task: str, row: Any) -> None:
    """The error names the row and says what one looks like."""
    with pytest.raises(RequestError, match="row 0"):
        predict(open_tiny(task), [row])


@pytest.mark.parametrize(("task", "row"), [("multiple-choice", ROWS[0]), ("next-sentence-prediction", ("a", "b"))])
def test_neither_takes_options_or_windows(task: str, row: Any) -> None:
    """An option that the task has not, and windows, are refused by name."""
    with pytest.raises(RequestError, match="takes no option `top_k`"):
        predict(open_tiny(task), [row], top_k=2)
    with pytest.raises(RequestError, match="in windows"):
        predict(open_tiny(task), [row], truncation="windows")
