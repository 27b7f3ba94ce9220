"""Hidden states and vectors of texts, against transformers' pipeline and plain references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict import predict
from task_models.opened import open_tiny, pipeline
from task_models.text import LONG, TEXTS

TASK = "feature-extraction"
KINDS = [(TASK, "bert"), (TASK, "gpt2"), (TASK, "bart"), ("text-encoding", "t5"), ("text-encoding", "clip_text_model")]


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_hidden_states_are_the_pipelines(task: str, kind: str) -> None:
    """Each text of a batch has the pipeline's raw hidden states, special tokens included and padding not."""
    model = open_tiny(task, kind)
    for text, found in zip(TEXTS, predict(model, TEXTS, batch_size=4), strict=True):
        wanted = np.array(pipeline(TASK, model)(text)[0], dtype=np.float32)
        np.testing.assert_allclose(found.values, wanted, atol=1e-5)
        assert found.values.dtype == np.float32
        assert list(found.tokens) == model.processor.convert_ids_to_tokens(model.processor(text)["input_ids"])


def test_an_encoder_that_stands_before_a_decoder_gives_its_states() -> None:
    """T5, which the pipeline cannot run without decoder inputs, gives the states of its encoder."""
    model = open_tiny(TASK, "t5")
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        pipeline(TASK, model)(TEXTS[0])
    wanted = model.model.encoder(**model.processor(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    np.testing.assert_allclose(predict(model, TEXTS)[0].values, wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda v: v.mean(0)), ("cls", lambda v: v[0]), ("last", lambda v: v[-1])]
)
@pytest.mark.parametrize(("task", "kind"), KINDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_pooled_vectors_take_no_padding(task: str, kind: str, pooling: str, pool: Any, normalize: bool) -> None:
    """In a batch of different lengths each vector is pooled from its own tokens alone, and scaled to length 1 when asked."""
    model = open_tiny(task, kind)
    for text, found in zip(TEXTS, predict(model, TEXTS, pooling=pooling, normalize=normalize), strict=True):
        wanted = pool(np.array(pipeline(TASK, model)(text)[0], dtype=np.float32))
        if normalize:
            wanted /= np.linalg.norm(wanted)
        np.testing.assert_allclose(found.values, wanted, atol=1e-5)


def test_a_models_own_pooling() -> None:
    """`pooling="model"` is the model's pooled output, in a batch as alone; a model that pools nothing is an error."""
    model = open_tiny("text-encoding", "clip_text_model")
    for text, found in zip(TEXTS, predict(model, TEXTS, pooling="model"), strict=True):
        wanted = model.model(**model.processor(text, return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(found.values, wanted.detach().numpy(), atol=1e-5)
    with pytest.raises(ModelError, match="pools nothing itself"):
        predict(open_tiny(TASK, "gpt2"), TEXTS[0], pooling="model")


def test_results_are_arrays_of_their_own() -> None:
    """A result is a plain array that owns its memory: it keeps no batch alive and may be written to."""
    for found in predict(open_tiny(TASK), TEXTS):
        assert type(found.values) is np.ndarray
        assert found.values.base is None
        found.values[0, 0] = 1.0


@pytest.mark.parametrize("options", [{"pooling": "max"}, {"normalize": True}, {"pool": "mean"}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """An option that cannot be is an error that names it."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK), TEXTS[0], **options)
    assert caught.value.details["field"] in options


def test_long_texts_are_refused_or_cut() -> None:
    """Nothing is cut unasked; cut, there are as many states as the model takes."""
    model = open_tiny(TASK)
    with pytest.raises(RequestError, match="row 0 has"):
        predict(model, LONG)
    assert predict(model, LONG, truncation="end").values.shape == (64, 32)
