"""Products of two thin matrices, and thin products for wide matrices: the linear algebra of adapters.

A delta is `B @ A`, B of shape (out, r) and A of shape (r, in). `shorten` cuts such a product to a lower rank by the SVD of an (r, r)
matrix, between two QR decompositions, so the wide product is never made; `factorize` takes the first singular vectors of a dense matrix, by a
full SVD where that is cheap, else by random projection (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1) from
a fixed seed. Deterministic on one machine with one number of threads. Knows numbers only.

>>> b, a = np.eye(3, 2), np.eye(2, 4)
>>> shorten(b, a, 1).error
0.7071067811865476
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_UP_TO", "Factors", "factorize", "frobenius", "inner", "shorten"]

Wide = NDArray[np.float64]
Narrow = NDArray[np.float32]

EXACT_UP_TO = 768
"""The shorter side of a matrix up to which its SVD is taken whole."""

_OVERSAMPLED = 16
_POWERS = 4
_SEED = 20090922


@dataclass(frozen=True)
class Factors:
    """A product of rank r.

    Attributes:
        b: (out, r).
        a: (r, in).
        error: The Frobenius norm of what was cut off, relative to that of the whole; 0.0 where nothing was.
        how: `whole` for a decomposition without approximation, `random projection`, or `none`.
        values: The singular values that are kept, largest first; empty where none were taken.
    """

    b: Wide
    a: Wide
    error: float = 0.0
    how: str = "none"
    values: tuple[float, ...] = ()

    def error_at(self, rank: int) -> float:
        """The relative error that a lower rank would have."""
        kept = math.fsum(value * value for value in self.values)
        if not kept:
            return self.error
        whole = kept / (1.0 - self.error * self.error)
        dropped = math.fsum(value * value for value in self.values[rank:])
        return math.sqrt(self.error * self.error + dropped / whole)

    def least_rank(self, error: float) -> int:
        """The lowest rank, at least 1, whose relative error is at most `error`; the whole rank where none is."""
        ranks = range(1, len(self.values) + 1)
        return next((rank for rank in ranks if self.error_at(rank) <= error), self.a.shape[0])


def shorten(b: Wide, a: Wide, rank: int) -> Factors:
    """The best product of `rank` for `b @ a`, in the Frobenius norm; the product itself where it has no more."""
    limit = min(rank, b.shape[0], a.shape[1])
    if a.shape[0] > min(b.shape[0], a.shape[1]):
        return factorize(b @ a, limit)
    left, upper = np.linalg.qr(b)
    right, lower = np.linalg.qr(a.T)
    u, values, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return _balanced(left @ u[:, :limit], values[:limit], v[:limit] @ right.T, _share(values, limit), "whole")


def factorize(dense: NDArray[np.floating], rank: int, *, exact: bool | None = None) -> Factors:
    """The first `rank` singular vectors of a dense matrix as a product.

    Args:
        dense: (out, in), float32 or float64.
        rank: At most the shorter side; more is that.
        exact: Take the SVD whole (True) or by random projection (False); None decides by `EXACT_UP_TO` and the rank.
    """
    limit = min(rank, *dense.shape)
    wide = min(dense.shape) > EXACT_UP_TO and 2 * (limit + _OVERSAMPLED) < min(dense.shape)
    if exact is True or (exact is None and not wide):
        u, values, v = np.linalg.svd(dense.astype(np.float64), full_matrices=False)
        return _balanced(u[:, :limit], values[:limit], v[:limit], _share(values, limit), "whole")
    columns = min(limit + _OVERSAMPLED, *dense.shape)
    probe = np.random.Generator(np.random.PCG64(_SEED)).standard_normal((dense.shape[1], columns))
    space, _ = np.linalg.qr((dense @ probe.astype(dense.dtype)).astype(np.float64))
    for _ in range(_POWERS):
        turned, _ = np.linalg.qr((dense.T @ space.astype(dense.dtype)).astype(np.float64))
        space, _ = np.linalg.qr((dense @ turned.astype(dense.dtype)).astype(np.float64))
    u, values, v = np.linalg.svd((space.astype(dense.dtype).T @ dense).astype(np.float64), full_matrices=False)
    whole = frobenius(dense)
    kept = math.sqrt(math.fsum((values[:limit] ** 2).tolist()))
    error = math.sqrt(max(whole * whole - kept * kept, 0.0)) / whole if whole else 0.0
    return _balanced(space @ u[:, :limit], values[:limit], v[:limit], error, "random projection")


def frobenius(dense: NDArray[np.floating]) -> float:
    """The Frobenius norm, summed in binary64 row by row."""
    return math.sqrt(math.fsum(float(np.dot(row, row)) for row in (part.astype(np.float64) for part in dense)))


def inner(b: Wide, a: Wide, other_b: Wide, other_a: Wide) -> float:
    """The scalar product of `b @ a` and `other_b @ other_a` as vectors, from their factors."""
    return float(np.sum((b.T @ other_b) * (a @ other_a.T)))


def _share(values: Wide, kept: int) -> float:
    whole = math.fsum((values**2).tolist())
    return math.sqrt(math.fsum((values[kept:] ** 2).tolist()) / whole) if whole else 0.0


def _balanced(u: Wide, values: Wide, v: Wide, error: float, how: str) -> Factors:
    """Half of each singular value on either side; the largest element of each column of B is positive."""
    roots = np.sqrt(values)
    largest = u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])]
    signs = np.where(largest < 0, -1.0, 1.0)
    return Factors(u * (roots * signs), v * (roots * signs)[:, None], error, how, tuple(values.tolist()))
