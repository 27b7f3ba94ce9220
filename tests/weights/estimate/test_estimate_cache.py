"""The estimated cache has the bytes of the real one, for every kind of cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelyard.weights.estimate import estimate
from modelyard.weights.estimate.profile import cache_tensors
from modelyard.weights.estimate.tracking import storage_bytes

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", SMALL),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        SMALL | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    "mistral": ("MistralForCausalLM", SMALL | {"sliding_window": 8}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        SMALL
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        SMALL
        | {
            "head_dim": 8,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        SMALL | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}


def describe(folder: Path, kind: str) -> Path:
    """A folder with a configuration and nothing else."""
    architecture, values = KINDS[kind]
    config = {"model_type": kind, "architectures": [architecture], "dtype": "float32", **values}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def build(kind: str) -> Any:
    """The real model, with random weights."""
    import torch
    import transformers

    architecture, values = KINDS[kind]
    torch.manual_seed(0)
    return getattr(transformers, architecture)(transformers.AutoConfig.for_model(kind, **values)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_cache_is_the_real_one(tmp_path: Path, kind: str) -> None:
    """After a prompt of 12 tokens and 5 new ones, the estimate has the bytes that the real cache has."""
    import torch

    guess = estimate(describe(tmp_path, kind), batch=2, length=12, new_tokens=5)
    model: Any = build(kind)
    ids = torch.ones((2, 12), dtype=torch.long)
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=True)
        for _ in range(5):
            name = "past_key_values" if getattr(output, "past_key_values", None) is not None else "cache_params"
            output = model(input_ids=ids[:, :1], use_cache=True, **{name: output[name]})
    assert guess.kv_cache == storage_bytes(cache_tensors(output))
    assert guess.weights == storage_bytes([*model.parameters(), *model.buffers()])


def test_encoder_decoder(tmp_path: Path) -> None:
    """T5 keeps the decoder's keys for each new token, and the encoder's for the whole input."""
    import torch
    import transformers

    values: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "dtype": "float32", **values}
    (tmp_path / "config.json").write_text(json.dumps(config))
    guess = estimate(tmp_path, batch=2, length=12, new_tokens=5)
    model: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**values))
    model.eval()
    ids = torch.ones((2, 12), dtype=torch.long)
    with torch.no_grad():
        output = model(input_ids=ids, decoder_input_ids=ids[:, :5], use_cache=True)
    assert guess.kv_cache == storage_bytes(cache_tensors(output))
    assert guess.kv_cache == 2 * 2 * 2 * 32 * 4 * (12 + 5)  # keys and values, layers, rows, width, bytes, tokens


def test_naive_formula_is_wrong(tmp_path: Path) -> None:
    """A sliding window holds less than layers x heads x length, but only from the first new token on.

    Until then each window is a view of the whole prompt's keys, which stay: the cache is asked, not computed.
    """
    folder, token = describe(tmp_path, "gemma3_text"), 2 * 4 * 2 * 8 * 4
    assert estimate(folder, batch=1, length=100, new_tokens=0).kv_cache == token * 100
    assert estimate(folder, batch=1, length=100, new_tokens=2).kv_cache < token * 102 / 2


def test_encoder_keeps_nothing(tmp_path: Path) -> None:
    """A classifier has no cache, and activations."""
    config = {
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 32, "vocab_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    guess = estimate(tmp_path, batch=2, length=16)
    assert guess.kv_cache == 0
    assert guess.activations > 0
