"""Token ids as callers hold them: lists, ranges, NumPy integers, one-dimensional arrays and tensors. Knows no vocabulary.

>>> read_ids(range(3)), read_ids("abc"), read_ids([0.5])
([0, 1, 2], None, None)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

__all__ = ["read_ids"]


def read_ids(value: Any) -> list[int] | None:
    """`value` as plain whole numbers, or None where it is no row of them; texts, bytes and booleans are none."""
    if callable(getattr(value, "tolist", None)) and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Sequence):
        return None
    found = []
    for item in value:
        if isinstance(item, bool):
            return None
        try:
            found.append(operator.index(item))
        except TypeError:
            return None
    return found
