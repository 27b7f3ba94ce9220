"""`Batch`: the inputs of one forward pass as plain arrays, and which of its positions count.

Knows arrays; knows no model and no library that computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LENGTHS", "Batch", "pad_rows"]

LENGTHS = (4, 7, 12)
"""Tokens of the rows of texts; a model that holds fewer gets fewer."""


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass.

    Attributes:
        inputs: By the names that the model's `forward` has: int64 ids and masks, float32 pictures and sounds.
        mask: Bool, (rows, positions): those that count. It applies to each output whose first two axes have this shape.
            None where all count.
        name: What checks call it: `length 7`, `padded`, `picture`.
    """

    inputs: dict[str, NDArray[Any]] = field(repr=False)
    mask: NDArray[np.bool_] | None = field(repr=False)
    name: str = ""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))


def pad_rows(rows: list[NDArray[Any]], value: float, *, left: bool = False) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows of different lengths as one array, and where it is theirs.

    Args:
        rows: One array each, padded along its first axis.
        value: What fills the rest.
        left: Whether it is filled in front.

    Returns:
        (rows, longest, ...) of the rows' dtype; and bool, (rows, longest).

    >>> pad_rows([np.array([1, 2]), np.array([3])], 0, left=True)[0].tolist()
    [[1, 2], [0, 3]]
    """
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), longest, *rows[0].shape[1:]), value, rows[0].dtype)
    mask = np.zeros((len(rows), longest), np.bool_)
    for at, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        padded[at, place], mask[at, place] = row, True
    return padded, mask
