"""How deltas become one: linear, svd, ties, dare and slerp, over products where they stay products and over dense matrices where not.

A `Blend` is what was asked for, checked. Knows matrices; no files and no modules but the name that `dare` draws by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelyard.derivations import Operands, apply_dare, apply_ties, dare_key
from modelyard.derivations.operands import binary32, check_density
from modelyard.errors import InputError, near_match
from modelyard.weights.merge.lowrank import inner
from modelyard.weights.merge.slerp import slerp_shares

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BLENDS", "Blend", "blend_dense", "blend_products"]

BLENDS = ("linear", "svd", "ties", "dare", "slerp")
"""The methods."""

Wide = NDArray[np.float64]
Narrow = NDArray[np.float32]


@dataclass(frozen=True)
class Blend:
    """A method and its numbers, one weight for each adapter."""

    method: str
    weights: tuple[float, ...]
    density: float = 1.0
    t: float = 0.0
    seed: int = 0

    @classmethod
    def checked(
        cls,
        method: str,
        count: int,
        *,
        weights: Sequence[float] | None,
        density: float | None,
        t: float | None,
        seed: int,
    ) -> Blend:
        """The blend of `count` adapters.

        Raises:
            InputError: `unknown_method`, `missing_parameter`, `bad_number`, `bad_density` or `bad_seed`.
        """
        if method not in BLENDS:
            meant = near_match(method, BLENDS)
            raise InputError(
                f"`{method}` is not a way to combine adapters",
                code="unknown_method",
                hint=f"did you mean `{meant}`?" if meant else f"there are {', '.join(BLENDS)}",
            )
        if count < 1 or (method == "slerp" and count != 2):
            wanted = "2 adapters" if method == "slerp" else "at least one adapter"
            raise InputError(f"`{method}` takes {wanted}, and there are {count}", code="bad_number")
        if method in {"ties", "dare"}:
            if density is None:
                raise _missing(method, "density", "the share of each delta that is kept, as 0.5")
            check_density(density)
            dare_key(seed, "")
        if method == "slerp" and t is None:
            raise _missing(method, "t", "from 0, the first adapter, to 1, the second")
        weights = [1.0] * count if weights is None else weights
        if len(weights) != count:
            raise InputError(f"{len(weights)} weights for {count} adapters", code="bad_number")
        if method == "slerp" and any(weight != 1 for weight in weights):
            raise InputError("`slerp` takes no weights: `t` says how much of either", code="bad_number")
        for weight in (*weights, t or 0.0):
            binary32(weight, "the weight")
        return cls(method, tuple(float(weight) for weight in weights), density or 1.0, t or 0.0, seed)

    def to_dict(self) -> dict[str, Any]:
        """The method's options, for a certificate."""
        if self.method == "slerp":
            return {"t": self.t}
        plain: dict[str, Any] = {"weights": list(self.weights)}
        if self.method in {"ties", "dare"}:
            plain["density"] = self.density
        return plain | ({"seed": self.seed} if self.method == "dare" else {})

    def shares(self) -> list[float]:
        """The weights divided by their sum, for what is averaged; `InputError` (`bad_number`) where that is 0."""
        given = (1.0 - self.t, self.t) if self.method == "slerp" else self.weights
        total = math.fsum(given)
        if total == 0:
            raise InputError("the weights sum to 0, so nothing can be averaged by them", code="bad_number")
        return [weight / total for weight in given]


def blend_products(blend: Blend, products: Mapping[int, tuple[Narrow, Narrow, float]]) -> tuple[Narrow, Narrow]:
    """B (out, sum of ranks) and A (sum of ranks, in) of `linear`, `svd` or `slerp`, exact but for one rounding of B's elements.

    Args:
        blend: The method.
        products: Adapter's number to B (out, r), A (r, in) and the scale; one that has no such module is left out.
    """
    if blend.method == "slerp":
        shares = _slerp_products(blend.t, products)
    else:
        shares = {number: blend.weights[number] for number in products}
    left = [
        # In binary64 the scale times the weight and the product with a binary32 lose next to nothing; one rounding follows.
        (b.astype(np.float64) * (shares[number] * scale)).astype(np.float32)
        for number, (b, _, scale) in products.items()
    ]
    return np.concatenate(left, axis=1), np.concatenate([a for _, a, _ in products.values()], axis=0)


def blend_dense(blend: Blend, deltas: Mapping[int, Wide], name: str) -> NDArray[np.floating]:
    """The blend of whole deltas of one module.

    Args:
        blend: The method.
        deltas: Adapter's number to its delta; one that has no such module is left out, and counts as zeros.
        name: The module's, which `dare` draws by.
    """
    if blend.method in {"ties", "dare"}:
        return _thinned(blend, deltas, name)
    if blend.method == "slerp":
        norms = {number: float(np.linalg.norm(delta)) for number, delta in deltas.items()}
        dot = float(np.sum(deltas[0] * deltas[1])) if len(deltas) == 2 else 0.0
        shares = _slerp_shares(blend.t, norms, dot)
    else:
        shares = {number: blend.weights[number] for number in deltas}
    made = np.zeros_like(next(iter(deltas.values())))
    for number, delta in deltas.items():
        made += shares[number] * delta
    return made


def _thinned(blend: Blend, deltas: Mapping[int, Wide], name: str) -> Narrow:
    """`ties/1` or `dare/1` of the deltas in binary32, with a base of zeros."""
    some = next(iter(deltas.values()))
    zeros = np.zeros(some.shape, np.float32)
    # Every adapter counts, so that each has the random numbers of its own number.
    sources = [deltas[number].astype(np.float32) if number in deltas else zeros for number in range(len(blend.weights))]
    operands = Operands(sources, ["F32"] * len(sources), blend.weights, base=zeros)
    if blend.method == "ties":
        return apply_ties(operands, blend.density, "F32")
    return apply_dare(operands, blend.density, "F32", seed=blend.seed, name=name)


def _slerp_products(t: float, products: Mapping[int, tuple[Narrow, Narrow, float]]) -> dict[int, float]:
    """Each adapter's share, by the angle between the deltas, which their factors give."""
    wide = {number: (b.astype(np.float64) * scale, a.astype(np.float64)) for number, (b, a, scale) in products.items()}
    norms = {number: math.sqrt(max(inner(*factors, *factors), 0.0)) for number, factors in wide.items()}
    dot = inner(*wide[0], *wide[1]) if len(wide) == 2 else 0.0
    return _slerp_shares(t, norms, dot)


def _slerp_shares(t: float, norms: Mapping[int, float], dot: float) -> dict[int, float]:
    """Shares by the angle; a delta of zeros has no direction, and what is beside it is taken linearly."""
    if len(norms) < 2 or not all(norms.values()):
        return {0: 1.0 - t, 1: t}
    first, second = slerp_shares(t, 1.0, 1.0, dot / (norms[0] * norms[1]))
    return {0: first, 1: second}


def _missing(method: str, name: str, what: str) -> InputError:
    return InputError(f"`{method}` needs `{name}`", code="missing_parameter", hint=f"give `{name}`: {what}")
