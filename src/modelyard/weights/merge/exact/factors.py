"""An adapter's tensors while a merge runs: its files open once, and the factors of the modules at hand kept as float32.

Experts share their factors, one tensor for a whole layer, so the last few matrices are worth keeping; a file opened for each tensor would parse its
header as often, which for thousands of experts is most of the time. Used from one thread.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations.numbers import widen
from modelyard.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["Factors"]

_KEPT = 6


class Factors:
    """The tensors of one adapter; a context manager.

    Args:
        adapter: The adapter.
    """

    def __init__(self, adapter: Checkpoint) -> None:
        self._adapter, self._stack = adapter, ExitStack()
        self._matrices: dict[str, NDArray[np.float32]] = {}

    def __enter__(self) -> Factors:
        self._shards = {name: self._stack.enter_context(self._adapter.open(name)) for name in self._adapter.shards}
        for name, shard in self._shards.items():
            if shard.header != self._adapter.shards[name]:
                self._stack.close()
                raise ModelError(f"`{shard.label}` changed while it was read", code="truncated")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def dtype(self, key: str) -> str:
        """A tensor's dtype."""
        return self._adapter.info(key).dtype

    def values(self, key: str) -> Array:
        """A whole tensor, as it is."""
        return self._shards[self._adapter.home[key]].read(key)

    def matrix(self, key: str) -> NDArray[np.float32]:
        """A whole tensor as float32, its first dimension the rows; not to be written."""
        if key not in self._matrices:
            raw = self.values(key)
            made = np.empty(raw.shape, np.float32)
            widen(raw, self.dtype(key), made)
            while len(self._matrices) >= _KEPT:
                self._matrices.pop(next(iter(self._matrices)))
            self._matrices[key] = made.reshape(len(made) if made.ndim else 1, -1)
        return self._matrices[key]
