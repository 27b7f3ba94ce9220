"""Made-up slot values, split so that no two corpora ever share one.

A value (an order number, a parcel code, a place, a name) belongs to exactly one *split*, decided by the digest of its
text: whoever draws for one split can never draw a value of another, whatever the seed. That is what makes "the test
values were never seen" a property of the construction instead of a hope.

This module knows no templates and no models.

>>> import random
>>> place(random.Random(0), "test") != place(random.Random(0), "train")
True
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Split = Literal["base", "train", "test"]

# Pretraining and training get most of the space: the test split only needs enough values to be diverse.
_SHARES: tuple[Split, ...] = ("base", "base", "train", "train", "test")

_ONSETS = (
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("", "", "l", "n", "r", "s", "k", "m", "nd", "rt")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def split_of(value: str) -> Split:
    """Return the one split that `value` belongs to (case does not matter)."""
    digest = hashlib.blake2b(value.lower().encode(), digest_size=8).digest()
    return _SHARES[int.from_bytes(digest, "big") % len(_SHARES)]


def _draw(rng: random.Random, split: Split, make: Callable[[random.Random], str]) -> str:
    while True:
        value = make(rng)
        if split_of(value) == split:
            return value


def _syllables(rng: random.Random, least: int, most: int) -> str:
    count = rng.randint(least, most)
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def word(rng: random.Random, split: Split) -> str:
    """A pronounceable lower-case word of two syllables."""
    return _draw(rng, split, lambda r: _syllables(r, 2, 2))


def place(rng: random.Random, split: Split) -> str:
    """A town's name."""
    return _draw(rng, split, lambda r: _syllables(r, 2, 2).capitalize())


def person(rng: random.Random, split: Split) -> str:
    """A person's given name."""
    return _draw(rng, split, lambda r: _syllables(r, 1, 2).capitalize() + r.choice(("ia", "oro", "enis", "una", "elo")))


def number(rng: random.Random, split: Split) -> str:
    """A number of four to six digits."""
    return _draw(rng, split, lambda r: str(r.randint(1000, 999_999)))


def code(rng: random.Random, split: Split) -> str:
    """A code such as `KX-4821`."""
    return _draw(rng, split, lambda r: f"{r.choice(_CODE_LETTERS)}{r.choice(_CODE_LETTERS)}-{r.randint(1000, 9999)}")


def email(rng: random.Random, split: Split) -> str:
    """An address under a reserved top-level name (RFC 2606), so that it can belong to nobody."""
    return _draw(rng, split, lambda r: f"{_syllables(r, 1, 1)}.{_syllables(r, 1, 2)}@{_syllables(r, 1, 1)}.example")


def date(rng: random.Random, split: Split) -> str:
    """A day of the year such as `3 March`."""
    return _draw(rng, split, lambda r: f"{r.randint(1, 28)} {r.choice(_MONTHS)}")


def size(rng: random.Random, split: Split) -> str:
    """A waist and length such as `34/32`."""
    return _draw(rng, split, lambda r: f"{r.randint(26, 48)}/{r.randint(24, 40)}")


MAKERS: dict[str, Callable[[random.Random, Split], str]] = {
    "word": word,
    "place": place,
    "person": person,
    "number": number,
    "code": code,
    "email": email,
    "date": date,
    "size": size,
}
