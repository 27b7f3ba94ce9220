"""What a derived segment says about its operation: built from values, read back with nothing taken on trust.

Params are plain JSON of strings, integers, lists and objects (`docs/design/store-format.md`, "Derived segments"); numbers
that are binary32 are the 8 hex digits of their bits, so reading them back loses nothing. They come out of a pack that
anybody may have written, so `Params` checks each one's type and range before it is used. This module computes nothing.

>>> lora_params("BF16", (2, 3), rank=4, scale=2.0, a_dtype="F32", b_dtype="F32")["scale"]
'40000000'
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations.numbers import STORAGE
from modelyard.derivations.operands import binary32, check_density
from modelyard.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelyard.derivations.election import Tally

__all__ = [
    "Params",
    "binary32_text",
    "cast_params",
    "dare_2_params",
    "dare_params",
    "dora_params",
    "linear_params",
    "lora_params",
    "ties_2_params",
    "ties_params",
]

_LARGEST = 2**53 - 1
_BITS = re.compile(r"[0-9a-f]{8}")


def binary32_text(value: float | np.float32) -> str:
    """The 8 hex digits of the binary32 nearest to `value`.

    >>> binary32_text(1.0), binary32_text(-0.5)
    ('3f800000', 'bf000000')

    Raises:
        InputError: `bad_number`, when that is not finite.
    """
    return f"{int(binary32(value, 'a parameter').view(np.uint32)):08x}"


def lora_params(
    dtype: str,
    shape: tuple[int, int],
    *,
    rank: int,
    scale: float | np.float32,
    a_dtype: str,
    b_dtype: str,
    row: int = 0,
    rows: int | None = None,
    transposed: bool = False,
    b_columns: range | None = None,
) -> dict[str, Any]:
    """Params of `lora/1`, without `roles` (which are `w`, the segment's part of the weight, and all of `a` and `b`).

    Args:
        dtype: Of the weight and the result.
        shape: Rows and columns of this segment, as it lies in the file.
        rank: Of the adapter.
        scale: See `lora_scale`; rounded to binary32, which changes nothing for what that gives.
        a_dtype: What A is stored as, shape (r, in).
        b_dtype: What B is stored as, shape (out, r).
        row: Which row of the tensor this segment starts with.
        rows: How many rows the whole tensor has; this segment's, if not given.
        transposed: The weight is stored (in, out).
        b_columns: Which columns of the buffer `b` make B, where it holds those of several experts; None is all.

    Raises:
        InputError: `bad_number`, for a scale that is not finite.
    """
    made: dict[str, Any] = {
        "operation": "lora/1",
        "dtype": dtype,
        "shape": list(shape),
        "row": row,
        "rows": shape[0] if rows is None else rows,
        "rank": rank,
        "a_dtype": a_dtype,
        "b_dtype": b_dtype,
        "scale": binary32_text(scale),
        "transposed": int(transposed),
    }
    if b_columns is not None and (b_columns.start, b_columns.step) != (0, 1):
        made |= {"b_first": b_columns.start, "b_step": b_columns.step}
    return made


def dora_params(lora: Mapping[str, Any], m_dtype: str) -> dict[str, Any]:
    """Params of `dora/1`, without `roles` (those of `lora/1`, and all of the magnitude as `m`).

    A weight stored (in, out) is one segment, since its norms run through all its rows.

    Args:
        lora: What `lora_params` gives for the same segment.
        m_dtype: What the magnitude is stored as, (out,).
    """
    return {**lora, "operation": "dora/1", "m_dtype": m_dtype}


def cast_params(from_: str, to: str) -> dict[str, Any]:
    """Params of `cast/1`, without `roles` (which is `x`)."""
    return {"operation": "cast/1", "dtype": to, "from": from_}


def linear_params(from_: Sequence[str], weights: Sequence[float | np.float32], to: str) -> dict[str, Any]:
    """Params of `linear/1`, without `roles` (which are `x0`, `x1`, ...).

    Args:
        from_: The models' dtypes.
        weights: One for each, rounded to binary32.
        to: The result's dtype.

    Raises:
        InputError: `bad_number`, for a weight that is not finite.
    """
    return {
        "operation": "linear/1",
        "dtype": to,
        "from": list(from_),
        "weights": [binary32_text(weight) for weight in weights],
    }


def _changes_params(operation: str, linear: dict[str, Any], base_dtype: str, density: float) -> dict[str, Any]:
    kept = binary32_text(float(check_density(density)))
    return linear | {"operation": operation, "base_dtype": base_dtype, "density": kept}


def ties_params(
    from_: Sequence[str], weights: Sequence[float | np.float32], to: str, *, base_dtype: str, density: float
) -> dict[str, Any]:
    """Params of `ties/1`, without `roles` (which are `base`, `x0`, `x1`, ..., each a whole tensor).

    Args:
        from_: The models' dtypes.
        weights: One for each, rounded to binary32.
        to: The result's dtype.
        base_dtype: The base's.
        density: The share of the changes that is kept, rounded to binary32.

    Raises:
        InputError: `bad_number` or `bad_density`.
    """
    return _changes_params("ties/1", linear_params(from_, weights, to), base_dtype, density)


def dare_params(
    from_: Sequence[str],
    weights: Sequence[float | np.float32],
    to: str,
    *,
    base_dtype: str,
    density: float,
    seed: int,
    name: str,
    element: int = 0,
) -> dict[str, Any]:
    """Params of `dare/1`, without `roles` (which are `base`, `x0`, `x1`, ...).

    Args:
        from_: The models' dtypes.
        weights: One for each, rounded to binary32.
        to: The result's dtype.
        base_dtype: The base's.
        density: The share of the changes that is kept, rounded to binary32.
        seed: 0 to 2^53 - 1.
        name: The tensor's name.
        element: The flat index in the tensor of the segment's first element.

    Raises:
        InputError: `bad_number` or `bad_density`.
    """
    made = _changes_params("dare/1", linear_params(from_, weights, to), base_dtype, density)
    return made | {"seed": seed, "name": name, "element": element}


def ties_2_params(
    from_: Sequence[str],
    weights: Sequence[float | np.float32],
    to: str,
    *,
    base_dtype: str,
    kept: Sequence[int],
    tally: Tally,
) -> dict[str, Any]:
    """Params of `ties/2`, without `roles` (which are `base`, `x0`, `x1`, ..., each a whole tensor).

    Args:
        from_: The models' dtypes.
        weights: One for each, rounded to binary32.
        to: The result's dtype.
        base_dtype: The base's.
        kept: How many changes of each model are kept.
        tally: How they become one; elects always.

    Raises:
        InputError: `bad_number`.
    """
    made = linear_params(from_, weights, to) | {"operation": "ties/2", "base_dtype": base_dtype, "kept": list(kept)}
    return made | {"normalize": int(tally.normalize), "scale": binary32_text(tally.scale)}


def dare_2_params(
    from_: Sequence[str],
    weights: Sequence[float | np.float32],
    to: str,
    *,
    base_dtype: str,
    densities: Sequence[float],
    seed: int,
    name: str,
    rescale: bool,
    tally: Tally,
    element: int = 0,
) -> dict[str, Any]:
    """Params of `dare/2`, without `roles` (which are `base`, `x0`, `x1`, ...).

    Args:
        from_: The models' dtypes.
        weights: One for each, rounded to binary32.
        to: The result's dtype.
        base_dtype: The base's.
        densities: The share of each model's changes that is kept, rounded to binary32.
        seed: 0 to 2^53 - 1.
        name: The tensor's name.
        rescale: What is kept is divided by the density.
        tally: How the changes become one.
        element: The flat index in the tensor of the segment's first element.

    Raises:
        InputError: `bad_number` or `bad_density`.
    """
    made = linear_params(from_, weights, to) | {"operation": "dare/2", "base_dtype": base_dtype}
    made["densities"] = [binary32_text(float(check_density(density))) for density in densities]
    made |= {"seed": seed, "name": name, "element": element, "rescale": int(rescale)}
    return made | {
        "elect": int(tally.elect),
        "normalize": int(tally.normalize),
        "scale": binary32_text(tally.scale),
    }


class Params:
    """The params of one derived segment, read value by value.

    Every method raises `IntegrityError` (`bad_derivation`), naming the key, for a value that is missing or not what it says.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self.operation = self.text("operation")

    def refuse(self, why: str) -> IntegrityError:
        """The error for something that makes no sense; the caller raises it."""
        name = str(self._params.get("operation"))[:40] if hasattr(self, "operation") else "a derivation"
        return IntegrityError(f"a derived segment cannot be computed: {name!r}: {why}", code="bad_derivation")

    def text(self, key: str) -> str:
        """A string."""
        value = self._params.get(key)
        if type(value) is not str:
            raise self.refuse(f"`{key}` is not a string")
        return value

    def integer(self, key: str, least: int = 0, most: int = _LARGEST) -> int:
        """An integer from `least` to `most`."""
        return self._integer(self._params.get(key), key, least, most)

    def integer_or(self, key: str, missing: int, least: int = 0, most: int = _LARGEST) -> int:
        """An integer as `integer`; `missing` where the key is not there."""
        return self.integer(key, least, most) if key in self._params else missing

    def _integer(self, value: Any, key: str, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(f"`{key}` is not an integer from {least} to {most}")
        return value

    def length(self, key: str) -> int:
        """How long a list is; at least 1."""
        value = self._params.get(key)
        if not isinstance(value, list | tuple) or not value:
            raise self.refuse(f"`{key}` is not a list")
        return len(value)

    def name(self) -> str:
        """A tensor's name under `name`, which has a spelling in UTF-8."""
        name = self.text("name")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise self.refuse("`name` cannot be encoded as UTF-8")
        return name

    def density(self) -> np.float32:
        """A binary32 from 2^-32 to 1 under `density`."""
        try:
            return check_density(float(self.number("density")))
        except InputError as error:
            raise self.refuse(error.message) from error

    def densities(self, count: int) -> list[float]:
        """A list of `count` such numbers under `densities`."""
        try:
            return [float(check_density(float(number))) for number in self.numbers("densities", count)]
        except InputError as error:
            raise self.refuse(error.message) from error

    def integers(self, key: str, count: int, most: int) -> list[int]:
        """A list of `count` integers from 0 to `most`."""
        return [self._integer(value, key, 0, most) for value in self._list(key, count)]

    def flag(self, key: str) -> bool:
        """0 or 1."""
        return bool(self.integer(key, 0, 1))

    def _list(self, key: str, count: int) -> list[Any]:
        value = self._params.get(key)
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self.refuse(f"`{key}` is not a list of {count}")
        return list(value)

    def shape(self, key: str = "shape") -> tuple[int, int]:
        """Rows and columns, each at least 1."""
        rows, columns = (self._integer(value, key, 1, _LARGEST) for value in self._list(key, 2))
        return rows, columns

    def _dtype(self, value: Any, key: str) -> str:
        if type(value) is not str or value not in STORAGE:
            raise self.refuse(f"`{key}` is not F32, F16 or BF16")
        return value

    def dtype(self, key: str = "dtype") -> str:
        """The name of a dtype that exact operations take."""
        return self._dtype(self._params.get(key), key)

    def dtypes(self, key: str, count: int) -> list[str]:
        """A list of `count` such names."""
        return [self._dtype(value, key) for value in self._list(key, count)]

    def _number(self, value: Any, key: str) -> np.float32:
        if type(value) is not str or not _BITS.fullmatch(value):
            raise self.refuse(f"`{key}` is not the 8 hex digits of a binary32")
        number = np.uint32(int(value, 16)).view(np.float32)
        if not math.isfinite(number):
            raise self.refuse(f"`{key}` is not finite")
        return np.float32(number)

    def number(self, key: str) -> np.float32:
        """A finite binary32."""
        return self._number(self._params.get(key), key)

    def numbers(self, key: str, count: int) -> list[np.float32]:
        """A list of `count` finite binary32."""
        return [self._number(value, key) for value in self._list(key, count)]
