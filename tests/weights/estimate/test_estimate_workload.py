"""What is estimated, what is refused, and what else would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.estimate import Machine, estimate
from modelyard.weights.estimate.machine import HEAP_BLOCK, KEPT

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "dtype": "bfloat16",
}
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3_moe": LLAMA | {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "dtype": "float32",
    },
    "vit": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8,
    },
    "whisper": {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 32,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64, "max_source_positions": 50,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
    "wav2vec2": {
        "model_type": "wav2vec2", "architectures": ["Wav2Vec2ForSequenceClassification"], "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    },
    "clip": {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 16,
        "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                        "vocab_size": 64, "eos_token_id": 2},
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "image_size": 32, "patch_size": 8},
    },
}  # fmt: skip


def describe(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with a configuration and no weights."""
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_parts_make_the_peak(tmp_path: Path) -> None:
    """A folder without weights is estimated; the peak is the sum of the parts, and everything is plain JSON."""
    found = estimate(describe(tmp_path, LLAMA), batch=2, length=16, new_tokens=4)
    parts = (found.weights, found.kv_cache, found.activations, found.gradients, found.optimizer, found.adapter)
    assert found.peak == sum(parts) + found.allocator + found.overhead
    assert found.kv_cache == 2 * 2 * 2 * 2 * 8 * 2 * 20  # keys and values, layers, rows, heads, width, bytes, tokens
    assert json.loads(json.dumps(found.to_dict()))["peak"] == found.peak


def test_freed_memory_that_the_c_library_keeps_is_counted(tmp_path: Path) -> None:
    """On a CPU a share of the small blocks is added: blocks that glibc maps one by one count for nothing, and so does a GPU."""
    folder = describe(tmp_path, LLAMA)
    small = estimate(folder, batch=2, length=64, new_tokens=0)
    assert small.allocator == round(KEPT * (small.activations + small.kv_cache))  # every block is small
    assert estimate(folder, batch=2, length=64, new_tokens=0, device="cuda").allocator == 0
    rows = HEAP_BLOCK // (LLAMA["intermediate_size"] * 2 * 64) + 1
    large = estimate(folder, batch=rows, length=64, new_tokens=0)
    assert 0 < large.allocator < KEPT * (large.activations + large.kv_cache)


def test_training_has_states_in_float32(tmp_path: Path) -> None:
    """Full training is in float32 with two states a number; an adapter on bfloat16 is float32 itself."""
    folder = describe(tmp_path, LLAMA)
    full = estimate(folder, mode="full", length=8)
    assert full.dtype == "float32"
    assert full.gradients == full.weights - 2 * 4 * 4 == 4 * full.parameters  # but for two rotary tables, buffers
    assert full.optimizer == pytest.approx(2 * full.gradients, abs=1000)
    lora = estimate(folder, mode="lora", length=8, rank=4)
    assert lora.adapter == lora.gradients == 4 * lora.trainable
    assert lora.optimizer == pytest.approx(2 * lora.adapter, abs=1000)


def test_checkpointing_and_sgd_take_less(tmp_path: Path) -> None:
    """Activations computed again take less than kept ones; plain SGD has no states."""
    folder = describe(tmp_path, LLAMA | {"num_hidden_layers": 6})
    kept = estimate(folder, mode="lora", batch=4, length=64)
    again = estimate(folder, mode="lora", batch=4, length=64, gradient_checkpointing=True)
    assert again.activations < 0.6 * kept.activations
    assert estimate(folder, mode="full", length=8, optimizer="sgd").optimizer == 0


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", ["inference", "lora"])
def test_every_modality(tmp_path: Path, name: str, mode: Any) -> None:
    """Experts, pictures, sounds and pairs of encoders are estimated by their own inputs."""
    found = estimate(describe(tmp_path, OTHERS[name]), mode=mode, length=8, new_tokens=4, batch=2)
    assert found.weights >= 4 * found.parameters > 0
    assert found.activations > 0
    assert (found.kv_cache > 0) == (name in {"whisper", "qwen3_moe"} and mode == "inference")


def test_quantized_load(tmp_path: Path) -> None:
    """Fewer bits take less, and the output layer and the embedding stay as they are."""
    folder = describe(tmp_path, LLAMA | {"dtype": "float32"})
    plain, eight, four = (estimate(folder, length=8, quantization=name) for name in (None, "bnb-8bit", "bnb-4bit"))
    assert plain.weights > eight.weights > four.weights > 2 * 64 * 32 * 4


def test_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    """A class that transformers does not have is refused by name, never given a default shape."""
    folder = describe(tmp_path, LLAMA | {"architectures": ["OddForCausalLM"], "model_type": "odd"})
    with pytest.raises(ModelError, match="OddForCausalLM") as refused:
        estimate(folder)
    assert refused.value.code == "unknown_architecture"


def test_no_configuration_is_an_error(tmp_path: Path) -> None:
    """Without config.json nothing says what it is."""
    with pytest.raises(ModelError) as refused:
        estimate(tmp_path)
    assert refused.value.code == "no_config"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "qlora"}, {"batch": 0}, {"dtype": "int8"}, {"device": "tpu"}, {"quantization": "int3"},
        {"mode": "full", "quantization": "bnb-4bit"}, {"mode": "lora", "targets": ("odd_proj",)}, {"targets": ()},
    ],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """An impossible option is refused with its name."""
    folder = describe(tmp_path, LLAMA)
    with pytest.raises(RequestError) as refused:
        estimate(folder, **({"length": 8} | wrong))
    assert refused.value.details["field"] in wrong


def test_longer_than_positions(tmp_path: Path) -> None:
    """Rows longer than the learned positions are refused with the length that is possible."""
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 16, "n_embd": 32, "n_layer": 2,
              "n_head": 4, "vocab_size": 64}  # fmt: skip
    with pytest.raises(RequestError, match="16") as refused:
        estimate(describe(tmp_path, config), length=17, new_tokens=0)
    assert refused.value.hint == "--length 16"


def test_what_else_would_do(tmp_path: Path) -> None:
    """Where it does not fit, each option is an estimate of its own, and what is said to fit does."""
    folder = describe(tmp_path, LLAMA | {"num_hidden_layers": 3})
    asked = estimate(folder, mode="full", batch=8, length=256, options=False)
    small = Machine("cpu", asked.peak, asked.peak - 1)
    found = estimate(folder, mode="full", batch=8, length=256, machine=small)
    assert found.fits is False
    assert {"gradient_checkpointing": True} in [option.changes for option in found.options]
    for option in found.options:
        workload: dict[str, Any] = {"mode": "full", "batch": 8, "length": 256} | option.changes
        again = estimate(folder, machine=small, options=False, **workload)
        assert (again.peak, again.fits) == (option.peak, option.fits)
        assert option.peak < asked.peak
