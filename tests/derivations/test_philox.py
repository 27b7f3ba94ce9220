"""Philox4x32-10 against its authors' known answers, and against the generator again in Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations import derivation_reference as reference
from modelyard.derivations.philox import draw_words, philox_blocks

# The three `philox4x32 10` lines of tests/kat_vectors in the Random123 distribution: counter, key, answer.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
WORD = st.integers(0, 2**32 - 1)


def words(text: str) -> list[int]:
    """Hex words as numbers."""
    return [int(word, 16) for word in text.split()]


def block(counter: list[int], key: list[int]) -> list[int]:
    """One block, by the package."""
    one, two, three, four = (np.array([word], np.uint64) for word in counter)
    return [int(word[0]) for word in philox_blocks((key[0], key[1]), (one, two, three, four))]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    """The published answers come out, of the package and of the tests' own reference."""
    assert block(words(counter), words(key)) == words(answer)
    assert reference.philox(words(counter), words(key)) == words(answer)


@given(st.lists(WORD, min_size=4, max_size=4), st.lists(WORD, min_size=2, max_size=2))
@settings(deadline=None, max_examples=200)
def test_every_counter_and_key(counter: list[int], key: list[int]) -> None:
    """Any counter and key give what the same rounds in unbounded integers give."""
    assert block(counter, key) == reference.philox(counter, key)


@given(st.integers(0, 2**53 - 100), st.integers(0, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_a_part_is_drawn_on_its_own(start: int, count: int, stream: int) -> None:
    """Words from any place on are those of that place: element e is output e mod 4 of the counter (e div 4, stream)."""
    key = (123, 456)
    wanted = [
        reference.philox([e // 4 % 2**32, e // 4 // 2**32, stream, 0], key)[e % 4] for e in range(start, start + count)
    ]
    assert draw_words(key, start, start + count, stream).tolist() == wanted


def test_words_are_uniform_enough() -> None:
    """A million words fall evenly into 64 bins: chi-square within 6 standard deviations of its mean."""
    counts = np.bincount(draw_words((1, 2), 0, 1_000_000) >> np.uint32(26), minlength=64)
    expected = 1_000_000 / 64
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 63) < 6 * (2 * 63) ** 0.5
