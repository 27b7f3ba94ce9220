"""`ties/1` against its definition, and against PEFT where the two define the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations import derivation_reference as reference
from derivations.derivation_cases import DENSITY, GOLDEN, digest, numbers, operands
from derivations.merge_cases import Case, cases
from modelyard.derivations import STORAGE, Operands, apply_ties
from modelyard.derivations.ties import count_kept
from modelyard.errors import InputError


@given(cases(), st.integers(1, 9), st.integers(1, 3))
@settings(deadline=None, max_examples=100)
def test_equals_its_definition(case: Case, block_elements: int, threads: int) -> None:
    """Counting, vectors and blocks give what sorting and scalar loops give, bit for bit; so does a refused NaN."""
    with np.errstate(all="ignore"):
        wanted = reference.ties(case.wide_base(), case.wide_sources(), case.weights, case.density)

    def made() -> bytes:
        return apply_ties(
            case.operands(), float(case.density), case.to, block_elements=block_elements, threads=threads
        ).tobytes()

    if np.isnan(wanted).any():
        with pytest.raises(InputError):
            made()
    else:
        assert made() == reference.rounded(wanted, case.to)


@pytest.mark.parametrize("dtype", STORAGE)
def test_pinned_digest_is_the_definitions(dtype: str) -> None:
    """The golden digest is that of the scalar loop's result."""
    models = operands(dtype)
    base, each = np.empty(models.elements, np.float32), np.empty((models.count, models.elements), np.float32)
    models.widen_base(0, models.elements, base)
    for model in range(models.count):
        models.widen_source(model, 0, models.elements, each[model])
    made = reference.ties(list(base), [list(source) for source in each], models.weights, np.float32(DENSITY))
    assert digest(np.frombuffer(reference.rounded(made, dtype), np.uint8)) == GOLDEN[f"ties/1 {dtype}"]


@pytest.mark.parametrize("density", [0.1, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("block_elements", [7, 100, 1 << 16])
def test_ties_of_magnitude_go_to_the_lowest_index(density: float, block_elements: int) -> None:
    """Of equal magnitudes the first ones are kept, wherever blocks and threads divide the tensor."""
    signs = np.where(numbers("S", 1000) < 0, -1, 1).astype(np.float32)
    merge = Operands([signs], ["F32"], [1.0], base=np.zeros(1000, np.float32))
    kept = int(1000 * density)
    for threads in (1, 2, 3):
        made = apply_ties(merge, density, "F32", block_elements=block_elements, threads=threads)
        assert np.array_equal(made[:kept], signs[:kept])
        assert not made[kept:].any()


@pytest.mark.parametrize(
    ("density", "elements", "kept"),
    [
        (0.7, 10, 7),
        (0.2, 10, 2),
        (0.25, 10, 3),
        (0.01, 10, 1),
        (1.0, 10, 10),
        (0.5, 1, 1),
        (0.3, 0, 0),
        (2.0**-32, 5, 1),
    ],
)
def test_count_is_rounded_exactly(density: float, elements: int, kept: int) -> None:
    """How many are kept is the nearest integer to density times n, halves up, and at least 1 of any."""
    assert count_kept(density, elements) == kept


def test_agrees_with_peft() -> None:
    """With distinct magnitudes and a whole k, PEFT's own merge gives the same numbers up to the order of two sums."""
    import torch
    from peft.utils.merge_utils import ties

    base = numbers("PB", 4096)
    models = [base + numbers(f"P{i}", 4096) * np.float32(0.01) for i in range(3)]
    weights = [0.5, 1.0, 0.75]
    made = apply_ties(Operands(models, ["F32"] * 3, weights, base=base), 0.25, "F32")
    changes = [torch.from_numpy(model - base) for model in models]
    theirs = base + ties(changes, torch.tensor(weights), 0.25).numpy()
    assert np.abs(made - theirs).max() <= 2e-7
    assert (made != base).mean() > 0.4


def test_equal_weights_are_the_papers_lambda() -> None:
    """Two models that agree are averaged and scaled by their weight; one that disagrees with the larger total is left out."""
    base = np.zeros(3, np.float32)
    models = [np.array([1, 3, -1], np.float32), np.array([3, -1, -1], np.float32)]
    made = apply_ties(Operands(models, ["F32", "F32"], [0.5, 0.5], base=base), 1.0, "F32")
    assert made.tolist() == [1.0, 1.5, -0.5]


def test_totals_of_zero_elect_the_positive() -> None:
    """Where the changes cancel exactly, the positive ones are taken, as the definition's `s >= 0` says."""
    models = [np.array([-2], np.float32), np.array([2], np.float32)]
    assert apply_ties(Operands(models, ["F32", "F32"], [1, 1], base=np.zeros(1, np.float32)), 1.0, "F32").tolist() == [
        2.0
    ]


def test_subnormal_changes_are_kept() -> None:
    """A change below the least normal number is a change."""
    tiny = np.array([2.0**-149, -(2.0**-140), 0], np.float32)
    made = apply_ties(Operands([tiny], ["F32"], [1.0], base=np.zeros(3, np.float32)), 0.67, "F32")
    assert made.tobytes() == tiny.tobytes()


def test_nan_is_refused_even_where_trimmed() -> None:
    """A NaN in any difference, and infinities that cancel in the election, are refused."""
    values = numbers("N", 64)
    for base, model in ((np.inf, np.inf), (0.0, np.nan), (np.nan, 0.0)):
        for density in (0.05, 1.0):
            source, start = values.copy() + 1, values.copy()
            source[3], start[3] = model, base
            with pytest.raises(InputError) as caught:
                apply_ties(Operands([source], ["F32"], [1.0], base=start), density, "F32")
            assert caught.value.code == "nan_result"
    both = [np.full(2, np.inf, np.float32), np.full(2, -np.inf, np.float32)]
    with pytest.raises(InputError):
        apply_ties(Operands(both, ["F32", "F32"], [1, 1], base=np.zeros(2, np.float32)), 1.0, "F32")


def test_infinity_is_a_result() -> None:
    """An infinite change is the largest of all and goes through."""
    model = np.array([1, np.inf, 2], np.float32)
    made = apply_ties(Operands([model], ["F32"], [1.0], base=np.zeros(3, np.float32)), 0.34, "F32")
    assert made.tolist() == [0.0, float("inf"), 0.0]


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_density_outside_its_range_is_refused(density: float) -> None:
    """A density that is no share is a typed error."""
    with pytest.raises(InputError) as caught:
        apply_ties(Operands([np.ones(2, np.float32)], ["F32"], [1], base=np.ones(2, np.float32)), density, "F32")
    assert caught.value.code == "bad_density"


def test_base_is_needed() -> None:
    """Without a base there is nothing to compare with: a typed error."""
    with pytest.raises(InputError) as caught:
        apply_ties(Operands([np.ones(2, np.float32)], ["F32"], [1]), 0.5, "F32")
    assert caught.value.code == "bad_shape"


def test_empty_is_empty() -> None:
    """Tensors without elements merge to one without elements."""
    empty = np.empty((0, 3), np.float32)
    assert apply_ties(Operands([empty], ["F32"], [1], base=empty), 0.5, "F32").shape == (0, 3)
