"""Filling masks, against transformers' pipeline on the same tiny models."""

from __future__ import annotations

import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict import predict
from task_models.opened import open_tiny, pipeline
from task_models.text import TEXTS

TASK = "fill-mask"


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_fills_are_the_pipelines(kind: str) -> None:
    """Tokens, texts and scores are the pipeline's."""
    model = open_tiny(TASK, kind)
    mask = model.processor.mask_token
    texts = [f"where is my {mask}", f"the {mask} brown fox jumps over the lazy dog"]
    for text, found in zip(texts, predict(model, texts, top_k=7), strict=True):
        theirs = pipeline(TASK, model, top_k=7)(text)
        assert [(fill.token_id, fill.token, fill.text) for fill in found.masks[0]] == [
            (row["token"], row["token_str"], row["sequence"]) for row in theirs
        ]
        assert [fill.score for fill in found.masks[0]] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
        assert found.best == found.masks[0][0]


def test_several_masks_are_the_pipelines() -> None:
    """Each mask has its own tokens, tried with the other masks left as they are."""
    model = open_tiny(TASK)
    text = "where [MASK] my [MASK]"
    found = predict(model, text, top_k=3)
    theirs = pipeline(TASK, model, top_k=3)(text)
    assert [[fill.token_id for fill in fills] for fills in found.masks] == [
        [row["token"] for row in rows] for rows in theirs
    ]
    assert [fill.score for fills in found.masks for fill in fills] == pytest.approx(
        [row["score"] for rows in theirs for row in rows], abs=1e-5
    )
    assert all(fill.text.count("[MASK]") == 1 for fills in found.masks for fill in fills)


def test_targets_are_the_pipelines() -> None:
    """With targets only they are scored, over the whole vocabulary as ever."""
    model = open_tiny(TASK)
    found = predict(model, "where is my [MASK]", targets=["card", "the", "is"])
    theirs = pipeline(TASK, model, targets=["card", "the", "is"])("where is my [MASK]")
    assert [(fill.token_id, pytest.approx(fill.score, abs=1e-5)) for fill in found.masks[0]] == [
        (row["token"], row["score"]) for row in theirs
    ]


def test_targets_of_byte_level_vocabularies_have_their_blank() -> None:
    """A word that the vocabulary has only with a blank in front is that token."""
    model = open_tiny(TASK, "roberta")
    found = predict(model, "where is <mask>", targets=["my"])
    assert model.processor.convert_ids_to_tokens(found.best.token_id) in {"my", "Ġmy"}


def test_a_target_of_several_tokens_is_refused() -> None:
    """A mask is one token: a word of several is an error that shows them, where the pipeline takes the first piece."""
    with pytest.raises(RequestError, match="`refundable` is no token") as caught:
        predict(open_tiny(TASK, "roberta"), "where is my <mask>", targets=["refundable"])
    assert "fu, nd, a, b, l, e" in caught.value.message


def test_a_row_of_a_batch_equals_its_solo_result() -> None:
    """Fills do not depend on the rows beside them."""
    model = open_tiny(TASK)
    texts = [f"{text} [MASK]" for text in TEXTS]
    for text, together in zip(texts, predict(model, texts), strict=True):
        alone = predict(model, text)
        assert [fill.token_id for fill in alone.masks[0]] == [fill.token_id for fill in together.masks[0]]
        assert [fill.score for fill in alone.masks[0]] == pytest.approx(
            [fill.score for fill in together.masks[0]], abs=1e-5
        )


def test_a_text_without_a_mask_is_named() -> None:
    """The error names the row and says what a mask looks like."""
    with pytest.raises(RequestError, match=r"row 1 has no \[MASK\]"):
        predict(open_tiny(TASK), ["a [MASK]", "no mask"])


def test_a_tokenizer_without_a_mask_is_a_models_fault() -> None:
    """A model whose tokenizer has no mask token is refused as a model."""
    from modelyard.weights.model import Model

    wrong = open_tiny("text-generation", "gpt2")
    model = Model(wrong.model, wrong.processor, TASK, wrong.folder)
    with pytest.raises(ModelError, match="no mask token"):
        predict(model, "a text")
