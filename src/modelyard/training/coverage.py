"""LoRA coverage: which modules of a base an adapter will train, checked before anything is trained.

PEFT trains what matches and says nothing of what does not; here an entry that matches no module is an error with near
matches, and layers that are left out are a finding. The base is built without memory (on the `meta` device).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RecipeError, near_match
from modelyard.weights.load import loading

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from modelyard.training.config import TrainConfig

__all__ = ["Coverage", "plan_coverage", "read_skeleton"]

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Coverage:
    """What an adapter covers.

    Attributes:
        modules: Full names of the modules that get a LoRA pair, in model order.
        parameters: Trainable parameters: rank * (inputs + outputs), summed over modules.
        layers: Module suffix (`self_attn.q_proj`) to how many layers have it among the targets.
        layer_count: Layers of the base that hold any targeted module, or would.
    """

    modules: tuple[str, ...]
    parameters: int
    layers: dict[str, int]
    layer_count: int

    @property
    def uneven(self) -> dict[str, int]:
        """Suffixes that are trained in some layers only."""
        return {suffix: count for suffix, count in self.layers.items() if 0 < count < self.layer_count}


def read_skeleton(base: Path) -> Any:
    """The base's modules without their weights, on the `meta` device; `ModelError` if it is no causal language model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
        with loading(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{base.name}: not a causal language model that transformers knows: {error}", hint=f"yard doctor {base}"
        ) from error


def plan_coverage(skeleton: Any, config: TrainConfig) -> Coverage:
    """Find the modules that `config.targets` names.

    Raises:
        RecipeError: An entry matches no module, or one that LoRA does not train here; all such entries are listed.
    """
    linear = dict(_linear_modules(skeleton))
    head = _head_name(skeleton)
    if isinstance(config.targets, str):
        chosen = [name for name in linear if name != head]
    else:
        chosen = _match_entries(config.targets, linear, head, [name for name, _ in skeleton.named_modules() if name])
    layers: dict[str, int] = defaultdict(int)
    for name in chosen:
        found = _LAYER.search(name)
        if found:
            layers[name[found.end() :]] += 1
    numbers = {found.group(1) for name in linear if (found := _LAYER.search(name))}
    parameters = sum(config.rank * sum(_sizes(linear[name])) for name in chosen)
    return Coverage(tuple(chosen), parameters, dict(layers), len(numbers))


def _linear_modules(skeleton: Any) -> Iterable[tuple[str, Any]]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return ((name, module) for name, module in skeleton.named_modules() if isinstance(module, nn.Linear | Conv1D))


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear module."""
    rows, columns = module.weight.shape
    return int(rows), int(columns)


def _head_name(skeleton: Any) -> str | None:
    head = skeleton.get_output_embeddings()
    return next((name for name, module in skeleton.named_modules() if module is head), None)


def _match_entries(entries: list[str], linear: dict[str, Any], head: str | None, names: list[str]) -> list[str]:
    suffixes = sorted({name.rsplit(".", 1)[-1] for name in linear if name != head})
    chosen: set[str] = set()
    problems: list[str] = []
    for entry in entries:
        matched = [name for name in linear if name == entry or name.endswith(f".{entry}")]
        if head in matched:
            problems.append(f"`{entry}` is the output head, which LoRA does not train here")
        elif matched:
            chosen |= set(matched)
        elif any(name == entry or name.endswith(f".{entry}") for name in names):
            problems.append(f"`{entry}` is not a linear layer")
        else:
            meant = near_match(entry, suffixes)
            problems.append(f"`{entry}` matches no module" + (f"; did you mean `{meant}`?" if meant else ""))
    if problems:
        raise RecipeError(
            "training: targets: " + "; ".join(problems),
            hint="linear layers of the base: " + ", ".join(suffixes),
            problems=[{"key": "targets", "problem": text} for text in problems],
        )
    return [name for name in linear if name in chosen]
