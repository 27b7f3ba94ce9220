"""`compare`: two runners on the same batches, and the measured differences as `Check`s.

Differences are absolute, tolerances relative to the largest magnitude of the reference's output. Positions that a batch's mask
leaves out count nowhere. A value that is finite in the reference and not in the candidate is an infinite difference. Knows
runners and arrays; knows no models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.parity.runners import extend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from modelyard.weights.parity.batches import Batch
    from modelyard.weights.parity.runners import Runner

__all__ = ["Check", "compare", "failing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One measured difference between a reference and a candidate.

    Attributes:
        name: The batch and the output: `padded: logits`, `length 7: greedy tokens`.
        rows: Rows that were compared.
        scale: Largest magnitude of the reference's output.
        max_difference: Largest absolute difference; infinite where the candidate is not finite and the reference is.
        mean_difference: Mean absolute difference.
        kl: KL divergence of softmax over the last axis, reference against candidate, in nats, the mean over positions; None for
            an output that is no logits.
        top1_agreement: Share of those positions with one and the same arg max, 0 to 1; None as `kl`.
        tokens: Greedy tokens a row; 0 for a check of an output.
        equal_tokens: Of these, the leading ones that agree, of the worst row.
        tolerance: What it was held to, relative to `scale`; None where nothing was asked.
        holds: Whether `max_difference <= tolerance * scale`; of greedy tokens, whether all agree, or the first that does not
            is one that the reference itself finds as good within twice the tolerance.
    """

    name: str
    rows: int
    scale: float
    max_difference: float
    mean_difference: float
    kl: float | None = None
    top1_agreement: float | None = None
    tokens: int = 0
    equal_tokens: int = 0
    tolerance: float | None = None
    holds: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON has it; a number that is not finite is null."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Check:
        """The check that `to_dict` gave."""
        values = dict(plain)
        for name in ("scale", "max_difference", "mean_difference"):
            values[name] = math.inf if values.get(name) is None else values[name]
        return cls(**values)


def compare(
    reference: Runner, candidate: Runner, batches: Sequence[Batch], *, tolerance: float | None = None, tokens: int = 16
) -> list[Check]:
    """How far a candidate is from a reference: one check an output of each batch, and one of its greedy tokens.

    Args:
        reference: What is right.
        candidate: What is judged. Outputs that only one of the two has are left out, but not the reference's first.
        batches: Of `fixed_inputs`.
        tolerance: Largest difference that holds, relative to the largest magnitude of the reference's output; None only measures.
        tokens: Greedy tokens to compare; 0 for none.

    Raises:
        ModelError: `no_output`: the candidate lacks the reference's first output; `output_shape`: it has another shape.
    """
    checks: list[Check] = []
    for batch in batches:
        expected, found = reference.outputs(batch), candidate.outputs(batch)
        _refuse_lacking(batch, expected, found)
        checks += [
            _check_output(batch, name, values, found[name], tolerance)
            for name, values in expected.items()
            if name in found
        ]
        if tokens:
            logits = next((check.scale for check in checks if check.name == f"{batch.name}: logits"), 0.0)
            checks += _check_tokens((reference, candidate), batch, tokens, tolerance, logits)
    return checks


def failing(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [check for check in checks if not check.holds]


def _refuse_lacking(batch: Batch, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    first = next(iter(expected), None)
    if first is None or first not in found:
        raise ModelError(
            f"{batch.name}: the candidate has no output `{first}`; it has {', '.join(found) or 'none'}",
            code="no_output",
            output=first,
            available=list(found),
        )


def _check_output(
    batch: Batch, name: str, expected: NDArray[np.float32], found: NDArray[np.float32], tolerance: float | None
) -> Check:
    if expected.shape != found.shape:
        raise ModelError(
            f"{batch.name}: `{name}` has the shape {found.shape} and the reference's has {expected.shape}",
            code="output_shape",
            output=name,
        )
    mask = batch.mask if batch.mask is not None and expected.shape[:2] == batch.mask.shape else None
    kl = top1 = None
    if name.endswith("logits") and expected.ndim > 1 and expected.shape[-1] > 1:
        kl, top1 = _measure_distributions(expected, found, mask)
    one, other = (expected, found) if mask is None else (expected[mask], found[mask])
    difference = _difference(one, other)
    finite = np.abs(one[np.isfinite(one)])
    scale = float(finite.max(initial=0.0))
    most = float(difference.max(initial=0.0))
    mean = float(difference.mean(dtype=np.float64)) if difference.size else 0.0
    holds = math.isfinite(most) and (tolerance is None or most <= tolerance * scale)
    return Check(f"{batch.name}: {name}", batch.rows, scale, most, mean, kl, top1, 0, 0, tolerance, holds)


def _difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Absolute differences; none where both are the same infinity or no number, infinite where only one is finite."""
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    difference[np.isnan(difference)] = np.inf
    difference[same] = 0.0
    return difference


def _measure_distributions(
    expected: NDArray[np.float32], found: NDArray[np.float32], mask: NDArray[np.bool_] | None
) -> tuple[float, float]:
    """KL in nats and top-1 agreement over positions; where the last axis itself is the positions, masked ones are impossible."""
    if mask is not None and expected.shape == mask.shape:
        expected, found = (np.where(mask, values, -np.inf).astype(np.float32) for values in (expected, found))
    elif mask is not None:
        expected, found = expected[mask], found[mask]
    width = expected.shape[-1]
    kl, agree, rows = 0.0, 0, 0
    for one, other in zip(expected.reshape(-1, width), found.reshape(-1, width), strict=True):
        rows += 1
        agree += int(one.argmax() == other.argmax() and bool(np.isfinite(other.max())))
        kl += _kl(one.astype(np.float64), other.astype(np.float64))
    return (kl / rows, agree / rows) if rows else (0.0, 1.0)


def _kl(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        first, second = _log_softmax(one), _log_softmax(other)
        share = np.exp(first)
        parts = np.where(share > 0, share * (first - second), 0.0)
    total = float(parts.sum())
    return max(total, 0.0) if not math.isnan(total) else math.inf


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _check_tokens(
    pair: tuple[Runner, Runner], batch: Batch, tokens: int, tolerance: float | None, scale: float
) -> list[Check]:
    reference, candidate = pair
    expected, found = reference.generate(batch, tokens), candidate.generate(batch, tokens)
    if expected is None or found is None:
        return []
    equal = [_leading(one, other) for one, other in zip(expected, found, strict=True)]
    worst = min(equal)
    margin = 0.0
    if worst < tokens:
        extended, first = extend(batch, expected)
        logits = reference.outputs(extended).get("logits")
        margin = max(
            math.inf if logits is None else _margin(logits[row, first + at], expected[row][at], found[row][at:])
            for row, at in enumerate(equal)
            if at < tokens
        )
    # Two logits that are each off by the tolerance may swap places when they are twice as near as that.
    holds = worst == tokens or tolerance is None or margin <= 2 * tolerance * scale
    return [
        Check(
            f"{batch.name}: greedy tokens",
            batch.rows,
            scale,
            margin,
            margin,
            tokens=tokens,
            equal_tokens=worst,
            tolerance=tolerance,
            holds=holds,
        )
    ]


def _leading(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _margin(logits: NDArray[np.float32], expected: int, found: Sequence[int]) -> float:
    """By how much the reference prefers its own token to the candidate's; infinite where the candidate has none."""
    if not found or not 0 <= found[0] < len(logits):
        return math.inf
    return max(0.0, float(logits[expected]) - float(logits[found[0]]))
