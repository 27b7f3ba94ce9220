"""The inputs of the golden digests, as docs/design/derivations.md describes them, and what this process makes of them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from modelyard.derivations import (
    STORAGE,
    Operands,
    Tally,
    apply_cast,
    apply_dare,
    apply_dare_2,
    apply_dora,
    apply_linear,
    apply_lora,
    apply_ties,
    apply_ties_2,
    lora_scale,
)

GOLDEN: dict[str, str] = json.loads(Path(__file__).with_name("golden.json").read_text("utf-8"))["digests"]
WEIGHTS, DENSITY, SEED, NAME = (0.5, 0.75, -0.25), 0.3, 42, "layer.weight"
KEPT, DENSITIES, SCALE = (672, 1000, 2240), (0.3, 0.5, 1.0), 0.75


def numbers(seed: str, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Float32 in [-1, 1) that follow from a text alone: BLAKE3's output, 24 bits for each."""
    count = int(np.prod(shape))
    bits = np.frombuffer(blake3.blake3(seed.encode()).digest(length=4 * count), "<u4")
    made = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return made.reshape(shape)


def inputs(dtype: str, *, transposed: bool = False) -> tuple[Any, Any, Any]:
    """Base, A and B of the golden digests: weight (40, 56) or its transpose, rank 5."""
    shape = (56, 40) if transposed else (40, 56)
    return apply_cast(numbers("W", *shape), "F32", dtype), numbers("A", 5, 56), numbers("B", 40, 5)


def operands(dtype: str, *, with_base: bool = True) -> Operands:
    """The three models of the golden digests and their base."""
    from_ = ["F32", "BF16", "F16"]
    models = [apply_cast(numbers(f"X{i}", 40, 56), "F32", each) for i, each in enumerate(from_)]
    if not with_base:
        return Operands(models, from_, WEIGHTS)
    return Operands(models, from_, WEIGHTS, base=inputs(dtype)[0], base_dtype=dtype)


def digest(array: Any) -> str:
    """BLAKE3 of an array's bytes."""
    return blake3.blake3(np.ascontiguousarray(array).tobytes()).hexdigest()


def golden_digests(dtypes: Collection[str] = tuple(STORAGE), **how: int) -> dict[str, str]:
    """What this process computes for the golden cases of these result dtypes; `how` is `threads` and `block_elements`."""
    made = {}
    for dtype in dtypes:
        for transposed in (False, True):
            base, a, b = inputs(dtype, transposed=transposed)
            out = apply_lora(base, dtype, a, b, lora_scale(7, 5), transposed=transposed, **how)
            made[f"lora/1 {dtype}{' transposed' if transposed else ''}"] = digest(out)
            scaled = apply_dora(
                base, dtype, a, b, numbers("M", 40), scale=lora_scale(7, 5), transposed=transposed, **how
            )
            made[f"dora/1 {dtype}{' transposed' if transposed else ''}"] = digest(scaled)
    for from_ in STORAGE:
        for to in dtypes:
            made[f"cast/1 {from_} to {to}"] = digest(apply_cast(inputs(from_)[0], from_, to, **how))
    for dtype in dtypes:
        made[f"linear/1 {dtype}"] = digest(apply_linear(operands(dtype, with_base=False), dtype, **how))
        made[f"ties/1 {dtype}"] = digest(apply_ties(operands(dtype), DENSITY, dtype, **how))
        made[f"dare/1 {dtype}"] = digest(apply_dare(operands(dtype), DENSITY, dtype, seed=SEED, name=NAME, **how))
        ties_2 = apply_ties_2(operands(dtype), KEPT, dtype, tally=Tally(scale=SCALE), **how)
        made[f"ties/2 {dtype}"] = digest(ties_2)
        for elect in (True, False):
            tally = Tally(elect, normalize=not elect, scale=SCALE)
            drawn: dict[str, Any] = {"seed": SEED, "name": NAME, "tally": tally, **how}
            dare_2 = apply_dare_2(operands(dtype), DENSITIES, dtype, **drawn)
            made[f"dare/2 {dtype}{'' if elect else ' unelected'}"] = digest(dare_2)
    return made


def extensions() -> list[str]:
    """The optional vector extensions that numpy uses in this process."""
    features: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    return [name for name in features.__cpu_dispatch__ if features.__cpu_features__.get(name)]
