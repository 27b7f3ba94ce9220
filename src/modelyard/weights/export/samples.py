"""What an export is traced with and judged by, on top of `parity.fixed_inputs`.

A graph keeps what its sample needed: traced with rows of one length it loses the mask, traced with one row it takes one row
only, traced without token types it takes none. So the sample is the padded batch, with every input that the model has. Knows
models of transformers and arrays; knows no runtime.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.parity import Batch, fixed_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model

__all__ = ["make_batches", "pick_sample", "refuse_constant", "sliding_window"]

_LONGEST = 2048


def make_batches(model: Model) -> list[Batch]:
    """The fixed inputs that a model's `forward` takes, completed: token types that differ, and a row beyond a sliding window.

    Raises:
        ModelError: `no_fixed_inputs`: none can be made for the task.
    """
    found = _pairs(model) if model.task == "zero-shot-image-classification" else fixed_inputs(model.task, model)
    taken = inspect.signature(model.core.forward).parameters
    known = [{name: each for name, each in batch.inputs.items() if name in taken} for batch in found]
    batches = [_with_types(replace(batch, inputs=own), model.core) for batch, own in zip(found, known, strict=True)]
    window = sliding_window(model.core.config)
    if window is not None and window + 4 <= _LONGEST and model.task == "text-generation":
        batches.append(_beyond(batches[0], window + 4))
    return batches


def pick_sample(batches: Sequence[Batch], core: Any) -> dict[str, Any]:
    """The inputs to trace with, as tensors: of the batch with padding, or of the one with most rows.

    Returns:
        Name to tensor, of those that the model's `forward` takes; at least two rows.
    """
    import torch

    def rank(batch: Batch) -> tuple[bool, int]:
        mask = batch.inputs.get("attention_mask")
        return mask is not None and not mask.all(), min(map(len, batch.inputs.values()))

    batch = max(batches, key=rank)
    taken = inspect.signature(core.forward).parameters
    inputs = {name: values for name, values in batch.inputs.items() if name in taken}
    if batch.rows < 2:
        inputs = {name: np.concatenate((values, values)) for name, values in inputs.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}


def refuse_constant(sample: dict[str, Any]) -> None:
    """Refuse a sample whose mask keeps everything: the graph would lose it, and compute padded rows wrong.

    Raises:
        ModelError: `sample_without_padding`.
    """
    mask = sample.get("attention_mask")
    if mask is not None and mask.ndim == 2 and bool(mask.all()) and "input_ids" in sample:
        raise ModelError(
            "the sample to trace with has rows of one length: the graph would lose attention_mask",
            code="sample_without_padding",
            hint="trace with a padded batch",
        )


def sliding_window(config: Any) -> int | None:
    """How many tokens a layer with a sliding window looks back; None where no layer has one."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    used = any("sliding" in str(kind) for kind in kinds) if kinds else getattr(text, "use_sliding_window", True)
    return int(window) if isinstance(window, int) and used else None


def _pairs(model: Model) -> list[Batch]:
    """Three texts of different lengths, padded on the right, against two pictures: what CLIP and its kind compare."""
    texts = next(each for each in fixed_inputs("text-classification", model.tokenizer, model.config) if each.rows > 1)
    pictures = fixed_inputs("image-classification", model.processor.image_processor, model.config)
    taken = inspect.signature(model.core.forward).parameters
    words = {name: values for name, values in texts.inputs.items() if name in taken}
    return [
        Batch({**words, "pixel_values": each.inputs["pixel_values"]}, None, f"three texts and {each.name}")
        for each in pictures
    ]


def _with_types(batch: Batch, core: Any) -> Batch:
    """Token types 0 and 1 in each row: of a model that reads them, every export must."""
    if "input_ids" not in batch.inputs or "token_type_ids" in batch.inputs:
        return batch
    taken = "token_type_ids" in inspect.signature(core.forward).parameters
    if not taken or (getattr(core.config, "type_vocab_size", 0) or 0) < 2:
        return batch
    ids = batch.inputs["input_ids"]
    types = np.broadcast_to(np.arange(ids.shape[-1]) >= ids.shape[-1] // 2, ids.shape).astype(np.int64)
    return replace(batch, inputs={**batch.inputs, "token_type_ids": types})


def _beyond(batch: Batch, length: int) -> Batch:
    """A row of `length` tokens, of those of a shorter one."""
    ids = batch.inputs["input_ids"]
    longer = np.resize(ids[:1], (1, length)).astype(np.int64)
    inputs = {"input_ids": longer, "attention_mask": np.ones_like(longer)}
    return Batch(inputs, np.ones(longer.shape, np.bool_), f"beyond a window of {length - 4}")
