"""Fixed inputs of every task, computed by the real models: the same each time, and what the models take."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from modelyard.errors import ModelError
from modelyard.weights.load import load
from modelyard.weights.parity import Batch, TorchRunner, compare, failing, fixed_inputs, record
from task_models import audio, multimodal, text, vision
from tiny_models import make_llama, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

MODELS = {**text.MODELS, **vision.MODELS, **audio.MODELS, **multimodal.MODELS}
REFUSED = {"text-to-spectrogram": "does not run `SpeechT5ForTextToSpeech`"}
FEW = {
    "text-classification",
    "question-answering",
    "multiple-choice",
    "text2text-generation",
    "table-question-answering",
    "image-classification",
    "backbone",
    "ctc",
    "automatic-speech-recognition",
    "zero-shot-image-classification",
    "image-text-to-text",
}


@cache
def llama() -> Any:
    """The tiny Llama, in memory."""
    return make_llama()


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in FEW else pytest.mark.slow) for task in sorted(MODELS)]
)
def test_every_task_has_inputs_that_its_model_computes_alike_each_time(task: str, tmp_path: Path) -> None:
    """The same batches from the same seed, and no difference of the model from itself; or a named error."""
    model = load(MODELS[task](tmp_path / "model"), task=task)
    if task in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[task]) as caught:
            fixed_inputs(task, model)
        assert caught.value.code == "no_fixed_inputs"
        return
    batches = fixed_inputs(task, model)
    again = fixed_inputs(task, model)
    assert [each.name for each in batches] == [each.name for each in again]
    for one, other in zip(batches, again, strict=True):
        assert one.inputs.keys() == other.inputs.keys()
        assert all(np.array_equal(values, other.inputs[name]) for name, values in one.inputs.items())
    runner = TorchRunner(model)
    checks = compare(record(runner, batches, tokens=4), runner, batches, tolerance=1e-6, tokens=4)
    assert {check.name.split(":")[0] for check in checks} == {each.name for each in batches}
    assert failing(checks) == []
    assert all(check.scale > 0 for check in checks)
    if task in {"text2text-generation", "automatic-speech-recognition", "image-text-to-text"}:
        assert sum(check.tokens == 4 for check in checks) == len(batches)


def test_rows_of_texts_have_three_lengths_and_stand_padded_too() -> None:
    """Ids within the vocabulary and no special ones; on the left where text is written behind them, else on the right."""
    config = llama().config
    batches = fixed_inputs("text-generation", make_tokenizer(), config)
    assert [each.name for each in batches] == ["length 4", "length 7", "length 12", "padded"]
    padded = batches[-1]
    assert padded.mask is not None
    for row, single in zip((2, 1, 0), batches[:3], strict=True):
        kept = padded.inputs["input_ids"][row][padded.mask[row]]
        assert kept.tolist() == single.inputs["input_ids"][0].tolist()
        assert kept.min() >= len(make_tokenizer().all_special_ids)
        assert kept.max() < config.vocab_size
    assert padded.inputs["attention_mask"].tolist() == padded.mask.astype(int).tolist()
    assert padded.mask[:, -1].all()
    right = fixed_inputs("text-classification", None, config)[-1]
    assert right.mask is not None
    assert right.mask[:, 0].all()
    assert not np.array_equal(fixed_inputs("text-generation", None, config, seed=1)[0].inputs["input_ids"], batches[0].inputs["input_ids"])  # fmt: skip


def test_given_texts_are_tokenized_and_cut_to_the_context() -> None:
    """Texts instead of seeded ids."""
    tokenizer = make_tokenizer()
    batches = fixed_inputs("text-generation", tokenizer, llama().config, texts=["my card", "one two " * 40])
    assert [each.name for each in batches] == ["text 1", "text 2", "padded"]
    assert batches[0].inputs["input_ids"][0].tolist() == tokenizer("my card")["input_ids"]
    assert batches[1].inputs["input_ids"].shape == (1, 32)


def test_padding_on_the_left_changes_nothing_that_counts() -> None:
    """Single rows and the padded batch of the same rows have the same logits and tokens, absolute positions included."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40, initializer_range=0.4)
    gpt2: Any = GPT2LMHeadModel(config)
    gpt2.eval()
    for model in (llama(), gpt2):
        runner = TorchRunner(model)
        batches = fixed_inputs("text-generation", None, model.config)
        padded = batches[-1]
        assert padded.mask is not None
        logits, written = runner.outputs(padded)["logits"], runner.generate(padded, 6)
        assert written is not None
        for row, single in zip((2, 1, 0), batches[:3], strict=True):
            alone = runner.outputs(single)["logits"][0]
            assert np.abs(logits[row][padded.mask[row]] - alone).max() < 1e-4
            assert runner.generate(single, 6) == [written[row]]


def test_greedy_tokens_are_the_largest_logits_one_by_one_whatever_the_defaults_say() -> None:
    """Cached decoding gives what repeated whole passes give; penalties and ends of the checkpoint have no part in it."""
    model = make_llama(seed=3)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.eos_token_id = list(range(400))
    [batch, *_] = fixed_inputs("text-generation", None, model.config)
    runner = TorchRunner(model)
    ids = batch.inputs["input_ids"]
    for _ in range(8):
        logits = runner.outputs(Batch({"input_ids": ids}, None))["logits"]
        ids = np.concatenate((ids, logits[:, -1:].argmax(-1)), axis=1)
    assert runner.generate(batch, 8) == ids[:, 4:].tolist()
    assert model.generation_config.repetition_penalty == 5.0


def test_frames_of_padding_are_left_out_by_the_strides(tmp_path: Path) -> None:
    """The mask of a speech model's frames is what transformers' own computes."""
    model = load(MODELS["ctc"](tmp_path / "model"))
    padded = fixed_inputs("ctc", model)[-1]
    frames = TorchRunner(model).outputs(padded)["logits"].shape[1]
    theirs = model.core._get_feature_vector_attention_mask(frames, torch.from_numpy(padded.inputs["attention_mask"]))
    assert padded.mask is not None
    assert padded.mask.tolist() == theirs.bool().tolist()


def test_what_has_no_inputs_is_a_named_error() -> None:
    """Numbers of a time series, and pictures without a preprocessor or a size."""
    with pytest.raises(ModelError, match="no fixed inputs of time-series-forecasting") as caught:
        fixed_inputs("time-series-forecasting", None, llama().config)
    assert caught.value.code == "no_fixed_inputs"
    with pytest.raises(ModelError, match="depend on the model's configuration"):
        fixed_inputs("text-generation")
    with pytest.raises(ModelError, match="need the model's preprocessor") as caught:
        fixed_inputs("object-detection", None, llama().config)
    assert caught.value.code == "no_preprocessor"
    with pytest.raises(ModelError, match="no fixed inputs of table-question-answering") as caught:
        fixed_inputs("table-question-answering", None, llama().config)
    assert caught.value.hint == "pass a loaded model"
