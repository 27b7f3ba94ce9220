"""Adapters of one tiny Llama, what the real PEFT makes of them in float64, and the methods again in plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import adapter_bases as bases

if TYPE_CHECKING:
    from collections.abc import Sequence

Deltas = dict[str, Any]


def write_base(folder: Path, model: Any = None) -> Path:
    """A base's folder; by default the tiny Llama."""
    (model if model is not None else bases.llama()).save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """A LoRA of `base` with random factors, made by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    values = {"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"], **config}
    torch.manual_seed(seed)
    adapted = get_peft_model(load(base), LoraConfig(**values))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and ("lora_" in name or "magnitude" in name):
                parameter.add_(torch.randn(parameter.shape) * 0.25)
    adapted.save_pretrained(str(folder))
    return folder


def load(folder: Path, **options: Any) -> Any:
    """A causal language model, in the dtype it has on disk."""
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": "auto", **options})
    return made.eval()


def peft_deltas(base: Path, adapter: Path) -> Deltas:
    """What the real PEFT adds to each tensor of the base, in float64, where that is not nothing."""
    from peft import PeftModel

    model = load(base).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, str(adapter)).double().merge_and_unload().state_dict()
    found = {name: (tensor - before[name]).numpy() for name, tensor in merged.items()}
    return {name: delta for name, delta in found.items() if np.abs(delta).max() > 1e-9}


def total(deltas: Sequence[Deltas], shares: Sequence[float]) -> Deltas:
    """The weighted sum, with zeros where one has nothing."""
    made: Deltas = {}
    for delta, share in zip(deltas, shares, strict=True):
        for name, value in delta.items():
            made[name] = made.get(name, 0.0) + share * value
    return made


def ties(deltas: Sequence[Any], weights: Sequence[float], density: float) -> Any:
    """The TIES of one module's deltas in float64: trim, elect by the larger total, mean of the weighted ones that agree."""
    trimmed = []
    for delta in deltas:
        kept = max(int(density * delta.size + 0.5), 1)
        edge = np.sort(np.abs(delta).reshape(-1))[-kept]
        trimmed.append(np.where(np.abs(delta) >= edge, delta, 0.0))
    positive = sum(trimmed) >= 0
    agree = [np.where(positive, each > 0, each < 0) for each in trimmed]
    merged = sum(w * each * mask for w, each, mask in zip(weights, trimmed, agree, strict=True))
    return merged / np.maximum(sum(mask.astype(float) for mask in agree), 1)


def slerp(first: Any, second: Any, t: float) -> Any:
    """Spherical interpolation of two arrays as vectors, in float64."""
    cosine = float(np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second)))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = np.arccos(cosine)
    return np.sin((1 - t) * angle) / np.sin(angle) * first + np.sin(t * angle) / np.sin(angle) * second


def best(matrix: Any, rank: int) -> Any:
    """The best approximation of a rank, by a full SVD."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ v[:rank]


def distance(one: Deltas, other: Deltas) -> float:
    """The largest difference between two sets of deltas, relative to the largest element; infinite where tensors are not the same."""
    if one.keys() != other.keys():
        return float("inf")
    scale = max(np.abs(value).max() for value in other.values())
    return float(max(np.abs(one[name] - other[name]).max() for name in one) / scale)
