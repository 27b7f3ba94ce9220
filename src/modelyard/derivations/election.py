"""`ties/2` and `dare/2`: changes that are thinned, weighted, then elected by their weighted sum, as mergekit merges models.

Per element e, in binary32, with `t[i]` what is kept of the change of model i (for `ties/2` its k[i] largest; for `dare/2`
a random share, rescaled)::

    c[i] = w[i] * t[i]
    s = +0;                 for i in 0 .. m-1:           s = s + c[i]
    acc = +0;  v = +0;      for i that agree with s:     acc = acc + c[i];  v = v + w[i]
    if normalize:           acc = acc / (v, or 1 where v is 0)
    out = round_to_dtype(base + (l * acc))

Without `elect` (`dare/2` only) every model agrees. `ties/1` and `dare/1` are PEFT's and the paper's forms of the same ideas.

>>> base, models = np.zeros(4, np.float32), [np.array([4, 3, 1, 0], np.float32), np.array([-1, 5, 2, 6], np.float32)]
>>> apply_ties_2(Operands(models, ["F32", "F32"], [1.0, 3.0], base=base), [2, 2], "F32")
array([4. , 4.5, 0. , 6. ], dtype=float32)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations.dare import dare_key
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
from modelyard.derivations.operands import BLOCK_ELEMENTS, Floats, Operands, binary32, check_density
from modelyard.derivations.philox import draw_words
from modelyard.derivations.ties import Trim, drop_trimmed, find_trim
from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Tally", "apply_dare_2", "apply_ties_2"]

_NOTHING = Trim(np.uint32(0x7FFFFFFF), 0)  # above every magnitude


@dataclass(frozen=True)
class Tally:
    """How the weighted changes become one.

    Attributes:
        elect: Only models whose change has the sign of the weighted sum count.
        normalize: Divide by the sum of the weights of those that count.
        scale: What the result is multiplied by before it is added to the base (mergekit's `lambda`); rounded to binary32.
    """

    elect: bool = True
    normalize: bool = True
    scale: float = 1.0


def apply_ties_2(
    operands: Operands,
    kept: Sequence[int],
    to: str,
    *,
    tally: Tally | None = None,
    block_elements: int = BLOCK_ELEMENTS,
    threads: int = 1,
) -> Array:
    """`ties/2` on a whole tensor in memory; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        operands: The models, their weights and their base.
        kept: How many changes of each model are kept, from 0 to all: its largest, of equal ones the first.
        to: The result's dtype.
        tally: Elects always; whether it normalizes, and the scale.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the elements.

    Raises:
        InputError: `bad_number`, `unsupported_dtype`, `nan_result`, `flush_to_zero`.
    """
    if len(kept) != operands.count or not all(0 <= count <= operands.elements for count in kept):
        raise InputError(
            f"{list(kept)[:8]} is not a count from 0 to {operands.elements} for each of {operands.count} models",
            code="bad_number",
        )
    trims = [
        find_trim(operands, model, count, block_elements, threads) if count else _NOTHING
        for model, count in enumerate(kept)
    ]

    def thin(model: int, first: int, change: Floats) -> None:
        drop_trimmed(change, first, trims[model])

    return _merge(operands, to, tally or Tally(), thin, block_elements=block_elements, threads=threads)


def apply_dare_2(
    operands: Operands,
    densities: Sequence[float],
    to: str,
    *,
    seed: int,
    name: str,
    rescale: bool = True,
    tally: Tally | None = None,
    element: int = 0,
    block_elements: int = BLOCK_ELEMENTS,
    threads: int = 1,
) -> Array:
    """`dare/2` on a tensor or a part of one; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        operands: The models, their weights and their base.
        densities: The share of each model's changes that is kept, rounded to binary32; from 2^-32 to 1.
        to: The result's dtype.
        seed: 0 to 2^53 - 1.
        name: The tensor's name.
        rescale: What is kept is divided by the density.
        tally: How the changes become one.
        element: The flat index, in the whole tensor, of the first element given.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the elements.

    Raises:
        InputError: `bad_density`, `bad_seed`, `bad_name`, `bad_number`, `unsupported_dtype`, `nan_result`, `flush_to_zero`.
    """
    if len(densities) != operands.count:
        raise InputError(f"{len(densities)} densities for {operands.count} models", code="bad_density")
    key, shares = dare_key(seed, name), [check_density(density) for density in densities]
    factors = [np.float32(1.0 / float(kept)) if rescale else np.float32(1) for kept in shares]
    highest = [math.ceil(Fraction(float(kept)) * 2**32) - 1 for kept in shares]

    def thin(model: int, first: int, change: Floats) -> None:
        np.multiply(change, factors[model], out=change)
        if highest[model] == 2**32 - 1:
            return  # every word is kept: none need be drawn
        words = draw_words(key, element + first, element + first + change.size, model)
        np.copyto(change, np.float32(0), where=words > np.uint32(highest[model]))

    return _merge(operands, to, tally or Tally(normalize=False), thin, block_elements=block_elements, threads=threads)


def _merge(
    operands: Operands,
    to: str,
    tally: Tally,
    thin: Callable[[int, int, Floats], None],
    *,
    block_elements: int,
    threads: int,
) -> Array:
    """The base plus what `thin(model, first, change)`, which works in place, leaves of the changes, weighted and elected."""
    scale = binary32(tally.scale, "the scale")
    out = np.empty(operands.elements, storage(to))

    def work(start: int, end: int) -> None:
        check_arithmetic()
        workspace = Workspace(min(block_elements, end - start))
        changes = np.empty((operands.count, workspace.elements), np.float32)
        with arithmetic():
            for first in range(start, end, workspace.elements):
                last = min(first + workspace.elements, end)
                part = changes[:, : last - first]
                values = workspace.values[: last - first]
                operands.widen_base(first, last, values)
                for model, (weight, change) in enumerate(zip(operands.weights, part, strict=True)):
                    operands.difference(model, first, last, values, change)
                    thin(model, first, change)
                    np.multiply(change, weight, out=change)
                sums = _tally_block(operands, part, tally, workspace)
                np.multiply(sums, scale, out=sums)
                np.add(values, sums, out=values)
                check_range(values, to)
                narrow(values, to, out[first:last], workspace)

    share(operands.elements, threads, work)
    return out.reshape(operands.shape)


def _tally_block(operands: Operands, changes: Floats, tally: Tally, workspace: Workspace) -> Floats:
    """The changes that count, summed and perhaps divided; lies in the workspace's `sums`."""
    sums, divisors, _ = workspace.part(changes.shape[1])
    negative = None
    if tally.elect:
        sums[:] = 0
        for change in changes:
            check_range(change, "F32")  # zero times infinity has no sign
            np.add(sums, change, out=sums)
        check_range(sums, "F32")  # infinities of both signs elect nothing
        negative = sums < 0
    sums[:] = 0
    divisors[:] = 0
    for weight, change in zip(operands.weights, changes, strict=True):
        if negative is None:
            np.add(divisors, weight, out=divisors)
        else:
            disagrees = ((change < 0) != negative) | (change == 0)
            np.copyto(change, np.float32(0), where=disagrees)
            np.add(divisors, weight, out=divisors, where=~disagrees)
        np.add(sums, change, out=sums)
    if tally.normalize:
        np.copyto(divisors, np.float32(1), where=divisors == 0)
        np.divide(sums, divisors, out=sums)
    return sums
