"""`cast/1`: every bit pattern, against an independent rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.derivations import apply_cast
from modelyard.errors import InputError

SPECIAL = [
    0.0,
    -0.0,
    2.0**-149,
    -(2.0**-149),
    2.0**-133,
    2.0**-134,
    65504.0,
    65519.99,
    65520.0,
    3.3895314e38,
    float("inf"),
]


def exact_bfloat16(value: float) -> float:
    """The nearest bfloat16, ties to even, by exact fractions; beyond the largest, infinity."""
    if value == 0 or value in {float("inf"), float("-inf")}:
        return value
    exact = abs(Fraction(value))
    exponent = max((exact.numerator.bit_length() - exact.denominator.bit_length()) - 1, -126)
    while exact >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - 7)
    rounded = round(exact / step) * step  # Python's round is to even, and exact on fractions
    magnitude = float("inf") if rounded >= Fraction(2) ** 128 else float(rounded)
    return magnitude if value > 0 else -magnitude


@given(st.floats(width=32, allow_nan=False))
@settings(deadline=None, max_examples=500)
def test_bfloat16_rounds_to_nearest_even(value: float) -> None:
    """Rounding to bfloat16 is the exact nearest value, ties to even, subnormals and overflow included."""
    bits = apply_cast(np.array([value], np.float32), "F32", "BF16")
    back = apply_cast(bits, "BF16", "F32")
    wanted = exact_bfloat16(value)
    assert back[0] == wanted
    assert np.signbit(back[0]) == np.signbit(np.float32(value))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_pattern_survives_widening(dtype: str) -> None:
    """Each of the 65536 patterns that is no NaN comes back from binary32 as it was."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    exponent, fraction = (0x7C00, 0x3FF) if dtype == "F16" else (0x7F80, 0x7F)
    bits = bits[((bits & exponent) != exponent) | ((bits & fraction) == 0)]
    source = bits.view(np.float16) if dtype == "F16" else bits
    back = apply_cast(apply_cast(source, dtype, "F32"), "F32", dtype)
    assert np.array_equal(back.view(np.uint16), bits)


def test_agrees_with_torch() -> None:
    """Torch's own conversions give the same bits, special values and random patterns alike."""
    import torch

    random = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([np.array(SPECIAL, np.float32), random[~np.isnan(random)]])
    for ours, theirs in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        wanted = torch.from_numpy(values).to(theirs).view(torch.int16).numpy()
        assert np.array_equal(apply_cast(values, "F32", ours).view(np.int16), wanted)


def test_block_size_does_not_show() -> None:
    """Three block sizes give the same bits, and the shape is kept."""
    values = np.linspace(-3, 3, 1001, dtype=np.float32).reshape(7, 143)
    made = [apply_cast(values, "F32", "BF16", block_elements=size) for size in (1, 100, 1 << 16)]
    assert made[0].shape == (7, 143)
    assert made[0].tobytes() == made[1].tobytes() == made[2].tobytes()


@pytest.mark.parametrize("to", ["F32", "F16", "BF16"])
def test_nan_is_refused(to: str) -> None:
    """A NaN is an error, even where rounding its bits would give infinity."""
    payload = np.array([0x7F800001], np.uint32).view(np.float32)
    with pytest.raises(InputError) as caught:
        apply_cast(payload, "F32", to)
    assert caught.value.code == "nan_result"


def test_other_formats_are_refused() -> None:
    """A format without an exact operation, and an array of the wrong type, are typed errors."""
    for from_, to in (("F64", "F32"), ("F32", "F8_E4M3"), ("BF16", "F32")):
        with pytest.raises(InputError) as caught:
            apply_cast(np.zeros(1, np.float32), from_, to)
        assert caught.value.code == "unsupported_dtype"


def test_empty_is_empty() -> None:
    """A tensor without elements casts to one without elements."""
    assert apply_cast(np.empty((0, 3), np.float32), "F32", "BF16").shape == (0, 3)
