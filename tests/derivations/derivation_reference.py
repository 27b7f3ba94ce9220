"""The operations again, one scalar at a time, as docs/design/derivations.md reads: slow, and sharing no code with them.

Only the last rounding to F16 or BF16 is the package's own, which `test_cast.py` holds to exact fractions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np

from modelyard.derivations import apply_cast

if TYPE_CHECKING:
    from collections.abc import Sequence

F = np.float32


def widened(tensor: Any, dtype: str) -> list[np.float32]:
    """Each element as binary32."""
    if dtype == "BF16":
        return [np.uint32(int(bits) << 16).view(np.float32) for bits in tensor.reshape(-1)]
    return [F(value) for value in tensor.reshape(-1)]


def rounded(values: Sequence[np.float32], dtype: str) -> bytes:
    """The values' bytes in `dtype`."""
    return apply_cast(np.array(values, np.float32), "F32", dtype).tobytes()


def linear(sources: Sequence[Sequence[np.float32]], weights: Sequence[np.float32]) -> list[np.float32]:
    """`linear/1` before its last rounding."""
    out = []
    for e in range(len(sources[0])):
        acc = F(weights[0] * sources[0][e])
        for i in range(1, len(sources)):
            acc = F(acc + F(weights[i] * sources[i][e]))
        out.append(acc)
    return out


def trimmed(changes: Sequence[np.float32], density: np.float32) -> list[np.float32]:
    """The k largest of the changes, k by a density; the others +0."""
    return largest(changes, max(1, (Fraction(float(density)) * len(changes) * 2 + 1) // 2))


def largest(changes: Sequence[np.float32], k: int) -> list[np.float32]:
    """The k largest of the changes; the others +0."""
    n = len(changes)
    kept = sorted(range(n), key=lambda e: (-abs(float(changes[e])), e))[:k]
    return [changes[e] if e in set(kept) else F(0) for e in range(n)]


def ties(
    base: Sequence[np.float32],
    sources: Sequence[Sequence[np.float32]],
    weights: Sequence[np.float32],
    density: np.float32,
) -> list[np.float32]:
    """`ties/1` before its last rounding."""
    changes = [trimmed([F(x - w) for x, w in zip(source, base, strict=True)], density) for source in sources]
    out = []
    for e, start in enumerate(base):
        total = F(0)
        for change in changes:
            total = F(total + change[e])
        acc, count = F(0), 0
        for weight, change in zip(weights, changes, strict=True):
            if (change[e] > 0 and total >= 0) or (change[e] < 0 and not total >= 0):
                acc, count = F(acc + F(weight * change[e])), count + 1
        out.append(F(start + F(acc / F(max(count, 1)))))
    return out


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """One block of Philox4x32-10 in Python's integers, after the paper's figure: multiply, split, exclusive or, bump."""
    c, k, mask = list(counter), list(key), 2**32 - 1
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def dare(
    base: Sequence[np.float32],
    sources: Sequence[Sequence[np.float32]],
    weights: Sequence[np.float32],
    density: np.float32,
    *,
    seed: int,
    name: str,
    element: int,
) -> list[np.float32]:
    """`dare/1` before its last rounding, of the part that starts at `element`."""
    start = blake3.blake3(seed.to_bytes(8, "little") + name.encode("utf-8")).digest()[:8]
    key = [int.from_bytes(start[:4], "little"), int.from_bytes(start[4:], "little")]
    rescale = F(1.0 / float(density))
    out = []
    for place, value in enumerate(base):
        e = element + place
        acc = F(0)
        for i, source in enumerate(sources):
            change = F(source[place] - value)
            word = philox([e // 4 % 2**32, e // 4 // 2**32, i, 0], key)[e % 4]
            if Fraction(word, 2**32) < Fraction(float(density)):
                acc = F(acc + F(weights[i] * F(rescale * change)))
        out.append(F(value + acc))
    return out


def elected(
    base: Sequence[np.float32],
    thinned: Sequence[Sequence[np.float32]],
    weights: Sequence[np.float32],
    *,
    elect: bool,
    normalize: bool,
    scale: np.float32,
) -> list[np.float32]:
    """What `ties/2` and `dare/2` share, before the last rounding; a NaN is where they refuse."""
    out = []
    for e, start in enumerate(base):
        terms = [F(weight * change[e]) for weight, change in zip(weights, thinned, strict=True)]
        total = F(0)
        for term in terms:
            total = F(total + term)
        acc, divisor = F(0), F(0)
        for weight, term in zip(weights, terms, strict=True):
            if not elect or (term > 0 and total >= 0) or (term < 0 and not total >= 0):
                acc, divisor = F(acc + term), F(divisor + weight)
        if normalize:
            acc = F(acc / (divisor if divisor != 0 else F(1)))
        refused = elect and np.isnan(total)
        out.append(F(np.nan) if refused else F(start + F(scale * acc)))
    return out


def thinned_at_random(
    changes: Sequence[np.float32], model: int, density: np.float32, *, seed: int, name: str, element: int, rescale: bool
) -> list[np.float32]:
    """The changes of one model that `dare/2` keeps, rescaled; the others +0, but where a change is NaN."""
    start = blake3.blake3(seed.to_bytes(8, "little") + name.encode("utf-8")).digest()[:8]
    key = [int.from_bytes(start[:4], "little"), int.from_bytes(start[4:], "little")]
    factor = F(1.0 / float(density)) if rescale else F(1)
    out = []
    for place, change in enumerate(changes):
        e = element + place
        word = philox([e // 4 % 2**32, e // 4 // 2**32, model, 0], key)[e % 4]
        kept = Fraction(word, 2**32) < Fraction(float(density))
        out.append(F(factor * change) if kept or np.isnan(change) else F(0))
    return out
