"""A tiny Llama and two that were trained from it, as folders; and the merging methods again, in float64 numpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tiny_models

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_family(folder: Path, dtype: str = "float32", shard: str | None = None, **config: Any) -> dict[str, Path]:
    """`base`, `one` and `two` below `folder`: the same Llama with other random changes of all its weights."""
    import torch

    made = {}
    for number, name in enumerate(("base", "one", "two")):
        model = tiny_models.make_llama(**config)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.05 if number else 0.0))
        made[name] = folder / name
        model = model.to(getattr(torch, dtype))
        model.save_pretrained(made[name], **({"max_shard_size": shard} if shard else {}))
        tiny_models.make_tokenizer().save_pretrained(made[name])
    return made


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder in float64."""
    from safetensors.torch import load_file

    found = {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
    return {name: value.double().numpy() for name, value in found.items()}


def linear(sources: Sequence[Any], weights: Sequence[float], *, normalize: bool = True) -> Any:
    """A weighted sum, or mean."""
    total = sum(weights) if normalize else 1.0
    return sum(weight / total * source for weight, source in zip(weights, sources, strict=True))


def task_arithmetic(base: Any, sources: Sequence[Any], weights: Sequence[float], scale: float) -> Any:
    """The base plus weighted changes."""
    return base + scale * sum(weight * (source - base) for weight, source in zip(weights, sources, strict=True))


def ties(
    base: Any,
    sources: Sequence[Any],
    weights: Sequence[float],
    densities: Sequence[float],
    scale: float,
    *,
    normalize: bool,
) -> Any:
    """Mergekit's TIES: the largest changes, rounded down in number, weighted, elected by their sum, and divided by the weights that agree."""
    terms = []
    for source, weight, density in zip(sources, weights, densities, strict=True):
        # In float32, as the changes are stored: of almost equal ones the same must be kept.
        change = (source.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
        kept = change.size if density >= 1 else max(1, int(density * change.size))
        edge = np.sort(np.abs(change).reshape(-1))[-kept]
        terms.append(weight * np.where(np.abs(change) >= edge, change, 0.0))
    sign = np.where(sum(terms) >= 0, 1.0, -1.0)
    agree = [np.sign(term) == sign for term in terms]
    merged = sum(term * mask for term, mask in zip(terms, agree, strict=True))
    if normalize:
        divisor = sum(weight * mask for weight, mask in zip(weights, agree, strict=True))
        merged = merged / np.where(divisor == 0, 1.0, divisor)
    return base + scale * merged
