"""Thin products: cut without being made wide, and found in dense matrices, whole or by random projection."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.weights.merge.lowrank import factorize, frobenius, inner, shorten
from weights.merge.algebra_cases import best


def draw(*shape: int, seed: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("rank", [1, 4, 6, 20])
def test_shortened_products_are_the_best_of_their_rank(rank: int) -> None:
    """The cut product and its error are those of the wide matrix's SVD; a rank that is not exceeded cuts nothing."""
    b, a = draw(30, 6), draw(6, 20, seed=2)
    made = shorten(b, a, rank)
    wanted = best(b @ a, min(rank, 6))
    assert np.allclose(made.b @ made.a, wanted, atol=1e-12)
    assert made.error == pytest.approx(np.linalg.norm(b @ a - wanted) / np.linalg.norm(b @ a), abs=1e-12)


def test_a_product_with_more_rank_than_the_matrix_is_cut_too() -> None:
    """Factors that are thicker than the matrix is wide have the matrix's own rank in the end."""
    b, a = draw(5, 40), draw(40, 7, seed=2)
    made = shorten(b, a, 40)
    assert made.a.shape == (5, 7)
    assert np.allclose(made.b @ made.a, b @ a)


@pytest.mark.parametrize("exact", [True, False])
def test_a_matrix_of_low_rank_is_found_exactly(exact: bool) -> None:
    """Whole or projected, the decomposition of a matrix of rank 4 at rank 4 is that matrix."""
    dense = (draw(90, 4) @ draw(4, 70, seed=2)).astype(np.float32)
    made = factorize(dense, 4, exact=exact)
    assert np.abs(made.b @ made.a - dense).max() < 1e-5
    assert made.error < 1e-3


def test_projection_is_near_the_best_and_repeats() -> None:
    """On a spectrum that falls slowly the projected result is within 2 % of the best, its error is true, and a second run has the same bits."""
    u, _ = np.linalg.qr(draw(120, 80))
    v, _ = np.linalg.qr(draw(100, 80, seed=2))
    dense = ((u * (1.0 / np.arange(1, 81))) @ v.T).astype(np.float32)
    one, other = factorize(dense, 8, exact=False), factorize(dense, 8, exact=False)
    left = np.linalg.norm(dense - one.b @ one.a)
    assert left <= 1.02 * np.linalg.norm(dense - best(dense.astype(np.float64), 8))
    assert one.error == pytest.approx(left / np.linalg.norm(dense), abs=1e-5)
    assert one.how == "random projection"
    assert (one.b.tobytes(), one.a.tobytes()) == (other.b.tobytes(), other.a.tobytes())


def test_the_least_rank_for_an_error() -> None:
    """The lowest rank whose error is small enough is chosen, and its error is that of the SVD."""
    dense = draw(30, 20)
    made = factorize(dense, 15)
    for rank in (1, 5, 15):
        error = float(np.linalg.norm(dense - best(dense, rank)) / np.linalg.norm(dense))
        assert made.error_at(rank) == pytest.approx(error)
        assert made.least_rank(error + 1e-9) == rank
    assert made.least_rank(0.0) == 15


def test_products_of_products() -> None:
    """The norm of a matrix and the scalar product of two, from their factors, are the matrices' own."""
    b, a, d, c = draw(9, 2), draw(2, 8, seed=2), draw(9, 3, seed=3), draw(3, 8, seed=4)
    assert inner(b, a, d, c) == pytest.approx(float(np.sum((b @ a) * (d @ c))))
    assert frobenius(b @ a) == pytest.approx(float(np.linalg.norm(b @ a)))


def test_zeros() -> None:
    """A matrix of zeros has factors of zeros and no error."""
    made = factorize(np.zeros((6, 5), np.float32), 2)
    assert made.error == 0
    assert not (made.b @ made.a).any()
