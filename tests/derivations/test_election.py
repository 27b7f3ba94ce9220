"""`ties/2` and `dare/2` against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations import derivation_reference as reference
from derivations.derivation_cases import (
    DENSITIES,
    DENSITY,
    GOLDEN,
    KEPT,
    NAME,
    SCALE,
    SEED,
    WEIGHTS,
    digest,
    numbers,
    operands,
)
from derivations.merge_cases import Case, cases
from modelyard.derivations import STORAGE, Operands, Tally, apply_dare, apply_dare_2, apply_ties, apply_ties_2
from modelyard.errors import InputError

F = np.float32


def changes(case: Case) -> list[list[np.float32]]:
    """Each model less the base."""
    base = case.wide_base()
    return [[F(x - w) for x, w in zip(source, base, strict=True)] for source in case.wide_sources()]


def check(make: Any, wanted: list[np.float32], refused: bool, to: str) -> None:
    """The operation gives these values rounded, or refuses a NaN."""
    if refused or np.isnan(wanted).any():
        with pytest.raises(InputError):
            make()
    else:
        assert make().tobytes() == reference.rounded(wanted, to)


TALLIES = st.builds(Tally, st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5, -2.0, 0.0, 1.25]))


@given(cases(), st.data())
@settings(deadline=None, max_examples=50)
def test_ties_2_equals_its_definition(case: Case, data: st.DataObject) -> None:
    """Counting, vectors, blocks and threads give what sorting and scalar loops give, bit for bit; so does a refused NaN."""
    elements = len(case.wide_base())
    kept = [data.draw(st.integers(0, elements)) for _ in case.sources]
    drawn = data.draw(TALLIES)
    tally = Tally(True, drawn.normalize, drawn.scale)
    with np.errstate(all="ignore"):
        found = changes(case)
        thinned = [reference.largest(change, k) for change, k in zip(found, kept, strict=True)]
        wanted = reference.elected(
            case.wide_base(), thinned, case.weights, elect=True, normalize=tally.normalize, scale=F(tally.scale)
        )
    how = {"block_elements": data.draw(st.integers(1, 9)), "threads": data.draw(st.integers(1, 3))}
    refused = bool(np.isnan(found).any())
    check(lambda: apply_ties_2(case.operands(), kept, case.to, tally=tally, **how), wanted, refused, case.to)


@given(cases(), st.data())
@settings(deadline=None, max_examples=40)
def test_dare_2_equals_its_definition(case: Case, data: st.DataObject) -> None:
    """Every density, tally, block and thread count gives what scalar loops over Philox give, bit for bit."""
    densities = [F(data.draw(st.one_of(st.just(1.0), st.floats(0.015625, 1, width=32)))) for _ in case.sources]
    tally, rescale = data.draw(TALLIES), data.draw(st.booleans())
    element = data.draw(st.integers(0, 2**34))
    same: dict[str, Any] = {"seed": 7, "name": "w", "element": element, "rescale": rescale}
    with np.errstate(all="ignore"):
        found = changes(case)
        thinned = [
            reference.thinned_at_random(change, model, density, **same)
            for model, (change, density) in enumerate(zip(found, densities, strict=True))
        ]
        wanted = reference.elected(
            case.wide_base(), thinned, case.weights, elect=tally.elect, normalize=tally.normalize, scale=F(tally.scale)
        )
    how: dict[str, Any] = {
        "block_elements": data.draw(st.integers(1, 9)),
        "threads": data.draw(st.integers(1, 3)),
        "tally": tally,
    }
    floats = [float(density) for density in densities]
    refused = bool(np.isnan(found).any())
    check(lambda: apply_dare_2(case.operands(), floats, case.to, **same, **how), wanted, refused, case.to)


@pytest.mark.parametrize("dtype", STORAGE)
def test_pinned_digests_are_the_definitions(dtype: str) -> None:
    """The golden digests are those of the scalar loops' results."""
    models = operands(dtype)
    base, each = np.empty(models.elements, F), np.empty((models.count, models.elements), F)
    models.widen_base(0, models.elements, base)
    for model in range(models.count):
        models.widen_source(model, 0, models.elements, each[model])
    found = [list(source - base) for source in each]
    weights, scale = [F(weight) for weight in WEIGHTS], F(SCALE)
    largest = [reference.largest(change, k) for change, k in zip(found, KEPT, strict=True)]
    made = reference.elected(list(base), largest, weights, elect=True, normalize=True, scale=scale)
    assert digest(np.frombuffer(reference.rounded(made, dtype), np.uint8)) == GOLDEN[f"ties/2 {dtype}"]
    drawn = [
        reference.thinned_at_random(change, i, F(density), seed=SEED, name=NAME, element=0, rescale=True)
        for i, (change, density) in enumerate(zip(found, DENSITIES, strict=True))
    ]
    for elect, suffix in ((True, ""), (False, " unelected")):
        made = reference.elected(list(base), drawn, weights, elect=elect, normalize=not elect, scale=scale)
        assert digest(np.frombuffer(reference.rounded(made, dtype), np.uint8)) == GOLDEN[f"dare/2 {dtype}{suffix}"]


def test_where_the_versions_agree() -> None:
    """One weight for all and no division: `dare/2` is `dare/1`; with weights of one and a division, `ties/2` is `ties/1`."""
    plain = Tally(elect=False, normalize=False)
    made = apply_dare_2(operands("F32"), [DENSITY] * 3, "F32", seed=SEED, name=NAME, tally=plain)
    assert made.tobytes() == apply_dare(operands("F32"), DENSITY, "F32", seed=SEED, name=NAME).tobytes()
    models = [numbers(f"X{i}", 40, 56) for i in range(3)]
    ones = Operands(models, ["F32"] * 3, [1.0] * 3, base=numbers("W", 40, 56))
    assert apply_ties_2(ones, [672] * 3, "F32").tobytes() == apply_ties(ones, DENSITY, "F32").tobytes()


def test_nothing_kept_is_the_base() -> None:
    """With no change kept of any model the result is the base, whatever the weights."""
    base = numbers("W", 40, 56)
    models = Operands([numbers("X0", 40, 56)], ["F32"], [3.0], base=base)
    assert np.array_equal(apply_ties_2(models, [0], "F32"), base)


@pytest.mark.parametrize("kept", [[1], [1, 2, 3, 4], [-1, 0, 0], [2241, 0, 0]])
def test_wrong_counts_are_refused(kept: list[int]) -> None:
    """A count that is not one for each model, or not of the tensor, is refused."""
    with pytest.raises(InputError) as caught:
        apply_ties_2(operands("F32"), kept, "F32")
    assert caught.value.code == "bad_number"


@pytest.mark.parametrize("densities", [[0.5], [0.5, 0.5, 0.0], [0.5, 0.5, 1.5]])
def test_wrong_densities_are_refused(densities: list[float]) -> None:
    """A density that is not one for each model, or not from above 0 to 1, is refused."""
    with pytest.raises(InputError) as caught:
        apply_dare_2(operands("F32"), densities, "F32", seed=0, name="w")
    assert caught.value.code == "bad_density"
