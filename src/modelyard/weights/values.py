"""Looking at tensors' values without loading them: one pass, a few MiB of memory. Knows dtypes, not models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Checkpoint, Shard
    from modelyard.weights.headers import TensorInfo

__all__ = ["Scan", "count_in_range", "count_nonfinite", "equal_tensors", "read_blocks", "scan_tensor"]

_BLOCK = 4 << 20

# For each float format: the integer type of its bits, the exponent's mask (all ones: not finite), and the sign's.
_FLOATS = {
    "F64": ("<u8", 0x7FF0000000000000, 0x8000000000000000),
    "F32": ("<u4", 0x7F800000, 0x80000000),
    "C64": ("<u4", 0x7F800000, 0x80000000),  # a real and an imaginary F32, counted one by one
    "F16": ("<u2", 0x7C00, 0x8000),
    "BF16": ("<u2", 0x7F80, 0x8000),
    "F8_E5M2": ("<u1", 0x7C, 0x80),
}
# Formats without infinity that have single patterns for NaN.
_NANS = {"F8_E4M3": (0x7F, 0xFF), "F8_E4M3FNUZ": (0x80,), "F8_E5M2FNUZ": (0x80,), "F8_E8M0": (0xFF,)}


@dataclass(frozen=True)
class Scan:
    """What one pass over a tensor saw: how many elements are NaN or infinite, and whether all are zero."""

    nonfinite: int
    all_zero: bool


def scan_tensor(shard: Shard, info: TensorInfo) -> Scan:
    """Count what is not finite. Formats without infinities or of other kinds count none."""
    bits, _, sign = _FLOATS.get(info.dtype, ("<u1", 0, 0))
    nonfinite, zero = 0, True
    for block in read_blocks(shard, info):
        nonfinite += _count(block, info.dtype)
        if zero:
            zero = not (block.view(bits) & ~np.array(sign, bits)).any()
    return Scan(nonfinite, zero and info.elements > 0)


def count_nonfinite(path: Path) -> int:
    """How many elements of a safetensors file are NaN or infinite: one pass, a few MiB of memory.

    Raises:
        ModelError: The file is no sound safetensors file.
    """
    header = read_header(path)
    found = 0
    with path.open("rb") as stream:
        for info in header.tensors.values():
            stream.seek(header.data_start + info.start)
            found += count_in_range(stream, info.dtype, info.end - info.start)
    return found


def count_in_range(stream: BinaryIO, dtype: str, size: int) -> int:
    """How many elements of the next `size` bytes are NaN or infinite; without reading them where `dtype` has neither.

    Raises:
        ModelError: `truncated`: the stream ends before.
    """
    if dtype not in _FLOATS and dtype not in _NANS:
        return 0
    found, left = 0, size
    while left:
        block = stream.read(min(_BLOCK, left))
        if len(block) < min(_BLOCK, left):
            raise ModelError("a weights file became shorter while it was read", code="truncated")
        found += _count(np.frombuffer(block, np.uint8), dtype)
        left -= len(block)
    return found


def _count(block: Array, dtype: str) -> int:
    if dtype in _NANS:
        return int(np.count_nonzero(np.isin(block, _NANS[dtype])))
    bits, exponent, _ = _FLOATS.get(dtype, ("<u1", 0, 0))
    return int(np.count_nonzero((block.view(bits) & exponent) == exponent)) if exponent else 0


def read_blocks(shard: Shard, info: TensorInfo) -> Iterator[Array]:
    """A tensor's bytes in order, a few MiB at a time; each block is overwritten by the next."""
    buffer = np.empty(min(_BLOCK, info.end - info.start), np.uint8)
    for start in range(info.start, info.end, _BLOCK):
        part = buffer[: min(_BLOCK, info.end - start)]
        shard.read_into(part.data, start)
        yield part


def equal_tensors(weights: Checkpoint, left: str, right: str) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    one, other = weights.info(left), weights.info(right)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with weights.open(weights.home[left]) as first, weights.open(weights.home[right]) as second:
        pairs = zip(read_blocks(first, one), read_blocks(second, other), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)
