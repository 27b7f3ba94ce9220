"""One site as an exact operation on rows: `lora/1`, `dora/1`, `linear/1` or `cast/1`, whatever kind of layer it is.

The tensor is a matrix here, as `Layout.shape` has it, and an operation is called for any of its rows, from any thread. Knows numbers, no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from modelyard.derivations import Dora, Lora, Operands, apply_linear
from modelyard.derivations.cast import cast_block
from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.derivations import Workspace
    from modelyard.derivations.numbers import Array
    from modelyard.weights.merge.exact.factors import Factors
    from modelyard.weights.merge.plan import Site

__all__ = ["Operation", "make_operation", "operation_name"]


class Operation(Protocol):
    """What is done to some rows of a tensor.

    Attributes:
        rows: The rows that it changes.
    """

    rows: range

    def apply(self, before: Array, after: Array, row: int, workspace: Workspace) -> bool:
        """Compute rows `row` to `row + len(before)`, all of them among `rows`; the two may be one array.

        Returns:
            Whether a result overflowed to infinity.

        Raises:
            InputError: `nan_result` or `flush_to_zero`.
        """
        ...


def operation_name(site: Site) -> str:
    """The operation of docs/design/derivations.md that a site is."""
    if site.low_rank:
        return "dora/1" if site.dora else "lora/1"
    return "linear/1" if site.kind == "bias" else "cast/1"


def make_operation(site: Site, dtype: str, factors: Factors, measure: Callable[[Dora], None]) -> Operation:
    """The operation of a site, its factors read.

    Args:
        site: The change.
        dtype: Of the tensor.
        factors: The adapter's tensors.
        measure: Called with a DoRA on a weight stored (in, out), to give it all rows in order before it is applied.
    """
    if site.low_rank:
        return _LowRank(site, dtype, factors, measure)
    if site.kind == "bias":
        return _Bias(site, dtype, factors)
    if site.kind == "tokens":
        return _Tokens(site, dtype, factors)
    return _Replacement(site, dtype, factors)


class _LowRank:
    """A product of two factors, added; with a magnitude, scaled to it."""

    def __init__(self, site: Site, dtype: str, factors: Factors, measure: Callable[[Dora], None]) -> None:
        layout = site.layout
        self.rows = layout.rows
        a = factors.matrix(site.tensors["A"])[_slice(layout.a_rows)]
        b = factors.matrix(site.tensors["B"])[_slice(layout.b_rows)][:, _slice(layout.b_columns)]
        self._work: Lora | Dora
        if site.dora:
            magnitude = factors.matrix(site.tensors["magnitude"]).reshape(-1)[_slice(layout.b_rows)]
            self._work = Dora(a, b, magnitude, site.scale, dtype, transposed=layout.transposed)
            if layout.transposed:
                measure(self._work)
        else:
            self._work = Lora(a, b, site.scale, dtype, transposed=layout.transposed)

    def apply(self, before: Array, after: Array, row: int, workspace: Workspace) -> bool:
        return self._work.apply(before, after, row - self.rows.start, workspace)


class _Bias:
    """A bias plus the scale times another: a `linear/1` of the two with the weights 1 and the scale."""

    def __init__(self, site: Site, dtype: str, factors: Factors) -> None:
        self.rows, self._dtype, self._scale = site.layout.rows, dtype, site.scale
        key = site.tensors["bias"]
        self._values, self._from = factors.values(key).reshape(-1)[_slice(site.layout.b_rows)], factors.dtype(key)

    def apply(self, before: Array, after: Array, row: int, workspace: Workspace) -> bool:
        first = row - self.rows.start
        values = self._values[first : first + len(before)].reshape(before.shape)
        operands = Operands([before, values], [self._dtype, self._from], [np.float32(1), self._scale])
        after[...] = apply_linear(operands, self._dtype, block_elements=workspace.elements)
        return _has_infinity(after, self._dtype)


class _Replacement:
    """Values that the adapter holds whole, in the base's dtype."""

    def __init__(self, site: Site, dtype: str, factors: Factors) -> None:
        self.rows, self._dtype, key = site.layout.rows, dtype, site.tensors["value"]
        values = factors.values(key)
        self._values = values.reshape(len(values) if values.ndim else 1, -1)[_slice(site.layout.b_rows)]
        self._from = factors.dtype(key)

    def apply(self, before: Array, after: Array, row: int, workspace: Workspace) -> bool:
        first = row - self.rows.start
        return _cast(self._values[first : first + len(before)], self._from, after, self._dtype, workspace)


class _Tokens:
    """Some rows that the adapter holds; the others stay."""

    def __init__(self, site: Site, dtype: str, factors: Factors) -> None:
        self.rows, self._dtype, key = site.layout.rows, dtype, site.tensors["tokens"]
        self._values, self._from = factors.values(key), factors.dtype(key)
        self._places = sorted(zip(site.token_rows, range(len(self._values)), strict=True))

    def apply(self, before: Array, after: Array, row: int, workspace: Workspace) -> bool:
        overflow = False
        np.copyto(after, before)
        for place, index in self._places:
            if row <= place < row + len(before):
                target = after[place - row : place - row + 1]
                overflow |= _cast(self._values[index : index + 1], self._from, target, self._dtype, workspace)
        return overflow


def _cast(values: Array, from_: str, after: Array, to: str, workspace: Workspace) -> bool:
    if values.shape != after.shape:
        raise InputError(f"values of {values.shape} do not fit rows of {after.shape}", code="bad_shape")
    flat, source = after.reshape(-1), values.reshape(-1)
    overflow = False
    for start in range(0, flat.size, workspace.elements):
        part = flat[start : start + workspace.elements]
        overflow |= cast_block(source[start : start + part.size], from_, part, to, workspace)
    return overflow


def _slice(rows: range | tuple[int, ...]) -> slice | Array:
    """What numpy is indexed with: rows that follow each other need no copy."""
    return slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else np.asarray(rows)


def _has_infinity(values: Array, dtype: str) -> bool:
    if dtype == "BF16":
        return bool(np.any(np.bitwise_and(values, 0x7FFF) == 0x7F80))
    return bool(np.isinf(values).any())
