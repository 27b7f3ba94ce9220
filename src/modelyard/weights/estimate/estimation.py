"""`estimate`: how much memory a model takes for a task, before anything of it is allocated.

Sizes come from a run on the meta device (`profile`), or, for families where these are proven equal to it by tests, from closed
forms that need no library (`closed`). Never from a guess: what is not known is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from modelyard.weights.estimate.checkpoint import Described, describe
from modelyard.weights.estimate.closed import closed_profile
from modelyard.weights.estimate.machine import KEPT, OVERHEAD, find_machine
from modelyard.weights.estimate.workload import DTYPES, Estimate, Machine, Mode, Option, Workload
from modelyard.weights.inspection.classes import task_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelyard.weights.estimate.sizes import Profile
    from modelyard.weights.files import Files

__all__ = ["estimate"]

_BITS = {"bnb-8bit": 8, "torchao-int8": 8, "int8-dynamic": 8, "bnb-4bit": 4, "torchao-int4": 4}
_SCALES = {"bnb-8bit": ("row", 4), "torchao-int8": ("row", 4), "bnb-4bit": (64, 4), "torchao-int4": (32, 4)}


def estimate(
    source: Files | Path | str,
    *,
    mode: Mode = "inference",
    dtype: str = "auto",
    device: str = "cpu",
    batch: int = 1,
    length: int | None = None,
    new_tokens: int = 256,
    quantization: str | None = None,
    rank: int = 16,
    targets: str | tuple[str, ...] = "all-linear",
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    machine: Machine | None = None,
    options: bool | None = None,
    method: Literal["auto", "meta"] = "auto",
) -> Estimate:
    """Memory for one inference or training step, in bytes.

    Args:
        source: A folder with config.json (weights are not needed), or any `Files`: a yard's version, `RemoteFiles`.
        mode: `inference`; `lora`: a training step of an adapter; `full`: of all parameters.
        dtype: What weights are loaded as: `auto`, `float32`, `bfloat16`, `float16`. `auto` is the checkpoint's own, and
            float32 for `full`, where updates would be lost in fewer bits.
        device: `cpu` or `cuda`.
        batch: Rows at a time.
        length: Tokens of a row; by default 2048, or as many as config.json has positions for where these are fewer. Pictures
            and sound have the size that the model takes.
        new_tokens: For inference of a model that writes: how many.
        quantization: A short name of loading (`bnb-4bit`, ...); None for none.
        rank: LoRA's rank.
        targets: Modules that LoRA is put on, by the endings of their names, or `all-linear`.
        optimizer: `adamw` or `sgd`.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        machine: What to hold it against; by default this one's memory now.
        options: Whether to look for what else would do; by default where it does not fit.
        method: `meta` takes no closed form.

    Raises:
        ModelError: `no_config`, `unknown_architecture`, `no_sample_input`, `estimate_failed`, or a broken file.
        RequestError: An option is wrong, or longer rows than the model has positions for.
    """
    described = describe(source)
    if length is None:
        length = _usual_length(described.config, new_tokens)
    workload = Workload(
        mode, batch, length, new_tokens, dtype, device, quantization, rank,
        targets if isinstance(targets, str) else tuple(targets), optimizer, gradient_checkpointing,
    )  # fmt: skip
    here = machine or find_machine(device)
    found = _estimate(described, workload, here, method)
    if options or (options is None and found.fits is False):
        from modelyard.weights.estimate.options import find_options

        def peak(changed: Workload) -> int:
            return _estimate(described, changed, here, method).peak

        found = _with_options(found, find_options(found, peak))
    return found


_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")


def _usual_length(config: Mapping[str, Any], new_tokens: int) -> int:
    """2048 tokens, or as many as there are positions for, with those that a model writes behind them."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    found: list[int] = [text[key] for key in _POSITIONS if type(text.get(key)) is int and text[key] > 0]
    if not found:
        return 2048
    listed = config.get("architectures")
    named = str(listed[0]) if isinstance(listed, list) and listed else ""
    behind = (
        new_tokens if task_of(named) == "text-generation" else 0
    )  # by the name: transformers takes seconds to import
    return min(2048, found[0] - behind if found[0] > behind else found[0])


def _with_options(found: Estimate, options: list[Option]) -> Estimate:
    import dataclasses

    return dataclasses.replace(found, options=tuple(options))


def _estimate(described: Described, workload: Workload, machine: Machine | None, method: str) -> Estimate:
    dtype = _dtype(described, workload)
    profile = closed_profile(described, workload, dtype) if method == "auto" else None
    if profile is None:
        from modelyard.weights.estimate.profile import run_profile

        profile = run_profile(described.config, workload, dtype)
    weights, notes = _weights(described, workload, dtype, profile)
    parts = (profile.kv_cache, profile.gradients, profile.optimizer)
    scratch = profile.largest * DTYPES[dtype] if workload.quantization or described.quantization else 0
    kind = workload.device.partition(":")[0]
    return Estimate(
        weights=weights,
        kv_cache=profile.kv_cache,
        activations=profile.peak - sum(parts) + scratch,
        gradients=profile.gradients,
        optimizer=profile.optimizer,
        adapter=profile.adapter,
        allocator=round(KEPT * profile.heap) if kind == "cpu" else 0,
        overhead=OVERHEAD.get(kind, OVERHEAD["cuda"]),
        parameters=profile.parameters,
        trainable=profile.trainable,
        dtype=dtype,
        architecture=described.architecture,
        method="closed-form" if profile.closed else "meta",
        workload=workload,
        machine=machine,
        notes=(*notes, *_notes(workload)),
    )


def _dtype(described: Described, workload: Workload) -> str:
    if workload.dtype != "auto":
        return workload.dtype
    return "float32" if workload.mode == "full" else described.dtype


def _weights(described: Described, workload: Workload, dtype: str, profile: Profile) -> tuple[int, list[str]]:
    """Bytes of the weights as loaded, and what is to be said of them."""
    if workload.quantization is not None:
        elements, rows = profile.linear
        scale: Any = _SCALES.get(workload.quantization, (0, 0))
        scales = rows * scale[1] if scale[0] == "row" else elements // scale[0] * scale[1] if scale[0] else 0
        packed = elements * _BITS[workload.quantization] // 8 + scales
        return profile.weights - elements * DTYPES[dtype] + packed, []
    if described.quantization is not None:
        if not described.tensors:
            return profile.weights, [f"no weights here: counted as {dtype}, not as {described.quantization}"]
        return described.stored, [f"weights stay as {described.quantization} keeps them, as stored"]
    kept = _still_mapped(described, workload, dtype) if not profile.closed else 0
    said = (
        [f"of the weights, {kept:,} bytes are the file's, still mapped beside what was joined from them"]
        if kept
        else []
    )
    return profile.weights + kept, said


def _still_mapped(described: Described, workload: Workload, dtype: str) -> int:
    """Bytes of the file that stay in memory although the model has copies of them.

    On a CPU weights are maps of their file, and stay so as long as one of its tensors is used as it is; tensors that are
    joined while they are loaded (experts) were read through the same map. The system takes these pages back when it
    must, but until then they are resident.
    """
    if not described.tensors or workload.device != "cpu" or dtype != described.dtype:
        return 0
    from modelyard.weights.architecture import converted_names

    tensors = described.tensors
    return sum(tensors[name].end - tensors[name].start for name in converted_names(described.config, tensors))


def _notes(workload: Workload) -> list[str]:
    notes = []
    if workload.training:
        notes.append(
            f"one step of {workload.optimizer} on {workload.batch} x {workload.length} tokens, padding included"
        )
        notes.append("accumulated gradients take no more; the data loader and checkpoints are left out")
    if workload.device.startswith("cuda"):
        notes.append("the allocator's cache may hold more than is in use")
    return notes
