"""`lora/1`: a weight plus a scaled low-rank product, in a fixed order of rounded steps.

Per element, in binary32::

    acc = +0
    for k in 0 .. r-1:   acc = acc + ((scale * B[i, k]) * A[k, j])
    out = round_to_dtype(W[i, j] + acc)

Every `*` and `+` rounds on its own; there is no fused multiply-add and no BLAS, whose order of sums depends on the machine.
The loop runs over k outside and over a block of elements inside, so each step is one vector instruction wide, and the
block stays in the cache.

>>> lora_scale(32, 16), lora_scale(32, 16, rslora=True)
(np.float32(2.0), np.float32(8.0))
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from modelyard.derivations.numbers import (
    Array,
    Workspace,
    arithmetic,
    check_arithmetic,
    check_range,
    narrow,
    share,
    storage,
    widen,
)
from modelyard.errors import InputError

__all__ = ["BLOCK_ELEMENTS", "Lora", "apply_lora", "lora_scale"]

BLOCK_ELEMENTS = 1 << 16
"""The default block: 64 Ki elements, whose two binary32 arrays fit a second-level cache of 1 MiB."""

Floats = NDArray[np.float32]


def lora_scale(alpha: float, rank: int, *, rslora: bool = False) -> np.float32:
    """The scale, alpha/r or alpha/sqrt(r): computed in binary64, rounded once to binary32.

    Raises:
        InputError: `bad_rank` or `bad_alpha`.
    """
    if rank < 1:
        raise InputError(f"a LoRA needs a rank of at least 1, not {rank}", code="bad_rank")
    value = float(alpha) / (math.sqrt(rank) if rslora else rank)
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise InputError(f"alpha {alpha!r} with rank {rank} gives no finite scale", code="bad_alpha")
    return np.float32(value)


class Lora:
    """`lora/1` made ready for one weight; `apply` may be called for any rows in any order, from any thread.

    Args:
        a: The factor A, float32, shape (r, in).
        b: The factor B, float32, shape (out, r).
        scale: See `lora_scale`.
        dtype: The weight's dtype: F32, F16 or BF16.
        transposed: The weight is stored (in, out), as GPT-2's `Conv1D` does, instead of (out, in).

    Raises:
        InputError: `bad_shape` when the factors do not belong together, `bad_rank`, `unsupported_dtype`.
    """

    def __init__(self, a: Floats, b: Floats, scale: np.float32, dtype: str, *, transposed: bool = False) -> None:
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise InputError(f"LoRA factors of shapes {a.shape} and {b.shape} do not multiply", code="bad_shape")
        if a.shape[0] < 1:
            raise InputError("a LoRA needs a rank of at least 1, not 0", code="bad_rank")
        if a.dtype != np.float32 or b.dtype != np.float32:
            raise InputError(f"LoRA factors are float32, not {a.dtype} and {b.dtype}", code="unsupported_dtype")
        self.dtype, self.storage = dtype, storage(dtype)
        with np.errstate(all="ignore"):
            scaled = np.multiply(b, np.float32(scale))
        # A product's factors may be swapped without changing its bits: only which one runs along the rows differs.
        left, right = (a.T, scaled.T) if transposed else (scaled, a)
        self._left = np.ascontiguousarray(left)
        self._right = np.ascontiguousarray(right)
        self.shape = (left.shape[0], right.shape[1])

    def apply(self, base: Array, out: Array, row: int, workspace: Workspace) -> bool:
        """Compute rows `row` to `row + len(base)` of the weight from `base` (n, columns) into `out` of the same shape.

        Returns:
            Whether a result overflowed to infinity.

        Raises:
            InputError: `nan_result`, `flush_to_zero`, or `bad_shape`.
        """
        rows, columns = base.shape
        if columns != self.shape[1] or row < 0 or row + rows > self.shape[0] or out.shape != base.shape:
            raise InputError(
                f"rows of shape {base.shape} at {row} are not in a weight of {self.shape}", code="bad_shape"
            )
        check_arithmetic()
        wide = min(columns, workspace.elements) or 1
        tall = max(workspace.elements // wide, 1)
        overflow = False
        with arithmetic():
            for top in range(0, rows, tall):
                for first in range(0, columns, wide):
                    part = np.s_[top : min(top + tall, rows), first : min(first + wide, columns)]
                    overflow |= self._block(base[part], out[part], row + top, first, workspace)
        return overflow

    def _block(self, base: Array, out: Array, row: int, column: int, workspace: Workspace) -> bool:
        values = self.sum_block(base, row, column, workspace)
        overflow = check_range(values, self.dtype)
        narrow(values, self.dtype, out, workspace)
        return overflow

    def sum_block(self, base: Array, row: int, column: int, workspace: Workspace) -> Floats:
        """`W + acc` of a block whose first element is (row, column), before it is rounded: in `workspace.values`.

        Called within `numbers.arithmetic`; the block has at most `workspace.elements` elements.
        """
        rows, columns = base.shape
        left = self._left[row : row + rows]
        right = self._right[:, column : column + columns]
        sums, terms, values = (part.reshape(rows, columns) for part in workspace.part(rows * columns))
        np.multiply(left[:, :1], right[:1], out=sums)
        for k in range(1, right.shape[0]):
            np.multiply(left[:, k : k + 1], right[k : k + 1], out=terms)
            np.add(sums, terms, out=sums)
        # The definition starts from +0, which only tells when every product is -0; adding it last gives the same bits.
        np.add(sums, np.float32(0), out=sums)
        widen(base, self.dtype, values)
        np.add(values, sums, out=values)
        return values


def apply_lora(
    base: Array,
    dtype: str,
    a: Floats,
    b: Floats,
    scale: np.float32,
    *,
    transposed: bool = False,
    block_elements: int = BLOCK_ELEMENTS,
    threads: int = 1,
) -> Array:
    """`lora/1` on a whole weight in memory; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        base: The weight, in the numpy type that `STORAGE` gives for `dtype`; shape (out, in), or (in, out) if transposed.
        dtype: F32, F16 or BF16.
        a: float32, (r, in).
        b: float32, (out, r).
        scale: See `lora_scale`.
        transposed: See `Lora`.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the rows.

    Raises:
        InputError: As `Lora` and `Lora.apply`.
    """
    lora = Lora(a, b, scale, dtype, transposed=transposed)
    if base.shape != lora.shape:
        raise InputError(f"a LoRA of shape {lora.shape} does not fit a weight of {base.shape}", code="bad_shape")
    if base.dtype != lora.storage:
        raise InputError(f"{dtype} elements are kept as {lora.storage}, not {base.dtype}", code="unsupported_dtype")
    out = np.empty_like(base)

    def work(start: int, end: int) -> None:
        lora.apply(base[start:end], out[start:end], start, Workspace(block_elements))

    share(base.shape[0], threads, work)
    return out
