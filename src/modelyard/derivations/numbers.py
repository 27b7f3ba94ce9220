"""The number formats of the exact operations, and their conversions to and from binary32.

bfloat16 has no numpy type: its elements are kept as `uint16` bit patterns. Widening is exact. Narrowing rounds to nearest,
ties to even, overflow to infinity, subnormals kept: what the format's definition says, in integer arithmetic for bfloat16.

>>> out = np.empty(2, np.uint16)
>>> narrow(np.array([1.0, 3.3961775e38], np.float32), "BF16", out, Workspace(2))
>>> [hex(bits) for bits in out]
['0x3f80', '0x7f80']
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import InputError, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "STORAGE",
    "Array",
    "Workspace",
    "arithmetic",
    "check_arithmetic",
    "check_range",
    "narrow",
    "share",
    "storage",
    "widen",
]

Array = NDArray[Any]

STORAGE: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""The dtypes that exact operations take, by their safetensors name, and the numpy type their elements are kept in."""

# The least binary32 magnitude that rounds to infinity: halfway between the largest finite value and the next power.
_OVERFLOW = {"F32": float("inf"), "F16": 65520.0, "BF16": float.fromhex("0x1.ffp+127")}

# Elements in numpy's iteration buffer while exact operations run. Whenever rows are shorter than that buffer, numpy (2.4, measured)
# copies broadcast operands into it first, which makes the products of a low-rank update three times slower.
_BUFFER = 512

_ONES = np.ones(16, np.float32)
_HALVES = np.full(16, 0.5, np.float32)
_LEAST_NORMAL = np.full(16, 2.0**-126, np.float32)
_SUBNORMAL = np.full(16, 2.0**-140, np.float32)


class Workspace:
    """Scratch memory for blocks of up to `elements` elements (12 bytes each); one per thread, used again and again."""

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self.sums = np.empty(elements, np.float32)
        self.terms = np.empty(elements, np.float32)
        self.values = np.empty(elements, np.float32)

    def part(self, elements: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The first `elements` of `sums`, `terms` and `values`."""
        return self.sums[:elements], self.terms[:elements], self.values[:elements]


@contextmanager
def arithmetic() -> Iterator[None]:
    """Numpy set up for exact operations, in this thread and block: nothing warns, and rows are not copied into buffers."""
    with np.errstate(all="ignore"):
        before = np.setbufsize(_BUFFER)
        try:
            yield
        finally:
            np.setbufsize(before)


def share(count: int, threads: int, work: Callable[[int, int], object]) -> None:
    """Call `work(start, end)` for consecutive parts of `range(count)`, one for each thread; none when it is empty."""
    part = -(-count // max(threads, 1))
    parts = [(start, min(start + part, count)) for start in range(0, count, part or 1)]
    if len(parts) < 2:
        for start, end in parts:
            work(start, end)
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(work, *zip(*parts, strict=True)))


def storage(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds elements of `dtype`; `InputError` (`unsupported_dtype`) for any other than F32, F16, BF16."""
    found = STORAGE.get(dtype)
    if found is None:
        raise InputError(f"exact operations take F32, F16 and BF16, not {dtype}", code="unsupported_dtype")
    return found


def widen(raw: Array, dtype: str, out: NDArray[np.float32]) -> None:
    """Write the elements of `raw` to `out` as binary32, exactly."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, raw)
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, raw)


def narrow(values: NDArray[np.float32], dtype: str, out: Array, workspace: Workspace) -> None:
    """Round binary32 `values` (which are overwritten) to `dtype`, nearest even, into `out`. They hold no NaN."""
    if dtype != "BF16":
        np.copyto(out, values, casting="same_kind")
        return
    bits = values.view(np.uint32)
    odd = workspace.terms[: values.size].view(np.uint32).reshape(values.shape)
    np.right_shift(bits, 16, out=odd)
    np.bitwise_and(odd, 1, out=odd)
    np.add(odd, 0x7FFF, out=odd)
    np.add(bits, odd, out=bits)
    np.right_shift(bits, 16, out=bits)
    np.copyto(out, bits, casting="unsafe")


def check_range(values: NDArray[np.float32], dtype: str) -> bool:
    """Whether rounding `values` to `dtype` gives an infinity anywhere.

    Raises:
        InputError: `nan_result`, when one of them is a NaN: which NaN an operation gives differs between processors.
    """
    if values.size == 0:
        return False
    highest, lowest = float(np.max(values)), float(np.min(values))  # both hand a NaN on
    if highest != highest or lowest != lowest:  # noqa: PLR0124  # true of a NaN only
        raise InputError("the result holds a NaN, and no exact operation gives one", code="nan_result")
    return max(highest, -lowest) >= _OVERFLOW[dtype]


def check_arithmetic() -> None:
    """Check that this thread neither flushes subnormal results to zero nor reads subnormal operands as zero.

    Raises:
        InputError: `flush_to_zero`. The flag belongs to a thread; `torch.set_flush_denormal(True)` sets it.
    """
    if np.little_endian is False:
        raise InternalError("exact operations read little-endian tensors in place, and this machine is big-endian")
    kept = np.multiply(_LEAST_NORMAL, _HALVES).all() and np.multiply(_SUBNORMAL, _ONES).all()
    if not kept:
        raise InputError(
            "this thread flushes subnormal numbers to zero, so exact operations would not be exact",
            code="flush_to_zero",
            hint="call torch.set_flush_denormal(False)",
        )
