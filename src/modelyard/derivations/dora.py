"""`dora/1`: `lora/1`'s sum, each output row scaled to a trained magnitude by a norm of fixed order.

For row i of the weight, shape (out, in)::

    v[j] = W[i, j] + acc                      binary32, as lora/1 before it rounds
    q = +0;  for j in order:  q = q + v[j]*v[j]          binary64; the square is exact
    f = m[i] / (sqrt(q), in binary64, rounded to binary32)   binary32
    out[j] = round_to_dtype(f * v[j])

Square root and division are correctly rounded by IEEE 754, so only the order of the sum had to be fixed. Rows need nothing of each
other; in a weight stored (in, out) a row of the formula is a column of the file, and the norms take a pass of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations.lora import BLOCK_ELEMENTS, Floats, Lora
from modelyard.derivations.numbers import (
    Array,
    Workspace,
    arithmetic,
    check_arithmetic,
    check_range,
    narrow,
    share,
)
from modelyard.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Dora", "apply_dora"]


class Dora:
    """`dora/1` made ready for one weight.

    Stored (out, in): `apply` may be called for any rows, from any thread. Stored (in, out): `measure` takes all rows of the file first, in
    order, and `apply` is free after the last.

    Args:
        a: The factor A, float32, shape (r, in).
        b: The factor B, float32, shape (out, r).
        magnitude: float32, shape (out,).
        scale: See `lora_scale`.
        dtype: The weight's dtype: F32, F16 or BF16.
        transposed: The weight is stored (in, out).

    Raises:
        InputError: As `Lora`; `bad_shape` too for a magnitude that is not (out,).
    """

    def __init__(
        self, a: Floats, b: Floats, magnitude: Floats, scale: np.float32, dtype: str, *, transposed: bool = False
    ) -> None:
        self.lora = Lora(a, b, scale, dtype, transposed=transposed)
        if magnitude.shape != (b.shape[0],) or magnitude.dtype != np.float32:
            shape = f"{magnitude.dtype} {magnitude.shape}"
            raise InputError(f"a magnitude is float32 of shape {(b.shape[0],)}, not {shape}", code="bad_shape")
        self.transposed, self.shape, self.storage = transposed, self.lora.shape, self.lora.storage
        self._magnitude = magnitude
        self._squares = np.zeros(self.shape[1] if transposed else 0, np.float64)
        self._measured = 0

    def measure(self, base: Array, workspace: Workspace) -> None:
        """Add the next rows of a weight stored (in, out), shape (n, out), to the squares of its columns' norms."""
        check_arithmetic()
        wide = min(self.shape[1], workspace.elements) or 1
        tall = max(workspace.elements // wide, 1)
        with arithmetic():
            for top in range(0, len(base), tall):
                rows = base[top : top + tall]
                for first in range(0, self.shape[1], wide):
                    part = np.s_[first : first + wide]
                    values = self.lora.sum_block(rows[:, part], self._measured + top, first, workspace)
                    wider = values.astype(np.float64)
                    np.multiply(wider, wider, out=wider)
                    sums = self._squares[part]
                    for row in wider:
                        np.add(sums, row, out=sums)
        self._measured += len(base)

    def apply(self, base: Array, out: Array, row: int, workspace: Workspace) -> bool:
        """Compute rows `row` to `row + len(base)` of the weight, whole, from `base` (n, columns) into `out`.

        Returns:
            Whether a result, or a norm, overflowed to infinity.

        Raises:
            InputError: `nan_result`, `flush_to_zero`, or `bad_shape`.
        """
        rows, columns = base.shape
        if columns != self.shape[1] or row < 0 or row + rows > self.shape[0] or out.shape != base.shape:
            what = f"rows of shape {base.shape} at {row} are not in a weight of {self.shape}"
            raise InputError(what, code="bad_shape")
        if self.transposed and self._measured != self.shape[0]:
            raise InputError("a weight stored (in, out) is measured whole before it is scaled", code="bad_shape")
        check_arithmetic()
        tall = max(workspace.elements // (columns or 1), 1)
        kept = np.empty((min(tall, rows), columns), np.float32)
        overflow = False
        with arithmetic():
            for top in range(0, rows, tall):
                part = np.s_[top : min(top + tall, rows)]
                overflow |= self._rows(base[part], out[part], row + top, kept, workspace)
        return overflow

    def _rows(self, base: Array, out: Array, row: int, kept: Floats, workspace: Workspace) -> bool:
        rows, columns = base.shape
        wide = min(columns, workspace.elements) or 1
        blocks = [np.s_[:, first : min(first + wide, columns)] for first in range(0, columns, wide)]
        values = kept[:rows]
        for block in blocks:
            values[block] = self.lora.sum_block(base[block], row, block[1].start, workspace)
        if self.transposed:
            factors, overflow = self._factors(self._magnitude, self._squares)
            factors = factors[None]
        else:
            factors, overflow = self._factors(self._magnitude[row : row + rows], _sum_squares(values, wide))
            factors = factors[:, None]
        np.multiply(values, factors, out=values)
        overflow |= check_range(values, self.lora.dtype)
        for block in blocks:
            scaled = workspace.part(values[block].size)[2].reshape(rows, -1)
            np.copyto(scaled, values[block])
            narrow(scaled, self.lora.dtype, out[block], workspace)
        return overflow

    def _factors(self, magnitude: Floats, squares: NDArray[np.float64]) -> tuple[Floats, bool]:
        norms = np.sqrt(squares).astype(np.float32)
        return np.divide(magnitude, norms), bool(np.isinf(norms).any())


def _sum_squares(values: Floats, wide: int) -> NDArray[np.float64]:
    """Each row's sum of squares in binary64, one element after another: `accumulate` adds in order, a reduction need not."""
    total = np.zeros(len(values), np.float64)
    for first in range(0, values.shape[1], wide):
        squares = values[:, first : first + wide].astype(np.float64)
        np.multiply(squares, squares, out=squares)
        squares[:, 0] += total
        total = np.add.accumulate(squares, axis=1)[:, -1]
    return total


def apply_dora(
    base: Array,
    dtype: str,
    a: Floats,
    b: Floats,
    magnitude: Floats,
    *,
    scale: np.float32,
    transposed: bool = False,
    block_elements: int = BLOCK_ELEMENTS,
    threads: int = 1,
) -> Array:
    """`dora/1` on a whole weight in memory; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        base: The weight, in the numpy type that `STORAGE` gives for `dtype`; shape (out, in), or (in, out) if transposed.
        dtype: F32, F16 or BF16.
        a: float32, (r, in).
        b: float32, (out, r).
        magnitude: float32, (out,).
        scale: See `lora_scale`.
        transposed: See `Dora`.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the rows.

    Raises:
        InputError: As `Dora` and `Dora.apply`.
    """
    dora = Dora(a, b, magnitude, scale, dtype, transposed=transposed)
    if base.shape != dora.shape:
        raise InputError(f"a DoRA of shape {dora.shape} does not fit a weight of {base.shape}", code="bad_shape")
    if base.dtype != dora.storage:
        raise InputError(f"{dtype} elements are kept as {dora.storage}, not {base.dtype}", code="unsupported_dtype")
    if transposed:
        dora.measure(base, Workspace(block_elements))
    out = np.empty_like(base)

    def work(start: int, end: int) -> None:
        dora.apply(base[start:end], out[start:end], start, Workspace(block_elements))

    share(base.shape[0], threads, work)
    return out
