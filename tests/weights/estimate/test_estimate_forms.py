"""Closed forms give what the run on the meta device gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelyard.weights.estimate import estimate
from modelyard.weights.estimate.forms import FAMILIES

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 300,
    "pad_token_id": None,
}
WORKLOADS: list[dict[str, Any]] = [
    {"batch": 2, "length": 40, "new_tokens": 8},
    {"batch": 1, "length": 500, "new_tokens": 0},
    {"mode": "lora", "batch": 2, "length": 64, "rank": 4},
    {"mode": "lora", "batch": 3, "length": 16, "rank": 16, "gradient_checkpointing": True},
    {"mode": "full", "batch": 1, "length": 4},
    {"mode": "full", "batch": 4, "length": 128},
    {"mode": "full", "batch": 4, "length": 128, "gradient_checkpointing": True},
]


def save(folder: Path, model_type: str, **values: Any) -> Path:
    """A folder of real, tiny weights."""
    import torch
    import transformers

    sizes = {key: value for key, value in (SIZES | values).items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("cpu"):
        model: Any = getattr(transformers, FAMILIES[model_type])(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_closed_forms_equal_the_run(tmp_path: Path, model_type: str, dtype: str) -> None:
    """For each family, step and dtype, every part of the closed form is the run's, the peak within 2 % of it."""
    folder = save(tmp_path, model_type)
    for workload in WORKLOADS:
        closed = estimate(folder, dtype=dtype, **workload)
        run = estimate(folder, dtype=dtype, method="meta", **workload)
        assert (closed.method, run.method) == ("closed-form", "meta")
        for part in ("kv_cache", "gradients", "adapter", "parameters", "trainable"):
            assert getattr(closed, part) == getattr(run, part), (part, workload)
        assert closed.weights == pytest.approx(run.weights, rel=0.002)  # buffers, of a few numbers
        work, real = closed.activations + closed.optimizer, run.activations + run.optimizer
        assert work == pytest.approx(real, rel=0.02, abs=3000), workload


def test_other_sizes(tmp_path: Path) -> None:
    """Many query heads to a key head, tied embeddings, a large vocabulary: the forms hold, or are not taken."""
    values = {"num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 3000, "tie_word_embeddings": True}
    folder = save(tmp_path, "llama", **values)
    for workload in WORKLOADS:
        closed, run = estimate(folder, **workload), estimate(folder, method="meta", **workload)
        assert closed.method == ("meta" if workload.get("mode") == "full" else "closed-form")
        assert closed.parameters == run.parameters
        assert closed.peak == pytest.approx(run.peak, rel=0.001)


@pytest.mark.parametrize(
    ("config", "workload"),
    [
        ({"hidden_act": "gelu"}, {}),
        ({"attention_dropout": 0.1}, {}),
        ({"num_hidden_layers": 1}, {}),
        ({}, {"targets": ("q_proj",), "mode": "lora"}),
        ({}, {"optimizer": "sgd", "mode": "full"}),
        ({}, {"device": "cuda"}),
    ],
)
def test_other_kinds_are_run(tmp_path: Path, config: dict[str, Any], workload: dict[str, Any]) -> None:
    """What the forms were not derived for is run, not guessed."""
    folder = save(tmp_path, "llama", num_hidden_layers=2)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    assert estimate(folder, length=8, options=False, **workload).method == "meta"


def test_sliding_window_shorter_than_the_rows_is_run(tmp_path: Path) -> None:
    """Mistral's window changes what is held only where rows are longer than it."""
    folder = save(tmp_path, "mistral", sliding_window=64)
    assert estimate(folder, length=32, new_tokens=8).method == "closed-form"
    assert estimate(folder, length=60, new_tokens=8).method == "meta"
