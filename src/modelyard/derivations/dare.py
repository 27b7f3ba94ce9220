"""`dare/1`: each model's change thinned at random and rescaled, then summed onto the base in model order.

Per element e, in binary32::

    acc = +0
    for i in 0 .. m-1:
        d = x[i] - base
        if word(i, e) < T:   acc = acc + (w[i] * (r * d))
    out = round_to_dtype(base + acc)

`T` is density * 2^32, rounded up, `r` is 1 / density, and the words are Philox4x32-10's under a key that follows from the
seed and the tensor's name. So the same elements are dropped on every machine, in whatever pieces a tensor is computed.

>>> base, model = np.zeros(8, np.float32), np.ones(8, np.float32)
>>> apply_dare(Operands([model], ["F32"], [1.0], base=base), 0.5, "F32", seed=1, name="w")
array([2., 2., 2., 0., 2., 2., 0., 2.], dtype=float32)
"""

from __future__ import annotations

import math
from fractions import Fraction

import blake3
import numpy as np

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
from modelyard.derivations.operands import BLOCK_ELEMENTS, Operands, check_density
from modelyard.derivations.philox import draw_words
from modelyard.errors import InputError

__all__ = ["apply_dare", "dare_key"]

_MOST_SEED = 2**53 - 1
_ALL = np.uint32(2**32 - 1)


def dare_key(seed: int, name: str) -> tuple[int, int]:
    """The key for one tensor: the first 8 bytes of BLAKE3 of the seed (8 bytes, little-endian) and the name (UTF-8).

    Raises:
        InputError: `bad_seed` outside 0 to 2^53 - 1, `bad_name` for a name that has no UTF-8.
    """
    if not 0 <= seed <= _MOST_SEED:
        raise InputError(f"a seed is from 0 to 2^53 - 1, not {seed}", code="bad_seed")
    try:
        spelled = name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a tensor's name cannot be encoded as UTF-8: {error.reason}", code="bad_name") from error
    digest = blake3.blake3(seed.to_bytes(8, "little") + spelled).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def apply_dare(
    operands: Operands,
    density: float,
    to: str,
    *,
    seed: int,
    name: str,
    element: int = 0,
    block_elements: int = BLOCK_ELEMENTS,
    threads: int = 1,
) -> Array:
    """`dare/1` on a tensor or a part of one; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        operands: The models, their weights and their base.
        density: The share of the changes that is kept, rounded to binary32; from 2^-32 to 1.
        to: The result's dtype.
        seed: 0 to 2^53 - 1.
        name: The tensor's name.
        element: The flat index, in the whole tensor, of the first element given.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the elements.

    Raises:
        InputError: `bad_density`, `bad_seed`, `bad_name`, `unsupported_dtype`, `nan_result`, `flush_to_zero`.
    """
    key, kept = dare_key(seed, name), check_density(density)
    rescale = np.float32(1.0 / float(kept))
    highest = np.uint32(math.ceil(Fraction(float(kept)) * 2**32) - 1)
    out = np.empty(operands.elements, storage(to))

    def work(start: int, end: int) -> None:
        check_arithmetic()
        workspace = Workspace(min(block_elements, end - start))
        with arithmetic():
            for first in range(start, end, workspace.elements):
                last = min(first + workspace.elements, end)
                sums, terms, values = workspace.part(last - first)
                operands.widen_base(first, last, values)
                sums[:] = 0
                for model, weight in enumerate(operands.weights):
                    operands.difference(model, first, last, values, terms)
                    np.multiply(terms, rescale, out=terms)
                    np.multiply(terms, weight, out=terms)
                    if highest != _ALL:  # else every word is kept, and none need be drawn
                        words = draw_words(key, element + first, element + last, model)
                        # A dropped term is +0, which changes no sum here: one that starts at +0 is never -0.
                        np.copyto(terms, np.float32(0), where=words > highest)
                    np.add(sums, terms, out=sums)
                np.add(values, sums, out=values)
                check_range(values, to)
                narrow(values, to, out[first:last], workspace)

    share(operands.elements, threads, work)
    return out.reshape(operands.shape)
