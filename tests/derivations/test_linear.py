"""`linear/1` against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations import derivation_reference as reference
from derivations.derivation_cases import GOLDEN, WEIGHTS, digest, operands
from derivations.merge_cases import Case, cases
from modelyard.derivations import STORAGE, Operands, apply_linear
from modelyard.errors import InputError


@given(cases(), st.integers(1, 9), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_equals_its_definition(case: Case, block_elements: int, threads: int) -> None:
    """Vectors and blocks give what the definition's scalar loop gives, bit for bit, subnormals and overflow included."""
    with np.errstate(all="ignore"):
        wanted = reference.linear(case.wide_sources(), case.weights)
    merge = case.operands(with_base=False)
    if np.isnan(wanted).any():
        with pytest.raises(InputError):
            apply_linear(merge, case.to, block_elements=block_elements, threads=threads)
        return
    made = apply_linear(merge, case.to, block_elements=block_elements, threads=threads)
    assert made.tobytes() == reference.rounded(wanted, case.to)
    assert made.shape == case.shape


@pytest.mark.parametrize("dtype", STORAGE)
def test_pinned_digest_is_the_definitions(dtype: str) -> None:
    """The golden digest is that of the scalar loop's result."""
    models = operands(dtype, with_base=False)
    wide = [np.empty(models.elements, np.float32) for _ in WEIGHTS]
    for model, out in enumerate(wide):
        models.widen_source(model, 0, models.elements, out)
    made = reference.rounded(reference.linear([list(each) for each in wide], models.weights), dtype)
    assert digest(np.frombuffer(made, np.uint8)) == GOLDEN[f"linear/1 {dtype}"]


def test_one_model_keeps_its_bits() -> None:
    """One model with the weight 1 comes back as it was, -0 and subnormals included."""
    model = np.array([-0.0, 0.0, 2.0**-149, -1.5], np.float32)
    assert apply_linear(Operands([model], ["F32"], [1.0]), "F32").tobytes() == model.tobytes()


def test_infinity_is_a_result_and_nan_is_not() -> None:
    """An infinity goes through; infinities that cancel, and a NaN in a model, are refused."""
    one, inf = np.ones(3, np.float32), np.full(3, np.inf, np.float32)
    assert (
        np.isinf(apply_linear(Operands([one, inf], ["F32", "F32"], [1, 2]), "BF16").view(np.int16) == 0x7F80).sum() == 0
    )
    assert (apply_linear(Operands([one, inf], ["F32", "F32"], [1, 2]), "BF16") == 0x7F80).all()
    for models, weights in (([inf, inf], [1, -1]), ([one, inf], [1, 0]), ([one * np.nan, one], [1, 1])):
        with pytest.raises(InputError) as caught:
            apply_linear(Operands(models, ["F32", "F32"], weights), "F32")
        assert caught.value.code == "nan_result"


@pytest.mark.parametrize(
    ("shapes", "dtypes", "weights", "code"),
    [
        ([(2,), (3,)], ["F32", "F32"], [1, 1], "bad_shape"),
        ([(2,)], ["F32", "F32"], [1, 1], "bad_shape"),
        ([(2,)], ["F32"], [1, 1], "bad_shape"),
        ([], [], [], "bad_shape"),
        ([(2,)], ["BF16"], [1], "unsupported_dtype"),
        ([(2,)], ["F64"], [1], "unsupported_dtype"),
        ([(2,)], ["F32"], [float("nan")], "bad_number"),
        ([(2,)], ["F32"], [1e39], "bad_number"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    shapes: list[tuple[int, ...]], dtypes: list[str], weights: list[float], code: str
) -> None:
    """Shapes, dtypes and weights that do not belong together are typed errors before anything is computed."""
    with pytest.raises(InputError) as caught:
        Operands([np.zeros(shape, np.float32) for shape in shapes], dtypes, weights)
    assert caught.value.code == code


def test_empty_is_empty() -> None:
    """Tensors without elements sum to one without elements."""
    assert apply_linear(Operands([np.empty((0, 3), np.float32)], ["F32"], [1]), "F16").shape == (0, 3)
