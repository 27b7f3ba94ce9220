"""Models for tests of segments: real safetensors files of bfloat16 weights, large enough to be cut at their tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelyard.registry import Version, Yard
    from registry.registry_helpers import Bench

Weights = dict[str, np.ndarray]
SHAPES = {"a.weight": (96, 128), "b.weight": (128, 160), "c.weight": (160, 64), "norm.weight": (128,)}


def weights(seed: int = 0) -> Weights:
    """Float32 weights as an initialised model has them."""
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) * 0.02).astype(np.float32) for name, shape in SHAPES.items()}


def tuned(base: Weights, seed: int = 1, change: float = 0.01) -> Weights:
    """Weights that a fine-tuning could have made: each a little off."""
    random = np.random.default_rng(seed)
    return {
        name: (values * (1 + change * random.standard_normal(values.shape))).astype(np.float32)
        for name, values in base.items()
    }


def bf16(values: np.ndarray) -> np.ndarray:
    """Bit patterns of bfloat16, rounded to nearest even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "BF16", note: str = "") -> Path:
    """Write a safetensors file of float32 `tensors` in `dtype`; `note` goes into the header's metadata."""
    header: dict[str, object] = {"__metadata__": {"note": note}} if note else {}
    body = b""
    for name, values in tensors.items():
        data = (bf16(values) if dtype == "BF16" else values.astype("<f4" if dtype == "F32" else "<f2")).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def folder(bench: Bench, tensors: Mapping[str, np.ndarray], dtype: str = "BF16", note: str = "") -> Path:
    """A model folder with these tensors."""
    made = bench.write({"config.json": json.dumps({"model_type": "llama"})})
    save(made / "model.safetensors", tensors, dtype, note)
    return made


def outdate(bench: Bench, to: str = "team/model") -> Version:
    """Commit something small on top, so that nothing names the version before any more."""
    return bench.yard.commit(bench.write({"config.json": json.dumps({"model_type": "llama", "old": 1})}), to)


def contents(yard: Yard, version: str | Version) -> dict[str, bytes]:
    """Every file of a version, as it is read now."""
    files = yard.files(version)
    return {name: files.read(name) for name in files.names()}


def on_disk(path: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {found.relative_to(path).as_posix(): found.read_bytes() for found in path.rglob("*") if found.is_file()}
