"""Quantized tensors count as what they stand for, whatever they are packed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.weights.inspect import Inspection, inspect

ROWS, COLUMNS = 64, 128
WHOLE = ROWS * COLUMNS


def look(folder: Path, quantization: dict[str, Any] | None, tensors: dict[str, Any]) -> Inspection:
    """Inspect a folder with these tensors and this `quantization_config`."""
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return inspect(folder)


FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4},
        {
            "a.qweight": np.zeros((COLUMNS // 8, ROWS), np.int32),
            "a.qzeros": np.zeros((1, ROWS // 8), np.int32),
            "a.scales": np.zeros((1, ROWS), np.float16),
            "a.g_idx": np.zeros(COLUMNS, np.int32),
        },
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4},
        {
            "a.qweight": np.zeros((COLUMNS, ROWS // 8), np.int32),
            "a.qzeros": np.zeros((1, ROWS // 8), np.int32),
            "a.scales": np.zeros((1, ROWS), np.float16),
        },
    ),
    "bitsandbytes 4-bit": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {
            "a.weight": np.zeros((WHOLE // 2, 1), np.uint8),
            "a.weight.absmax": np.zeros(WHOLE // 64, np.float32),
            "a.weight.quant_map": np.zeros(16, np.float32),
            "a.weight.quant_state.bitsandbytes__nf4": np.zeros(90, np.uint8),
        },
    ),
    "bitsandbytes 8-bit": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {
            "a.weight": np.zeros((ROWS, COLUMNS), np.int8),
            "a.SCB": np.zeros(ROWS, np.float32),
            "a.weight_format": np.zeros(1, np.uint8),
        },
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        {
            "a.weight_packed": np.zeros((ROWS, COLUMNS // 8), np.int32),
            "a.weight_scale": np.zeros((ROWS, 1), np.float16),
            "a.weight_shape": np.zeros(2, np.int64),
        },
    ),
    "torchao int8": (
        {"quant_method": "torchao"},
        {
            "a._weight_qdata": np.zeros((ROWS, COLUMNS), np.int8),
            "a._weight_scale": np.zeros((ROWS, 1), np.float32),
            "a._weight_zero_point": np.zeros((ROWS, 1), np.int8),
        },
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {
            "a.weight_blocks": np.zeros((ROWS, COLUMNS // 32, 16), np.uint8),
            "a.weight_scales": np.zeros((ROWS, COLUMNS // 32), np.uint8),
        },
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_packed_numbers_are_counted(tmp_path: Path, name: str) -> None:
    """Of each format the weight counts as its 64 x 128 numbers, and scales and tables as none; bytes are all of them."""
    quantization, tensors = FORMATS[name]
    seen = look(tmp_path, quantization, tensors | {"norm.weight": np.zeros(7, np.float16)})
    assert seen.parameters == WHOLE + 7
    assert seen.trainable == 7
    assert seen.bytes == sum(tensor.nbytes for tensor in tensors.values()) + 14
    assert seen.quantization == quantization["quant_method"]
    assert seen.unknown == ()
    assert seen.modules is not None
    assert {part.name for part in seen.modules.parts} == {"a", "norm"}


def test_fp8(tmp_path: Path) -> None:
    """Numbers of 8 bits count one each, their scales not."""
    import torch
    from safetensors.torch import save_file as save_torch

    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    tensors = {
        "a.weight": torch.zeros(ROWS, COLUMNS, dtype=torch.float8_e4m3fn),
        "a.weight_scale_inv": torch.zeros(1, 1),
    }
    save_torch(tensors, tmp_path / "model.safetensors")
    assert inspect(tmp_path).parameters == WHOLE


def test_unknown_packing_is_said(tmp_path: Path) -> None:
    """Words of a method whose packing is not known are named, and counted as they are stored."""
    seen = look(tmp_path, {"quant_method": "odd"}, {"a.codes": np.zeros((3, 5), np.int32)})
    assert (seen.parameters, seen.unknown) == (15, ("a.codes",))


def test_bitsandbytes_itself(tmp_path: Path) -> None:
    """What bitsandbytes saves counts as many parameters as the model that it quantized."""
    import torch
    import transformers

    from tiny_models import make_llama

    plain = make_llama(hidden_size=64, intermediate_size=128)
    plain.save_pretrained(tmp_path / "plain")
    make: Any = transformers.BitsAndBytesConfig
    options = make(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=options)
    model.save_pretrained(tmp_path / "small")
    seen = inspect(tmp_path / "small")
    assert seen.parameters == inspect(tmp_path / "plain").parameters == sum(p.numel() for p in plain.parameters())
    assert seen.bytes < inspect(tmp_path / "plain").bytes
