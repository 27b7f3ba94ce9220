"""`ties/1`: each model's largest changes, of which those with the elected sign are averaged onto the base.

Per element, in binary32, with `t[i]` the change of model i where it is among its k largest in the tensor, else +0::

    s = +0;     for i in 0 .. m-1:                      s = s + t[i]
    acc = +0;   for i where t[i] has the sign of s:     acc = acc + (w[i] * t[i]);  c = c + 1
    out = round_to_dtype(base + acc / max(c, 1))

The k largest are found exactly and without sorting: magnitudes order as their bits do, so counting the upper half of the
bits, then the lower half of those at the edge, gives the threshold in two passes and a fixed amount of memory.

>>> base, models = np.zeros(4, np.float32), [np.array([4, 3, 1, 0], np.float32), np.array([-1, 5, 2, 6], np.float32)]
>>> apply_ties(Operands(models, ["F32", "F32"], [1.0, 1.0], base=base), 0.5, "F32")
array([4., 4., 0., 6.], dtype=float32)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

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
)
from modelyard.derivations.operands import BLOCK_ELEMENTS, Floats, Operands, check_density
from modelyard.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Trim", "apply_ties", "count_kept", "drop_trimmed", "find_trim"]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)

Bits = NDArray[np.uint32]


@dataclass(frozen=True)
class Trim:
    """What is kept of a model's changes: magnitudes above `edge`, and those equal to it before the element `end`."""

    edge: np.uint32
    end: int


def count_kept(density: float, elements: int) -> int:
    """How many changes are kept: density times elements, to the nearest integer, halves up; at least 1 of any.

    >>> count_kept(0.7, 10), count_kept(0.25, 10), count_kept(0.01, 10)
    (7, 3, 1)
    """
    exact = Fraction(float(check_density(density))) * elements
    return min(max(int(exact + Fraction(1, 2)), 1), elements)


def apply_ties(
    operands: Operands, density: float, to: str, *, block_elements: int = BLOCK_ELEMENTS, threads: int = 1
) -> Array:
    """`ties/1` on a whole tensor in memory; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        operands: The models, their weights and their base. Weights of 1 are the paper's merge; equal ones, the paper's with
            that lambda.
        density: The share of each model's changes that is kept, rounded to binary32; from 2^-32 to 1.
        to: The result's dtype.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the elements.

    Raises:
        InputError: `bad_density`, `unsupported_dtype`, `nan_result`, `flush_to_zero`.
    """
    kept = count_kept(density, operands.elements)
    trims = [find_trim(operands, model, kept, block_elements, threads) for model in range(operands.count)]
    out = np.empty(operands.elements, storage(to))

    def work(start: int, end: int) -> None:
        check_arithmetic()
        workspace = Workspace(min(block_elements, end - start))
        changes = np.empty((operands.count, workspace.elements), np.float32)
        with arithmetic():
            for first in range(start, end, workspace.elements):
                last = min(first + workspace.elements, end)
                values = _merge_block(operands, trims, first, changes[:, : last - first], workspace)
                check_range(values, to)
                narrow(values, to, out[first:last], workspace)

    share(operands.elements, threads, work)
    return out.reshape(operands.shape)


def find_trim(operands: Operands, model: int, kept: int, block_elements: int, threads: int) -> Trim:
    """The edge above and at which `kept` changes lie, and where those at the edge run out."""
    if kept == operands.elements:
        _count(operands, model, block_elements, threads, lambda bits: bits[:0])  # for its refusal of a NaN
        return Trim(np.uint32(0), operands.elements)
    upper = _count(operands, model, block_elements, threads, lambda bits: bits >> _HALF)
    high, above = _find_bucket(upper, kept)
    lower = _count(operands, model, block_elements, threads, lambda bits: (bits & _LOW)[bits >> _HALF == high])
    low, more = _find_bucket(lower, kept - above)
    edge = np.uint32(high << 16 | low)
    left = kept - above - more
    if left == lower[low]:
        return Trim(edge, operands.elements)
    for first, _, bits in _blocks(operands, model, 0, operands.elements, block_elements):
        (equal,) = np.nonzero(bits == edge)
        if left <= len(equal):
            return Trim(edge, first + int(equal[left - 1]) + 1)
        left -= len(equal)
    raise InternalError("fewer changes lie at the edge of a TIES trim than were counted")


def drop_trimmed(change: Floats, start: int, trim: Trim) -> None:
    """Make +0 what a trim does not keep of the changes from element `start` on, which changes no sum that starts at +0."""
    bits = change.view(np.uint32) & _MAGNITUDE
    dropped = bits < trim.edge
    after = max(trim.end - start, 0)
    dropped[after:] |= bits[after:] == trim.edge
    np.copyto(change, np.float32(0), where=dropped)


def _find_bucket(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bucket that holds the `wanted`-th largest, and how many lie in the buckets above it."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    bucket = len(counts) - 1 - place
    return bucket, int(from_top[place] - counts[bucket])


def _count(
    operands: Operands, model: int, block_elements: int, threads: int, digits: Callable[[Bits], Bits]
) -> NDArray[np.int64]:
    """How often each 16-bit number occurs among the `digits` of a model's magnitudes."""
    total = np.zeros(1 << 16, np.int64)
    adding = threading.Lock()

    def work(start: int, end: int) -> None:
        mine = np.zeros(1 << 16, np.int64)
        for _, _, bits in _blocks(operands, model, start, end, block_elements):
            counts = np.bincount(digits(bits))
            mine[: len(counts)] += counts
        with adding:
            np.add(total, mine, out=total)

    share(operands.elements, threads, work)
    return total


def _blocks(
    operands: Operands, model: int, start: int, end: int, block_elements: int
) -> Iterator[tuple[int, int, Bits]]:
    """First, last and the bits of the magnitudes of a model's changes, block by block."""
    check_arithmetic()
    base, change = np.empty((2, min(block_elements, end - start)), np.float32)
    for first in range(start, end, len(base)):
        last = min(first + len(base), end)
        values, part = base[: last - first], change[: last - first]
        with arithmetic():
            operands.widen_base(first, last, values)
            operands.difference(model, first, last, values, part)
        yield first, last, part.view(np.uint32) & _MAGNITUDE


def _merge_block(
    operands: Operands, trims: Sequence[Trim], start: int, changes: Floats, workspace: Workspace
) -> Floats:
    """Base plus the elected change, for as many elements from `start` as `changes` has room for; lies in the workspace."""
    end = start + changes.shape[1]
    sums, terms, values = workspace.part(end - start)
    operands.widen_base(start, end, values)
    sums[:] = 0
    for model, (trim, change) in enumerate(zip(trims, changes, strict=True)):
        operands.difference(model, start, end, values, change)
        drop_trimmed(change, start, trim)
        np.add(sums, change, out=sums)
    check_range(sums, "F32")  # infinities of both signs elect nothing
    negative = sums < 0
    counts = np.zeros(end - start, np.float32)
    sums[:] = 0
    for weight, change in zip(operands.weights, changes, strict=True):
        agrees = (change < 0) == negative
        agrees &= change != 0
        np.multiply(change, weight, out=terms)
        np.copyto(terms, np.float32(0), where=~agrees)
        np.add(sums, terms, out=sums)
        counts += agrees
    np.divide(sums, np.maximum(counts, np.float32(1)), out=sums)
    np.add(values, sums, out=values)
    return values
