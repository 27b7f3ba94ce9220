"""The tensors' values and dtypes: what is not finite, what was never trained, what config.json says of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from modelyard.weights.doctor.findings import SHOWN, make, some
from modelyard.weights.files import show_name
from modelyard.weights.values import scan_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding
    from modelyard.weights.headers import Header

__all__ = ["DTYPES", "examine_values", "main_dtype"]

DTYPES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""A dtype of safetensors as config.json writes it."""


def examine_values(case: Case) -> Iterator[Finding]:
    """One pass over every tensor, a few MiB of memory."""
    weights = case.weights
    if weights is None:
        return
    broken, zero = [], []
    for shard in weights.shards:
        with weights.open(shard) as opened:
            for name, info in opened.header.in_file_order():
                scan = scan_tensor(opened, info)
                if scan.nonfinite:
                    broken.append(f"{show_name(name)} ({scan.nonfinite} of {info.elements})")
                elif scan.all_zero and name.endswith(("lora_B.weight", "lora_embedding_B")):
                    zero.append(name)
    if broken:
        what = f"{len(broken)} tensors hold NaN or infinity: {', '.join(broken[:SHOWN])}"
        yield make("nonfinite", what, "go back to a checkpoint from before training diverged: yard log REPO lists them")
    if zero:
        what = f"{len(zero)} LoRA factors are all zero, as before training ({some(zero)}): the adapter changes nothing"
        yield make("untrained", what, "save the adapter after training, from the process that trained it")
    yield from _dtype(case, weights.shards)


def main_dtype(headers: Mapping[str, Header]) -> str | None:
    """The dtype, as config.json writes it, that most elements have; None where that is none of `DTYPES`."""
    counted: Counter[str] = Counter()
    for header in headers.values():
        for info in header.tensors.values():
            counted[info.dtype] += info.elements
    return DTYPES.get(counted.most_common(1)[0][0]) if counted else None


def _dtype(case: Case, headers: Mapping[str, Header]) -> Iterator[Finding]:
    said = case.config.get("dtype") or case.config.get("torch_dtype")
    stored = main_dtype(headers)
    if case.kind == "adapter" or case.config.get("quantization_config") or stored is None or said in {None, stored}:
        return
    what = f"config.json says the dtype {said!r:.40}, and the tensors are {stored}: every load casts them all"
    yield make("dtype_mismatch", what, case.mend)
