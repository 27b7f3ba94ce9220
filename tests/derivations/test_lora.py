"""`lora/1` against its definition, and the same bits whatever computes it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations.derivation_cases import GOLDEN, digest, inputs, numbers
from modelyard.derivations import Lora, Workspace, apply_lora, check_arithmetic, lora_scale
from modelyard.errors import InputError


def by_definition(base: Any, a: Any, b: Any, scale: np.float32) -> Any:
    """`lora/1` on a float32 base, one scalar operation after another, as its definition reads."""
    out = np.empty_like(base)
    for i in range(base.shape[0]):
        for j in range(base.shape[1]):
            acc = np.float32(0)
            for k in range(a.shape[0]):
                acc = np.float32(acc + np.float32(np.float32(scale * b[i, k]) * a[k, j]))
            out[i, j] = np.float32(base[i, j] + acc)
    return out


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_equals_its_definition(rows: int, rank: int, columns: int, seed: int) -> None:
    """Vectors and blocks give what the definition's scalar loop gives, bit for bit."""
    base = numbers(f"{seed}W", rows, columns)
    a, b, scale = numbers(f"{seed}A", rank, columns), numbers(f"{seed}B", rows, rank), lora_scale(3, rank)
    wanted = by_definition(base, a, b, scale)
    assert apply_lora(base, "F32", a, b, scale, block_elements=5).tobytes() == wanted.tobytes()
    turned = apply_lora(np.ascontiguousarray(base.T), "F32", a, b, scale, transposed=True)
    assert np.ascontiguousarray(turned.T).tobytes() == wanted.tobytes()


def test_negative_zero_products_start_from_positive_zero() -> None:
    """The sum starts at +0, so a base of -0 plus products of -0 is +0."""
    base = np.array([[-0.0]], np.float32)
    out = apply_lora(base, "F32", np.array([[0.0]], np.float32), np.array([[-1.0]], np.float32), np.float32(1))
    assert not np.signbit(out[0, 0])


def test_rows_may_come_in_any_order() -> None:
    """Applying rows one by one, last first, gives what the whole gives."""
    base, a, b = inputs("BF16")
    lora = Lora(a, b, lora_scale(7, 5), "BF16")
    out = np.empty_like(base)
    for row in reversed(range(len(base))):
        lora.apply(base[row : row + 1], out[row : row + 1], row, Workspace(16))
    assert digest(out) == GOLDEN["lora/1 BF16"]


def test_scale_is_rounded_once() -> None:
    """The scale is the binary64 quotient rounded to binary32, also for rank-stabilised LoRA."""
    assert lora_scale(1, 3) == np.float32(1 / 3)
    assert lora_scale(16, 7, rslora=True) == np.float32(16 / 7**0.5)


@pytest.mark.parametrize(
    ("alpha", "rank", "code"), [(1, 0, "bad_rank"), (float("inf"), 4, "bad_alpha"), (1e39, 1, "bad_alpha")]
)
def test_scale_refuses_what_gives_no_number(alpha: float, rank: int, code: str) -> None:
    """A rank of zero and an alpha beyond binary32 are typed errors."""
    with pytest.raises(InputError) as caught:
        lora_scale(alpha, rank)
    assert caught.value.code == code


@pytest.mark.parametrize("where", ["base", "factor", "sum"])
def test_nan_is_refused(where: str) -> None:
    """A NaN in the base, in a factor, or made by infinities that cancel is an error, never a result."""
    base, a, b = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    if where == "base":
        base[1, 2] = np.nan
    elif where == "factor":
        a[0, 0] = np.nan
    else:
        base[:], b[:] = -np.inf, np.inf
    with pytest.raises(InputError) as caught:
        apply_lora(base, "F32", a, b, np.float32(1))
    assert caught.value.code == "nan_result"


def test_overflow_is_reported() -> None:
    """A result beyond the dtype's largest number becomes infinity, and `apply` says so."""
    lora = Lora(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), np.float32(65504), "F16")
    out = np.empty((1, 1), np.float16)
    assert lora.apply(np.full((1, 1), 16, np.float16), out, 0, Workspace(4))
    assert np.isinf(out[0, 0])
    assert not lora.apply(np.full((1, 1), 15, np.float16), out, 0, Workspace(4))
    assert out[0, 0] == 65504


def test_flushed_subnormals_are_refused() -> None:
    """In a thread that flushes subnormal numbers to zero an exact operation refuses to run."""
    import torch

    caught: list[InputError] = []

    def work() -> None:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormal numbers")
        try:
            check_arithmetic()
        except InputError as error:
            caught.append(error)
        finally:
            torch.set_flush_denormal(False)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    check_arithmetic()
    assert [error.code for error in caught] == ["flush_to_zero"]


@pytest.mark.parametrize(
    ("a", "b", "code"),
    [((2, 3), (4, 3), "bad_shape"), ((0, 3), (4, 0), "bad_rank"), ((2, 3, 1), (4, 2), "bad_shape")],
)
def test_factors_that_do_not_fit_are_refused(a: tuple[int, ...], b: tuple[int, ...], code: str) -> None:
    """Factors that do not multiply, or have no rank, are typed errors."""
    with pytest.raises(InputError) as caught:
        Lora(np.zeros(a, np.float32), np.zeros(b, np.float32), np.float32(1), "F32")
    assert caught.value.code == code
