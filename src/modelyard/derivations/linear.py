"""`linear/1`: a weighted sum of models, in model order.

Per element, in binary32::

    acc = w[0] * x[0]
    for i in 1 .. m-1:   acc = acc + (w[i] * x[i])
    out = round_to_dtype(acc)

>>> one, two = np.array([1, 2], np.float32), np.array([3, 5], np.float32)
>>> apply_linear(Operands([one, two], ["F32", "F32"], [0.5, 0.5]), "F32")
array([2. , 3.5], dtype=float32)
"""

from __future__ import annotations

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
from modelyard.derivations.operands import BLOCK_ELEMENTS, Operands

__all__ = ["apply_linear"]


def apply_linear(operands: Operands, to: str, *, block_elements: int = BLOCK_ELEMENTS, threads: int = 1) -> Array:
    """`linear/1` on whole tensors in memory; neither `block_elements` nor `threads` can change a bit of the result.

    Args:
        operands: The models and their weights; whoever wants these to sum to 1 divides first.
        to: The result's dtype.
        block_elements: How many elements are worked on at once.
        threads: How many threads share the elements.

    Raises:
        InputError: `unsupported_dtype`, `nan_result`, `flush_to_zero`.
    """
    out = np.empty(operands.elements, storage(to))

    def work(start: int, end: int) -> None:
        check_arithmetic()
        workspace = Workspace(min(block_elements, end - start))
        with arithmetic():
            for first in range(start, end, workspace.elements):
                last = min(first + workspace.elements, end)
                _sum_block(operands, first, last, workspace)
                sums = workspace.sums[: last - first]
                check_range(sums, to)
                narrow(sums, to, out[first:last], workspace)

    share(operands.elements, threads, work)
    return out.reshape(operands.shape)


def _sum_block(operands: Operands, start: int, end: int, workspace: Workspace) -> None:
    sums, terms = workspace.sums[: end - start], workspace.terms[: end - start]
    operands.widen_source(0, start, end, terms)
    np.multiply(terms, operands.weights[0], out=sums)
    for model in range(1, operands.count):
        operands.widen_source(model, start, end, terms)
        np.multiply(terms, operands.weights[model], out=terms)
        np.add(sums, terms, out=sums)
