"""The statistics, against scipy, closed forms and their own definitions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modelyard.errors import InputError
from modelyard.evaluation.statistics import (
    detectable_difference,
    examples_needed,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    wilson,
)

counts = st.integers(0, 3000)


@given(counts, counts)
@settings(max_examples=150, deadline=None)
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    """The exact p-value equals scipy's two-sided binomial test of b in b + c at 1/2."""
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    # Below 1e-290 scipy says 0 where the exact sum (10 of 1075) is 2.7e-300.
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9, abs=1e-290)


@given(counts, counts)
@settings(max_examples=100, deadline=None)
def test_mcnemar_is_symmetric_and_a_probability(b: int, c: int) -> None:
    """Swapping the two models changes nothing, and the result lies in [0, 1]."""
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    assert 0 <= mcnemar_exact(b, c) <= 1


@pytest.mark.parametrize(("b", "c"), [(4600, 4400), (20_000, 21_000), (5000, 0), (3000, 2900), (2_000_000, 1_996_000)])
def test_mcnemar_in_logarithms_agrees_with_scipy(b: int, c: int) -> None:
    """Beyond the limit of whole numbers the p-value still equals scipy's."""
    assert mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(("wins", "of"), [(9, 10), (15, 20), (27, 40), (50, 80)])
def test_mcnemar_thresholds(wins: int, of: int) -> None:
    """The known least numbers of wins are significant at 0.05, and one fewer is not."""
    assert mcnemar_exact(wins, of - wins) < 0.05 <= mcnemar_exact(wins - 1, of - wins + 1)


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99])
)
@settings(max_examples=100, deadline=None)
def test_wilson_agrees_with_scipy_and_holds_the_rate(pair: tuple[int, int], level: float) -> None:
    """Wilson's bounds equal scipy's, lie in [0, 1] and hold the measured rate."""
    k, n = pair
    low, high = wilson(k, n, level)
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


def test_bootstrap_is_the_same_everywhere() -> None:
    """The interval of a fixed sample and seed is pinned: another number means another generator."""
    found = paired_bootstrap([1.0, 0.0, -1.0, 1.0, 1.0, 0.0, 1.0, 0.0], resamples=2000, seed=7)
    assert (found.estimate, found.low, found.high) == (0.375, -0.125, 0.875)
    assert found == paired_bootstrap([1.0, 0.0, -1.0, 1.0, 1.0, 0.0, 1.0, 0.0], resamples=2000, seed=7)


def test_bootstrap_spread_is_the_standard_error() -> None:
    """For many differences the 95 % interval is the mean plus or minus 1.96 standard errors, within 5 %."""
    rng = random.Random(3)
    differences = [float(rng.choices((-1, 0, 1), (1, 6, 3))[0]) for _ in range(801)]
    found = paired_bootstrap(differences)
    half = 1.96 * float(np.std(differences)) / math.sqrt(len(differences))
    assert found.high - found.estimate == pytest.approx(half, rel=0.05)
    assert found.estimate - found.low == pytest.approx(half, rel=0.05)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_bootstrap_stays_within_the_values(differences: list[float]) -> None:
    """No bound lies outside what was measured, and mirrored differences have the mirrored estimate."""
    found = paired_bootstrap(differences, resamples=200)
    assert min(differences) <= found.low <= found.high <= max(differences)
    assert paired_bootstrap([-d for d in differences], resamples=200).estimate == -found.estimate


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    """A hypothesis has an adjusted p below alpha exactly if Holm's procedure, done by hand, rejects it."""
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) >= 0.05:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(adjusted) if p < 0.05} == rejected
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))


@pytest.mark.parametrize(("n", "points"), [(164, 8.5), (500, 4.9), (1319, 3.0), (3080, 2.0)])
def test_detectable_difference_at_known_sizes(n: int, points: float) -> None:
    """At a discordance of 15 % the difference found with 80 % power is the one worked out by hand, in points."""
    assert 100 * detectable_difference(n, 0.15) == pytest.approx(points, abs=0.15)


def test_examples_needed_gives_the_power_it_promises() -> None:
    """Simulated with the exact test, the number of examples finds the difference in 70 to 90 % of trials."""
    discordance, difference = 0.2, 0.08
    n = examples_needed(discordance, difference)
    rng = np.random.default_rng(5)
    b = rng.binomial(n, (discordance + difference) / 2, size=2000)
    c = rng.binomial(n - b, (discordance - difference) / 2 / (1 - (discordance + difference) / 2))
    found = sum(mcnemar_exact(int(x), int(y)) < 0.05 and x > y for x, y in zip(b, c, strict=True)) / 2000
    assert 0.7 <= found <= 0.9


@given(st.floats(0.01, 1), st.floats(0.05, 1))
@settings(deadline=None)
def test_needed_and_detectable_are_inverse(discordance: float, part: float) -> None:
    """The difference that n examples detect needs no more than n examples."""
    n = examples_needed(discordance, discordance * part)
    found = detectable_difference(n, discordance)
    assert found <= discordance * part + 1e-8
    assert examples_needed(discordance, found) <= n


@pytest.mark.parametrize(
    "call",
    [
        lambda: mcnemar_exact(-1, 2),
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
        lambda: wilson(1, 2, level=1.0),
        lambda: paired_bootstrap([]),
        lambda: paired_bootstrap([math.nan]),
        lambda: holm([1.5]),
        lambda: examples_needed(0.1, 0.2),
        lambda: detectable_difference(0, 0.1),
    ],
)
def test_impossible_numbers_are_refused(call: object) -> None:
    """A count, rate or level that cannot be is an `InputError`, not a number."""
    assert callable(call)
    with pytest.raises(InputError):
        call()
