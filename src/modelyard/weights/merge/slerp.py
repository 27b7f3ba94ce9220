"""Spherical interpolation of two tensors: how much of each, by the angle between them as vectors.

Shoemake 1985, "Animating rotation with quaternion curves", with mergekit's conventions: magnitudes are not touched, and where
the vectors are almost parallel (the cosine beyond 0.9995) or opposite the interpolation is linear. What is made of the two
shares is a weighted sum. Not exact: the arc cosine and sines are the machine's. Knows numbers only.

>>> [round(share, 6) for share in slerp_shares(0.5, 1.0, 1.0, 0.0)]
[0.707107, 0.707107]
"""

from __future__ import annotations

import math

__all__ = ["LINEAR_ABOVE", "slerp_shares"]

LINEAR_ABOVE = 0.9995
"""The cosine beyond which two directions count as one."""

_ZERO = 1e-8


def slerp_shares(t: float, first: float, second: float, dot: float) -> tuple[float, float]:
    """How much of either tensor the result has.

    Args:
        t: 0 is the first, 1 the second.
        first: The first's Euclidean norm, in binary64.
        second: The second's.
        dot: Their scalar product.
    """
    cosine = dot / ((first if first > _ZERO else 1.0) * (second if second > _ZERO else 1.0))
    cosine = max(-1.0, min(1.0, cosine))
    if abs(cosine) > LINEAR_ABOVE:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
