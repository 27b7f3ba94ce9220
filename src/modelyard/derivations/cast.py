"""`cast/1`: a number format's elements in another, each rounded once to nearest, ties to even.

>>> apply_cast(np.array([1.0, 1.00390625], np.float32), "F32", "BF16")
array([16256, 16256], dtype=uint16)
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
    widen,
)
from modelyard.errors import InputError

__all__ = ["apply_cast", "cast_block"]

_BLOCK_ELEMENTS = 1 << 16


def cast_block(source: Array, from_: str, out: Array, to: str, workspace: Workspace) -> bool:
    """`cast/1` of a flat `source` of at most `workspace.elements` elements into `out`.

    Returns:
        Whether a finite or infinite element became infinite: a result that overflowed counts, so does an infinity.

    Raises:
        InputError: `nan_result`, `flush_to_zero` or `unsupported_dtype`.
    """
    storage(from_), storage(to)
    check_arithmetic()
    values = workspace.values[: source.size]
    with arithmetic():
        widen(source, from_, values)
        overflow = check_range(values, to)
        narrow(values, to, out, workspace)
    return overflow


def apply_cast(source: Array, from_: str, to: str, *, block_elements: int = _BLOCK_ELEMENTS, threads: int = 1) -> Array:
    """`cast/1` on a whole tensor in memory, of any shape.

    Args:
        source: Elements of dtype `from_`, in the numpy type that `STORAGE` gives for it.
        from_: F32, F16 or BF16.
        to: F32, F16 or BF16.
        block_elements: How many elements are worked on at once; cannot change a bit.
        threads: How many threads share the elements; cannot change a bit.

    Raises:
        InputError: As `cast_block`; also when `source` is not kept in the right numpy type.
    """
    if source.dtype != storage(from_):
        raise InputError(f"{from_} elements are kept as {storage(from_)}, not {source.dtype}", code="unsupported_dtype")
    flat = np.ascontiguousarray(source).reshape(-1)
    out = np.empty(flat.size, storage(to))

    def work(start: int, end: int) -> None:
        workspace = Workspace(min(block_elements, end - start))
        for first in range(start, end, workspace.elements):
            part = np.s_[first : min(first + workspace.elements, end)]
            cast_block(flat[part], from_, out[part], to, workspace)

    share(flat.size, threads, work)
    return out.reshape(source.shape)
