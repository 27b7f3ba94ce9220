"""The statistics behind a gate: exact where they can be, and the same on every machine.

- `mcnemar_exact`: McNemar, "Note on the sampling error of the difference between correlated proportions or
  percentages", Psychometrika 12 (1947), in its exact binomial form.
- `wilson`: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
- `paired_bootstrap`: Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979), percentile
  interval; why pairs: Miller, "Adding Error Bars to Evals", arXiv:2411.00640.
- `holm`: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
- `examples_needed`, `detectable_difference`: Connor, "Sample size for testing differences in proportions for the
  paired-sample design", Biometrics 43 (1987).

Small samples get exact tests and Wilson intervals, never the central limit theorem: Bowyer et al., arXiv:2503.01747.
This module knows no reports, tasks or models.

>>> round(mcnemar_exact(9, 1), 4)
0.0215
>>> [round(bound, 3) for bound in wilson(9, 10)]
[0.596, 0.982]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Interval",
    "detectable_difference",
    "examples_needed",
    "holm",
    "mcnemar_exact",
    "paired_bootstrap",
    "wilson",
]

# Up to here the binomial sum is done in whole numbers; beyond, in logarithms (relative error below 1e-9).
_EXACT_LIMIT = 4096
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    level: float


def _refuse_unless(held: bool, message: str) -> None:
    if not held:
        raise InputError(message)


def mcnemar_exact(b: int, c: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
        b: Pairs that only the first got right.
        c: Pairs that only the second got right.

    Returns:
        `min(1, 2 P(X <= min(b, c)))` for X binomial with b + c trials and probability 1/2; 1.0 where nothing differs.

    Raises:
        InputError: If a count is negative.
    """
    _refuse_unless(b >= 0 and c >= 0, f"counts of pairs cannot be negative: {b}, {c}")
    trials, fewer = b + c, min(b, c)
    if trials == 0 or 2 * fewer >= trials - 1:  # the two tails meet or overlap
        return 1.0
    if trials <= _EXACT_LIMIT:
        term = total = 1
        for k in range(1, fewer + 1):
            term = term * (trials - k + 1) // k
            total += term
        return total / (1 << (trials - 1))  # division of whole numbers rounds once, and correctly
    # The largest term in logarithms, the smaller ones by their ratio to it until they no longer count.
    largest = math.lgamma(trials + 1) - math.lgamma(fewer + 1) - math.lgamma(trials - fewer + 1)
    total_ratio = ratio = 1.0
    for k in range(fewer, 0, -1):
        ratio *= k / (trials - k + 1)
        total_ratio += ratio
        if ratio < total_ratio * 1e-17:
            break
    return min(1.0, math.exp(largest + math.log(total_ratio) - (trials - 1) * math.log(2)))


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a rate, within [0, 1].

    Raises:
        InputError: If `n` is not positive, `successes` is not in 0..n, or `level` is not between 0 and 1.
    """
    _refuse_unless(n > 0 and 0 <= successes <= n, f"{successes} successes of {n} are no rate")
    _refuse_unless(0 < level < 1, f"a confidence level lies between 0 and 1, not {level}")
    z = _NORMAL.inv_cdf((1 + level) / 2)
    rate = successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


def paired_bootstrap(
    differences: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of paired differences with a percentile bootstrap interval.

    Args:
        differences: One number for each example, such as score of B minus score of A.
        level: Confidence level.
        resamples: How many samples are drawn, with replacement.
        seed: The same seed gives the same interval on every machine: indices come from the raw words of numpy's
            Philox, which are stable, and not from its `integers`, which may change.

    Raises:
        InputError: For no differences, one that is not finite, or a level outside (0, 1).
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.size
    _refuse_unless(n > 0, "there are no differences to resample")
    _refuse_unless(bool(np.isfinite(values).all()), "a difference is not a finite number")
    _refuse_unless(0 < level < 1 and resamples > 0, f"level {level} and {resamples} resamples make no interval")
    bits = np.random.Philox(key=seed)
    means = np.empty(resamples)
    block = max(1, (1 << 20) // n)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        words = bits.random_raw((count * n + 1) // 2).view(np.uint32)[: count * n]
        # Scaling 32 bits to 0..n-1 by multiplication: biased by less than n / 2^32.
        indices = (words.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)
        means[start : start + count] = values[indices].reshape(count, n).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where the adjusted value is below alpha.

    Raises:
        InputError: If a value is not in [0, 1].
    """
    _refuse_unless(all(0 <= p <= 1 for p in p_values), "p-values lie between 0 and 1")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def examples_needed(discordance: float, difference: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many paired examples a two-sided test needs to find a difference.

    Args:
        discordance: Share of examples on which exactly one of the two is right.
        difference: The difference in accuracy to find, in (0, discordance].
        alpha: Significance level.
        power: Probability of finding it.

    Raises:
        InputError: If the difference exceeds the discordance, or a value is out of range.
    """
    _refuse_unless(
        0 < difference <= discordance <= 1, f"no paired test finds {difference} at a discordance of {discordance}"
    )
    _refuse_unless(0 < alpha < 1 and 0 < power < 1, f"alpha {alpha} and power {power} lie between 0 and 1")
    z_alpha, z_power = _NORMAL.inv_cdf(1 - alpha / 2), _NORMAL.inv_cdf(power)
    root = z_alpha * math.sqrt(discordance) + z_power * math.sqrt(max(0.0, discordance - difference**2))
    return max(1, math.ceil((root / difference) ** 2))


def detectable_difference(n: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference in accuracy that `n` paired examples find with the given power.

    Returns:
        A difference in (0, discordance], to 1e-9; `discordance` itself where even that would need more examples.

    Raises:
        InputError: If a value is out of range.
    """
    _refuse_unless(n > 0 and 0 < discordance <= 1, f"{n} examples at a discordance of {discordance} detect nothing")
    low, high = 0.0, discordance
    while high - low > 1e-9:
        middle = (low + high) / 2
        if examples_needed(discordance, middle, alpha=alpha, power=power) <= n:
            high = middle
        else:
            low = middle
    return high
