"""Text generation through `predict`, against `Model.complete`; and everything a pretraining model says, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.model import Model
from modelyard.weights.predict import predict
from task_models.opened import open_tiny
from task_models.text import ARCHITECTURES, LONG, TEXTS

TASK = "text-generation"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_completions_are_those_of_the_model(kind: str) -> None:
    """`predict` gives the completions of `complete`, for texts and for a conversation."""
    model = open_tiny(TASK, kind)
    found = predict(model, TEXTS[:3], max_new_tokens=5, temperature=0)
    assert found == model.complete(TEXTS[:3], max_new_tokens=5, temperature=0)
    if kind == "llama":
        chat = [{"role": "user", "content": TEXTS[0]}]
        assert predict(model, chat, max_new_tokens=5) == predict(model, [chat, TEXTS[1]], max_new_tokens=5)[0]


@pytest.mark.parametrize("where", ["start", "end"])
def test_long_prompts_are_refused_or_cut_to_leave_room(where: str) -> None:
    """Nothing is cut unasked; cut, the prompt leaves room for the new tokens and keeps the end that was asked for."""
    model = open_tiny(TASK)
    prompt = LONG * 2
    with pytest.raises(RequestError, match="row 1 has"):
        predict(model, [TEXTS[0], prompt], max_new_tokens=8)
    found = predict(model, prompt, max_new_tokens=8, temperature=0, truncation=where)
    context = model.defaults.context
    assert context is not None
    assert context // 2 < found.prompt_tokens <= context - 8
    ends = [len(prompt) - at if where == "start" else at for at in range(1, len(prompt))]
    kept = [prompt[at:] if where == "start" else prompt[:at] for at in ends]
    assert found in [model.complete([text], max_new_tokens=8, temperature=0)[0] for text in kept if len(model.tokenize(text)) == found.prompt_tokens]  # fmt: skip


def test_a_conversation_is_never_cut() -> None:
    """A conversation that is too long is refused whatever `truncation` says: its turns are not one text."""
    chat = [{"role": "user", "content": LONG * 2}]
    with pytest.raises(RequestError, match="row 0 has"):
        predict(open_tiny(TASK), [chat], truncation="start")


@pytest.mark.parametrize("kind", list(ARCHITECTURES["pretraining"]))
def test_a_pretraining_model_gives_every_tensor_by_name(kind: str) -> None:
    """Each output tensor of each text, alone and in a batch, is what the model gives, without padding."""
    model = open_tiny("pretraining", kind)
    for text, found in zip(TEXTS, predict(model, TEXTS), strict=True):
        batch = model.processor(text, return_tensors="pt")
        if kind == "t5":
            batch["decoder_input_ids"] = batch["input_ids"].new_zeros(1, 1)
        outputs = model.model(**batch)
        assert set(found.values) <= set(outputs.keys())
        assert "logits" in "".join(found.values)
        for name, values in found.values.items():
            np.testing.assert_allclose(values, outputs[name][0].detach().numpy(), atol=1e-5)
        assert len(found.tokens) == batch["input_ids"].shape[1]


def test_a_model_pretrained_on_pictures_says_what_to_do() -> None:
    """A pretraining model without a tokenizer is an error that says how its inputs are made."""
    model = open_tiny("pretraining")
    blind = Model(model.model, None, "pretraining", model.folder)
    with pytest.raises(ModelError, match="only texts") as caught:
        predict(blind, "a text")
    assert "model.processor" in (caught.value.hint or "")
