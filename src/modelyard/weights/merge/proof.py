"""`prove`: whether a merged model computes what its base computes with the adapter attached.

The attached model is PEFT's own, loaded, run on fixed prompts and let go; then the merged one, so that one model is in memory at a
time. For every task that `parity` makes inputs for. Knows folders; does not know how the merge was done.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelyard.weights import parity
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.checks import read_json
from modelyard.weights.folders import as_files, as_folder
from modelyard.weights.loading.dtypes import stored_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelyard.weights.files import Files
    from modelyard.weights.model import Model

__all__ = ["PROMPTS", "prove"]

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "My card has not arrived",
    "def add(first, second):\n    return",
    "What is 17 times 3? Let us think step by step.",
)
"""Texts that a model with a tokenizer is asked by default."""

# Largest differences that hold by default, relative to an output's largest magnitude. A merge in float32 differs by the order of
# sums; one in 16 bits also by the rounding of each weight and of each activation. What is wrong differs by about its scale.
_FLOAT32, _HALF = 1e-3, 0.1

_ALLOW = ("preprocessor",)  # weights alone can be merged, and seeded inputs need no tokenizer


def prove(
    base: Files | Path | str,
    adapter: Files | Path | str,
    merged: Files | Path | str,
    *,
    prompts: Sequence[str] | None = None,
    tolerance: float | None = None,
    tokens: int = 16,
    dtype: str | None = None,
    threads: int | None = None,
) -> list[parity.Check]:
    """Measure an adapter attached to its base against the two merged.

    Args:
        base: The base model's folder; a quantized one, too.
        adapter: The PEFT adapter's folder.
        merged: The merged model's folder.
        prompts: Texts to compute, for a task that reads texts; by default `PROMPTS` where the adapter or its base has a tokenizer.
            Without one, and for pictures and sounds, the inputs are `parity.fixed_inputs`.
        tolerance: Largest difference that holds, relative to the output's largest magnitude; by default 0.001 where the merged
            weights are float32 and 0.1 where they are 16 bits. Of a quantized base the differences are measured and nothing is asked
            of them: what is lost there depends on the answer that was chosen.
        tokens: Greedy tokens to compare, of models that write text; 0 for none.
        dtype: What is computed in, as `load` takes it. By default float32, which shows what the merge rounded and not what
            activations do; `auto`, which maps the files, where float32 would take more than half of the memory that is left.
        threads: Compute threads of torch in this process; None leaves them as they are.

    Returns:
        One check for each output of each batch, and for its greedy tokens; `parity.failing` gives those that do not hold.

    Raises:
        ModelError: One of the three is no usable model (as `load`), PEFT cannot attach the adapter, or there are no fixed inputs for
            the task (`no_fixed_inputs`).
    """
    from modelyard.weights.load import load

    files = as_files(base)
    packed = "quantization_config" in read_json(files, "config.json")
    dtype = dtype or ("auto" if packed else _pick_dtype(files))
    with ExitStack() as stack:
        merged_folder = stack.enter_context(as_folder(merged))
        # Where the merged model was written there is room, and links into a store on the same disk cost none.
        base_folder, adapter_folder = (
            stack.enter_context(as_folder(each, near=merged_folder.parent)) for each in (base, adapter)
        )
        with warnings.catch_warnings():
            # PEFT warns of what its own merge does to tied embeddings; that is what is measured here.
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
            attached = load(adapter_folder, base=base_folder, dtype=dtype, threads=threads, allow=_ALLOW)
        try:
            task, batches = attached.task, _make_batches(attached, prompts)
            reference = parity.record(parity.TorchRunner(attached), batches, tokens=tokens)
        finally:
            attached.release()
        held = tolerance
        if tolerance is None and not packed:
            exact = stored_dtype(merged_folder) == "float32" and dtype in {"float32", "auto"}
            held = _FLOAT32 if exact else _HALF
        whole = load(merged_folder, task=task, dtype=dtype, threads=threads, allow=_ALLOW)
        try:
            return parity.compare(reference, parity.TorchRunner(whole), batches, tolerance=held, tokens=tokens)
        finally:
            whole.release()


def _pick_dtype(base: Files) -> str:
    """float32 where the base fits in it twice, else what it is in."""
    from modelyard.weights.estimate.machine import find_machine

    elements = sum(info.elements for shard in open_checkpoint(base).shards.values() for info in shard.tensors.values())
    here = find_machine("cpu")
    return "float32" if here is None or 8 * elements <= here.available else "auto"


def _make_batches(model: Model, prompts: Sequence[str] | None) -> list[parity.Batch]:
    return parity.fixed_inputs(model.task, model, texts=PROMPTS if prompts is None else prompts)
