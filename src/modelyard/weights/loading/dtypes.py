"""Which dtype weights are loaded as. Knows dtypes and this machine's CPU, not models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.weights.headers import read_header

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DTYPES", "cpu_runs_bfloat16", "pick_dtype", "stored_dtype"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""What weights may be loaded as."""

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def cpu_runs_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); emulation is 10 to 20x slower."""
    import torch

    able: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))


def pick_dtype(wanted: str, stored: str | None, device: str) -> str:
    """The dtype to load as: `wanted`, or for `auto` the `stored` one where the device computes in it well.

    >>> pick_dtype("auto", "float16", "cpu"), pick_dtype("auto", "float16", "cuda"), pick_dtype("float32", None, "cpu")
    ('float32', 'float16', 'float32')
    """
    if wanted != "auto":
        return wanted
    if stored not in DTYPES:
        return "float32"
    if device == "cpu" and (stored == "float16" or (stored == "bfloat16" and not cpu_runs_bfloat16())):
        return "float32"
    return stored


def stored_dtype(folder: Path) -> str | None:
    """The dtype that most bytes of a folder's weights are in, for a configuration that does not say."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for info in read_header(path).tensors.values():
            found[info.dtype] = found.get(info.dtype, 0) + info.end - info.start
    return _NAMES.get(max(found, key=lambda kind: found[kind])) if found else None
