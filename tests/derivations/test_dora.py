"""`dora/1` against its definition, in pieces, and what it refuses; its pinned bits are in `test_golden.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations.derivation_cases import GOLDEN, digest, inputs, numbers
from modelyard.derivations import (
    STORAGE,
    Dora,
    Workspace,
    apply_cast,
    apply_dora,
    dora_params,
    lora_params,
    lora_scale,
    replay,
)
from modelyard.errors import InputError, IntegrityError

F = np.float32


def by_definition(base: Any, a: Any, b: Any, m: Any, scale: np.float32) -> Any:
    """`dora/1` on a float32 base, one scalar operation after another, as its definition reads."""
    out = np.empty_like(base)
    for i in range(base.shape[0]):
        values, q = [], 0.0
        for j in range(base.shape[1]):
            acc = F(0)
            for k in range(a.shape[0]):
                acc = F(acc + F(F(scale * b[i, k]) * a[k, j]))
            values.append(F(base[i, j] + acc))
            q = q + float(values[-1]) * float(values[-1])
        f = F(m[i] / F(math.sqrt(q)))
        out[i] = [F(f * value) for value in values]
    return out


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000), st.sampled_from([1, 3, 7, 64]))
@settings(deadline=None, max_examples=40)
def test_equals_its_definition(rows: int, rank: int, columns: int, seed: int, block: int) -> None:
    """Vectors and blocks, whether a row fits one or not, give what the definition's scalar loop gives, bit for bit."""
    base, m = numbers(f"{seed}W", rows, columns), numbers(f"{seed}M", rows)
    a, b, scale = numbers(f"{seed}A", rank, columns), numbers(f"{seed}B", rows, rank), lora_scale(3, rank)
    wanted = by_definition(base, a, b, m, scale)
    assert apply_dora(base, "F32", a, b, m, scale=scale, block_elements=block).tobytes() == wanted.tobytes()
    turned = np.ascontiguousarray(base.T)
    made = apply_dora(turned, "F32", a, b, m, scale=scale, transposed=True, block_elements=block, threads=2)
    assert np.ascontiguousarray(made.T).tobytes() == wanted.tobytes()


def test_sum_of_squares_is_in_order() -> None:
    """A large square first and small ones after it: each is lost on its own, as a sum in order loses it."""
    base = np.full((1, 4097), F(2.0**-13))
    base[0, 0] = F(2.0**14)
    a, b = np.zeros((1, 4097), F), np.zeros((1, 1), F)
    in_order = apply_dora(base, "F32", a, b, np.ones(1, F), scale=F(1))
    assert in_order[0, 0] == F(1)
    turned = apply_dora(base[:, ::-1].copy(), "F32", a, b, np.ones(1, F), scale=F(1))
    assert turned[0, -1] == F(F(1) / F(math.sqrt(2.0**28 + 4096 * 2.0**-26))) * F(2.0**14)


def test_rows_may_come_in_any_order() -> None:
    """Stored (out, in), rows applied one by one, last first, are the whole's."""
    base, a, b = inputs("BF16")
    dora = Dora(a, b, numbers("M", 40), lora_scale(7, 5), "BF16")
    out = np.empty_like(base)
    for row in reversed(range(len(base))):
        dora.apply(base[row : row + 1], out[row : row + 1], row, Workspace(16))
    assert digest(out) == GOLDEN["dora/1 BF16"]


def test_transposed_is_measured_in_parts_and_before_it_is_applied() -> None:
    """Stored (in, out), rows are measured in parts of any size, in order; applied before that is a typed error."""
    base, a, b = inputs("F16", transposed=True)
    dora = Dora(a, b, numbers("M", 40), lora_scale(7, 5), "F16", transposed=True)
    out, workspace = np.empty_like(base), Workspace(64)
    for start, end in ((0, 1), (1, 30)):
        dora.measure(base[start:end], workspace)
    with pytest.raises(InputError, match="measured"):
        dora.apply(base, out, 0, workspace)
    dora.measure(base[30:], workspace)
    for row in (20, 0, 40):
        dora.apply(base[row : row + 20], out[row : row + 20], row, workspace)
    assert digest(out) == GOLDEN["dora/1 F16 transposed"]


def test_a_row_of_zeros_is_refused() -> None:
    """A norm of zero gives a NaN, which no exact operation does."""
    zeros = np.zeros((2, 3), F)
    with pytest.raises(InputError) as caught:
        apply_dora(zeros, "F32", np.ones((1, 3), F), np.zeros((2, 1), F), np.ones(2, F), scale=F(1))
    assert caught.value.code == "nan_result"


def test_an_infinite_norm_is_reported() -> None:
    """A norm beyond binary32 would make a row of zeros; the caller is told."""
    base, out = np.full((1, 64), F(1e38)), np.empty((1, 64), F)
    dora = Dora(np.zeros((1, 64), F), np.zeros((1, 1), F), np.ones(1, F), F(1), "F32")
    assert dora.apply(base, out, 0, Workspace(16))


@pytest.mark.parametrize("shape", [(39,), (40, 1), ()])
def test_magnitude_that_does_not_fit(shape: tuple[int, ...]) -> None:
    """A magnitude that is not one number a row is a typed error."""
    _, a, b = inputs("F32")
    with pytest.raises(InputError) as caught:
        Dora(a, b, np.ones(shape, F), F(1), "F32")
    assert caught.value.code == "bad_shape"


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("transposed", [False, True])
def test_derived_in_pieces(dtype: str, transposed: bool) -> None:
    """A derived segment of rows is the whole's rows; of a transposed weight only the whole is a segment."""
    base, a, b = inputs(dtype, transposed=transposed)
    m = apply_cast(numbers("M", 40), "F32", "BF16")
    wide = apply_cast(m, "BF16", "F32")
    whole = apply_dora(base, dtype, a, b, wide, scale=lora_scale(7, 5), transposed=transposed)
    for row, rows in [(0, len(base))] if transposed else [(0, 17), (17, len(base) - 17)]:
        part = base[row : row + rows]
        params = dora_params(
            lora_params(
                dtype,
                part.shape,
                rank=5,
                scale=lora_scale(7, 5),
                a_dtype="F32",
                b_dtype="F32",
                row=row,
                rows=len(base),
                transposed=transposed,
            ),
            "BF16",
        )
        roles = {"w": part.tobytes(), "a": a.tobytes(), "b": b.tobytes(), "m": m.tobytes()}
        assert replay(params, roles, size=part.nbytes, threads=2) == whole[row : row + rows].tobytes()
        with pytest.raises(IntegrityError):
            replay(params, roles | {"m": m.tobytes()[2:]}, size=part.nbytes)
        with pytest.raises(IntegrityError):
            replay(
                params | {"shape": [rows - 1, part.shape[1]]},
                roles | {"w": part[1:].tobytes()},
                size=part[1:].nbytes * transposed or 1,
            )


def test_lora_of_one_expert_of_several() -> None:
    """`b_first` and `b_step` take one expert's columns out of a buffer that has all; nonsense in them is refused."""
    base, a, b = inputs("BF16")
    several = np.repeat(b, 3, axis=1) * np.array([1, 2, 3] * 5, F)
    params = lora_params(
        "BF16", base.shape, rank=5, scale=lora_scale(7, 5), a_dtype="F32", b_dtype="F32", b_columns=range(0, 15, 3)
    )
    roles = {"w": base.tobytes(), "a": a.tobytes(), "b": several.tobytes()}
    made = replay(params, roles, size=base.nbytes)
    assert digest(np.frombuffer(made, np.uint16)) == GOLDEN["lora/1 BF16"]
    for wrong in ({"b_first": 3}, {"b_first": -1}, {"b_step": 0}, {"b_step": 2}, {"b_step": 2**53}, {"b_step": "3"}):
        with pytest.raises(IntegrityError):
            replay(params | wrong, roles, size=base.nbytes)
