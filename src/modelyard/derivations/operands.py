"""The models that a merge reads: tensors of one shape, each in its own dtype, and a weight for each.

Checks that they belong together before anything is computed, and hands out blocks of them as binary32. Elements are
numbered by their flat index in row-major order; shapes do not matter beyond being equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelyard.derivations.numbers import Array, storage, widen
from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BLOCK_ELEMENTS", "LEAST_DENSITY", "Floats", "Operands", "binary32", "check_density"]

BLOCK_ELEMENTS = 1 << 16
"""How many elements are worked on at once, unless told otherwise: binary32 arrays of 256 KiB."""

LEAST_DENSITY = 2.0**-32

Floats = NDArray[np.float32]


def binary32(value: float | np.float32, what: str) -> np.float32:
    """The binary32 nearest to `value`; `InputError` (`bad_number`) when that is not finite."""
    with np.errstate(all="ignore"):
        rounded = np.float32(value)
    if not np.isfinite(rounded):
        raise InputError(f"{what} {value!r} is not a finite binary32 number", code="bad_number")
    return rounded


def check_density(density: float) -> np.float32:
    """A density as binary32; `InputError` (`bad_density`) outside 2^-32 to 1."""
    if not LEAST_DENSITY <= density <= 1:
        raise InputError(f"a density is above 0 (at least 2^-32) and at most 1, not {density!r}", code="bad_density")
    return np.float32(density)


class Operands:
    """Tensors of one shape with their dtypes and weights, and perhaps a base they are compared with.

    Args:
        sources: One tensor for each model, in the numpy type that `STORAGE` gives for its dtype.
        from_: Their dtypes.
        weights: Their weights; rounded to binary32.
        base: The tensor of the common base, if there is one.
        base_dtype: Its dtype.

    Raises:
        InputError: `bad_shape`, `bad_number` (a weight that is not finite) or `unsupported_dtype`.

    >>> Operands([np.ones((2, 3), np.float32)], ["F32"], [0.5]).elements
    6
    """

    def __init__(
        self,
        sources: Sequence[Array],
        from_: Sequence[str],
        weights: Sequence[float | np.float32],
        *,
        base: Array | None = None,
        base_dtype: str = "F32",
    ) -> None:
        if not sources or not len(sources) == len(from_) == len(weights):
            raise InputError(
                f"{len(sources)} models with {len(from_)} dtypes and {len(weights)} weights: one of each for every model",
                code="bad_shape",
            )
        self.shape = sources[0].shape if base is None else base.shape
        self.dtypes, self.base_dtype = list(from_), base_dtype
        self.weights = [binary32(weight, "the weight") for weight in weights]
        self._sources = [self._flat(source, dtype) for source, dtype in zip(sources, from_, strict=True)]
        self._base = None if base is None else self._flat(base, base_dtype)
        self.count = len(self._sources)
        self.elements = self._sources[0].size

    def _flat(self, tensor: Array, dtype: str) -> Array:
        if tensor.dtype != storage(dtype):
            raise InputError(
                f"{dtype} elements are kept as {storage(dtype)}, not {tensor.dtype}", code="unsupported_dtype"
            )
        if tensor.shape != self.shape:
            raise InputError(f"tensors of shapes {self.shape} and {tensor.shape} do not merge", code="bad_shape")
        return np.ascontiguousarray(tensor).reshape(-1)

    def widen_base(self, start: int, end: int, out: Floats) -> None:
        """Elements `start` to `end` of the base as binary32."""
        if self._base is None:
            raise InputError("there is no base to compare with", code="bad_shape")
        widen(self._base[start:end], self.base_dtype, out)

    def widen_source(self, model: int, start: int, end: int, out: Floats) -> None:
        """Elements `start` to `end` of a model as binary32."""
        widen(self._sources[model][start:end], self.dtypes[model], out)

    def difference(self, model: int, start: int, end: int, base: Floats, out: Floats) -> None:
        """A model less the base, elements `start` to `end`: one rounded subtraction; `base` is widened already.

        Raises:
            InputError: `nan_result`. A NaN is refused here because what is dropped later would hide it.
        """
        self.widen_source(model, start, end, out)
        np.subtract(out, base, out=out)
        if out.size and np.isnan(np.max(out)):
            raise InputError(
                f"model {model} less the base holds a NaN, and no exact operation gives one", code="nan_result"
            )
