"""Philox4x32-10: random 32-bit words that follow from a key and a counter alone.

The counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), with its
published constants; nothing is carried from one block to the next, so any part can be drawn on its own, by anybody.

>>> [f"{word:08x}" for word in draw_words((0, 0), 0, 4)]
['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_words", "philox_blocks"]

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_BUMPS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_HALF = np.uint64(32)
_LOW = np.uint64(_WORD)

Words = NDArray[np.uint64]


def philox_blocks(
    key: tuple[int, int], counters: tuple[Words, Words, Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """The four output words of every counter, each below 2^32, in arrays of uint64.

    Args:
        key: Two words.
        counters: The four words of each counter, least significant first, as uint64 arrays of one shape.
    """
    first, second, third, fourth = counters
    low, high = key
    for _ in range(_ROUNDS):
        one, two = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second, third, fourth = (
            (two >> _HALF) ^ second ^ np.uint64(low),
            two & _LOW,
            (one >> _HALF) ^ fourth ^ np.uint64(high),
            one & _LOW,
        )
        low, high = (low + _BUMPS[0]) & _WORD, (high + _BUMPS[1]) & _WORD
    return first, second, third, fourth


def draw_words(key: tuple[int, int], start: int, end: int, stream: int = 0) -> NDArray[np.uint32]:
    """Words `start` to `end` of a stream: word e is output e mod 4 of the counter (e div 4, `stream`).

    The counter's four words are the low and the high half of e div 4, then `stream`, then 0.
    """
    blocks = np.arange(start // 4, -(-end // 4), dtype=np.uint64)
    zeros = np.zeros_like(blocks)
    outputs = philox_blocks(key, (blocks & _LOW, blocks >> _HALF, zeros + np.uint64(stream), zeros))
    words = np.empty((len(blocks), 4), np.uint32)
    for place, output in enumerate(outputs):
        words[:, place] = output
    first = start - start // 4 * 4
    return words.reshape(-1)[first : first + end - start]
