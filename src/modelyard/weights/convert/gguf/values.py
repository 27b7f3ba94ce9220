"""What llama.cpp keeps in another form, done and undone: rows of queries and keys, norms plus one, transposed matrices; and number types.

Rows are moved as the bits that they are. Blocks of Q8_0 and Q4_0 are made and read by `gguf.quants`. Knows arrays; no names and no files.

>>> rows = np.arange(8, dtype=np.float32).reshape(8, 1)
>>> apply_change(rows, "queries", heads=1).ravel()
array([0., 4., 1., 5., 2., 6., 3., 7.], dtype=float32)
>>> undo_change(apply_change(rows, "queries", heads=1), "queries", heads=1).ravel()
array([0., 1., 2., 3., 4., 5., 6., 7.], dtype=float32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import STORAGE, Workspace
from modelyard.derivations.cast import cast_block
from modelyard.derivations.numbers import widen
from modelyard.errors import InputError, ModelError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelyard.derivations.numbers import Array

__all__ = ["apply_change", "from_blocks", "recast", "to_blocks", "undo_change", "widened"]

_BLOCK = 1 << 16
_ONE = np.float32(1.0)


def apply_change(values: Array, change: str | None, heads: int = 0) -> Array:
    """`values` in the file's form; `plus one` needs float32."""
    if change == "plus one":
        return np.asarray(values + _ONE)
    if change == "transposed":
        return np.ascontiguousarray(values.T)
    if change in {"queries", "keys"}:
        return _reordered(values, (heads, 2, -1))
    return values


def undo_change(values: Array, change: str | None, heads: int = 0) -> Array:
    """`values` of the file in transformers' form."""
    if change == "plus one":
        return np.asarray(values - _ONE)
    if change == "transposed":
        return np.ascontiguousarray(values.T)
    if change in {"queries", "keys"}:
        return _reordered(values, (heads, -1, 2))
    return values


def _reordered(values: Array, parts: tuple[int, int, int]) -> Array:
    """Rows of each head with its two halves (or its pairs) interleaved."""
    heads, first, second = parts
    rest = values.shape[1:]
    width = values.shape[0] // heads
    if first < 0:
        first = width // second
    else:
        second = width // first
    split = values.reshape(heads, first, second, *rest)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def widened(raw: Array, dtype: str) -> NDArray[np.float32]:
    """Elements of F32, F16 or BF16 as float32, exactly."""
    made = np.empty(raw.shape, np.float32)
    widen(raw, dtype, made)
    return made


def recast(raw: Array, from_: str, to: str, name: str) -> Array:
    """`cast/1` of a flat array of any length; `name` is the tensor's, for the message.

    Raises:
        ModelError: `nan_result` or `infinite_result`.
    """
    if from_ == to:
        return raw
    flat = raw.reshape(-1)
    out = np.empty(flat.size, STORAGE[to])
    workspace = Workspace(min(_BLOCK, flat.size))
    for start in range(0, flat.size, _BLOCK):
        part = np.s_[start : start + _BLOCK]
        try:
            infinite = cast_block(flat[part], from_, out[part], to, workspace)
        except InputError as error:
            raise ModelError(f"`{show_name(name)}` cannot be converted: {error.message}", code=error.code) from error
        if infinite:
            raise ModelError(
                f"`{show_name(name)}` cannot be converted: it holds numbers that {to} has not",
                code="infinite_result",
                hint="bfloat16 and float32 reach 3.4e38, float16 only 65504",
            )
    return out.reshape(raw.shape)


def to_blocks(rows: NDArray[np.float32], kind: str, name: str) -> NDArray[np.uint8]:
    """Rows in blocks of Q8_0 or Q4_0, as bytes.

    Raises:
        ModelError: `nan_result` or `infinite_result`: a block's scale would be no number.
    """
    from gguf import GGMLQuantizationType, quants

    if not np.isfinite(rows).all():
        code = "nan_result" if np.isnan(rows).any() else "infinite_result"
        raise ModelError(f"`{show_name(name)}` cannot be converted: it holds numbers that are not finite", code=code)
    made: NDArray[np.uint8] = quants.quantize(rows, GGMLQuantizationType[kind])
    return made


def from_blocks(data: NDArray[np.uint8], kind: str, name: str) -> NDArray[np.float32]:
    """Rows of bytes, in blocks of any type that the `gguf` package reads, as float32.

    Raises:
        ModelError: `unsupported_dtype`.
    """
    from gguf import GGMLQuantizationType, quants

    read: Any = quants.dequantize
    try:
        made: NDArray[np.float32] = read(data, GGMLQuantizationType[kind])
    except NotImplementedError:
        raise ModelError(
            f"tensor `{show_name(name)}` is {kind}, which the gguf package does not read",
            code="unsupported_dtype",
            hint="make it F16 or Q8_0 first, by llama.cpp's llama-quantize --allow-requantize",
        ) from None
    return np.ascontiguousarray(made, np.float32)
