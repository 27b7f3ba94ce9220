"""Long lists of keys in pieces that one statement takes: SQLite allows 32,766 parameters, PostgreSQL 65,535."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["chunks"]

_CHUNK = 2000


def chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    """The distinct keys, sorted, in lists of at most 2,000.

    >>> list(chunks(["b", "a", "b"]))
    [['a', 'b']]
    """
    wanted = sorted(set(keys))
    for start in range(0, len(wanted), _CHUNK):
        yield wanted[start : start + _CHUNK]
