"""One derived segment computed again: its params and its inputs' bytes in, its bytes out.

Params are hostile until checked: every length is compared with what the shape says before anything is allocated, so a pack
cannot make a reader take more memory than a few times the bytes it was given. Whether the result is the segment, its digest
says; that is the caller's to check. This module knows no segments, packs or digests.

>>> replay(cast_params("F32", "BF16"), {"x": np.ones(2, np.float32).tobytes()}, size=4).hex()
'803f803f'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelyard.derivations.cast import apply_cast
from modelyard.derivations.dare import apply_dare
from modelyard.derivations.dora import apply_dora
from modelyard.derivations.election import Tally, apply_dare_2, apply_ties_2
from modelyard.derivations.linear import apply_linear
from modelyard.derivations.lora import apply_lora
from modelyard.derivations.numbers import STORAGE, Array
from modelyard.derivations.operands import Operands
from modelyard.derivations.params import (
    Params,
    cast_params,
    dare_2_params,
    dare_params,
    dora_params,
    linear_params,
    lora_params,
    ties_2_params,
    ties_params,
)
from modelyard.derivations.ties import apply_ties
from modelyard.errors import IntegrityError

__all__ = [
    "MAX_SEGMENT",
    "cast_params",
    "dare_2_params",
    "dare_params",
    "dora_params",
    "linear_params",
    "lora_params",
    "replay",
    "ties_2_params",
    "ties_params",
]

MAX_SEGMENT = 64 << 20
"""The most bytes that a segment has."""

_MOST_EXPERTS = 1 << 16

Roles = Mapping[str, bytes]


def replay(params: Mapping[str, Any], roles: Roles, *, size: int, threads: int = 1) -> bytes:
    """Compute a derived segment.

    Args:
        params: As the pack's index holds them: `operation`, `dtype` and what the operation needs; `roles` is ignored here.
        roles: The bytes of each named buffer, joined from the inputs as `params["roles"]` says.
        size: How many bytes the segment has.
        threads: How many threads share the work; cannot change a bit.

    Raises:
        IntegrityError: `unknown_operation`, or `bad_derivation`: the params contradict themselves, the buffers or `size`.
        InputError: `nan_result` or `flush_to_zero`, as the operation itself.
    """
    read = Params(params)
    compute = _OPERATIONS.get(read.operation)
    if compute is None:
        raise IntegrityError(
            f"a segment is derived by {read.operation[:40]!r}, which this program does not know",
            code="unknown_operation",
            hint="a newer modelyard wrote it: upgrade with `pip install -U modelyard`",
        )
    if not 0 < size <= MAX_SEGMENT:
        raise read.refuse(f"a segment of {size} bytes")
    return compute(read, roles, size, threads)


def _take(read: Params, roles: Roles, *names: str) -> list[bytes]:
    """The buffers of exactly these roles."""
    if roles.keys() != set(names):
        raise read.refuse(f"its buffers are not {', '.join(names)}")
    return [roles[name] for name in names]


def _view(read: Params, role: str, data: bytes, dtype: str, *shape: int) -> Array:
    """A buffer as an array of this shape, without a copy."""
    count = 1
    for length in shape:
        count *= length
    kept = STORAGE[dtype]
    if len(data) != count * kept.itemsize:
        raise read.refuse(f"`{role}` has {len(data)} bytes, and its shape needs {count * kept.itemsize}")
    return np.frombuffer(data, kept).reshape(shape)


def _check_size(read: Params, dtype: str, elements: int, size: int) -> None:
    if elements * STORAGE[dtype].itemsize != size:
        raise read.refuse(f"{elements} elements of {dtype} are not the segment's {size} bytes")


@dataclass(frozen=True)
class _Factors:
    """What `lora/1` and `dora/1` read alike: a segment's rows of a weight, and the factors' parts that make them."""

    dtype: str
    weight: Array
    a: Array
    b: Array
    scale: np.float32
    transposed: bool
    row: int
    all_rows: int


def _read_factors(read: Params, roles: Roles, size: int, *others: str) -> _Factors:
    dtype, (rows, columns) = read.dtype(), read.shape()
    _check_size(read, dtype, rows * columns, size)
    all_rows = read.integer("rows", rows)
    row = read.integer("row", 0, all_rows - rows)
    rank = read.integer("rank", 1)
    transposed = bool(read.integer("transposed", 0, 1))
    w, a, b, *_ = _take(read, roles, "w", "a", "b", *others)
    weight = _view(read, "w", w, dtype, rows, columns)
    inner, outer = (all_rows, columns) if transposed else (columns, all_rows)
    a_dtype, b_dtype = read.dtype("a_dtype"), read.dtype("b_dtype")
    left = _view(read, "a", a, a_dtype, rank, inner)
    first, step = read.integer_or("b_first", 0, 0, _MOST_EXPERTS), read.integer_or("b_step", 1, 1, _MOST_EXPERTS)
    if first >= step:
        raise read.refuse("`b_first` is not below `b_step`")
    right = _view(read, "b", b, b_dtype, outer, rank * step)[:, first::step]
    if transposed:
        left = left[:, row : row + rows]
    else:
        right = right[row : row + rows]
    # Only the rows at hand are widened: a piece of a large tensor does not pay for all of B again.
    factors = apply_cast(left, a_dtype, "F32"), apply_cast(right, b_dtype, "F32")
    return _Factors(dtype, weight, *factors, read.number("scale"), transposed, row, all_rows)


def _replay_lora(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    given = _read_factors(read, roles, size)
    out = apply_lora(
        given.weight, given.dtype, given.a, given.b, given.scale, transposed=given.transposed, threads=threads
    )
    return out.tobytes()


def _replay_dora(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    given = _read_factors(read, roles, size, "m")
    rows, columns = given.weight.shape
    if given.transposed and rows != given.all_rows:
        raise read.refuse("a part of a weight stored (in, out) has not all that its norms need")
    dtype = read.dtype("m_dtype")
    magnitude = _view(read, "m", roles["m"], dtype, columns if given.transposed else given.all_rows)
    if not given.transposed:
        magnitude = magnitude[given.row : given.row + rows]
    wide = apply_cast(magnitude, dtype, "F32")
    out = apply_dora(
        given.weight,
        given.dtype,
        given.a,
        given.b,
        wide,
        scale=given.scale,
        transposed=given.transposed,
        threads=threads,
    )
    return out.tobytes()


def _replay_cast(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    from_, to = read.dtype("from"), read.dtype()
    elements = size // STORAGE[to].itemsize
    _check_size(read, to, elements, size)
    (x,) = _take(read, roles, "x")
    return apply_cast(_view(read, "x", x, from_, elements), from_, to, threads=threads).tobytes()


def _replay_linear(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    return apply_linear(_read_operands(read, roles, size), read.dtype(), threads=threads).tobytes()


def _replay_ties(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    operands = _read_operands(read, roles, size, with_base=True)
    return apply_ties(operands, float(read.density()), read.dtype(), threads=threads).tobytes()


def _replay_dare(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    operands = _read_operands(read, roles, size, with_base=True)
    made = apply_dare(
        operands,
        float(read.density()),
        read.dtype(),
        seed=read.integer("seed"),
        name=read.name(),
        element=read.integer("element"),
        threads=threads,
    )
    return made.tobytes()


def _replay_ties_2(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    operands = _read_operands(read, roles, size, with_base=True)
    kept = read.integers("kept", operands.count, operands.elements)
    tally = Tally(normalize=read.flag("normalize"), scale=float(read.number("scale")))
    return apply_ties_2(operands, kept, read.dtype(), tally=tally, threads=threads).tobytes()


def _replay_dare_2(read: Params, roles: Roles, size: int, threads: int) -> bytes:
    operands = _read_operands(read, roles, size, with_base=True)
    tally = Tally(read.flag("elect"), read.flag("normalize"), float(read.number("scale")))
    made = apply_dare_2(
        operands,
        read.densities(operands.count),
        read.dtype(),
        seed=read.integer("seed"),
        name=read.name(),
        rescale=read.flag("rescale"),
        tally=tally,
        element=read.integer("element"),
        threads=threads,
    )
    return made.tobytes()


def _read_operands(read: Params, roles: Roles, size: int, *, with_base: bool = False) -> Operands:
    to = read.dtype()
    elements = size // STORAGE[to].itemsize
    _check_size(read, to, elements, size)
    count = read.length("weights")
    from_, weights = read.dtypes("from", count), read.numbers("weights", count)
    if len(roles) != count + with_base:
        raise read.refuse(f"it has {len(roles)} buffers for {count} models")
    names = [f"x{number}" for number in range(count)]
    buffers = _take(read, roles, *names, *(["base"] if with_base else []))
    sources = [_view(read, *given, elements) for given in zip(names, buffers, from_, strict=False)]
    if not with_base:
        return Operands(sources, from_, [float(weight) for weight in weights])
    base_dtype = read.dtype("base_dtype")
    base = _view(read, "base", buffers[-1], base_dtype, elements)
    return Operands(sources, from_, [float(weight) for weight in weights], base=base, base_dtype=base_dtype)


_OPERATIONS: Mapping[str, Callable[[Params, Roles, int, int], bytes]] = {
    "lora/1": _replay_lora,
    "dora/1": _replay_dora,
    "cast/1": _replay_cast,
    "linear/1": _replay_linear,
    "ties/1": _replay_ties,
    "dare/1": _replay_dare,
    "ties/2": _replay_ties_2,
    "dare/2": _replay_dare_2,
}
