"""A tensor in stripes of rows, computed a few ahead by threads and handed out in the order of the file.

Memory is a fixed number of buffers, whatever the model's size. Knows rows and operations; writes nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations import STORAGE, Workspace
from modelyard.errors import InputError, ModelError
from modelyard.weights.files import show_name
from modelyard.weights.pipeline import Buffers, run_ahead, usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from modelyard.weights.checkpoint import Shard
    from modelyard.weights.merge.exact.operations import Operation
    from modelyard.weights.pipeline import Bytes

__all__ = ["Done", "Pool", "Stripe"]


@dataclass(frozen=True)
class Stripe:
    """Some rows of a tensor: which bytes they are, and what is to be done to them.

    Attributes:
        tensor: Its name, for messages.
        dtype: Its dtype.
        shard: The open file that the bytes before come from; None for a tensor that has none, whose bytes are zero.
        start: Their first byte there.
        size: How many they are.
        row, columns: The first row, and how many elements a row has, of the tensor as a matrix.
        operations: What changes rows of it, in order.
    """

    tensor: str
    dtype: str
    shard: Shard | None
    start: int
    size: int
    row: int = 0
    columns: int = 1
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Done:
    """A stripe's bytes before and after, in buffers that go back to the pool once they are written."""

    stripe: Stripe
    before: Bytes
    after: Bytes
    changed: int = 0
    infinite: bool = False


class Pool:
    """Threads and the memory they use again and again. A list serves as a pool: `append` and `pop` are atomic.

    Args:
        threads: How many; None is every core that this process may use.
        block_elements: How many elements a thread works on at once.
    """

    def __init__(self, threads: int | None, block_elements: int) -> None:
        count = threads or usable_cores()
        self._executor = ThreadPoolExecutor(count)
        self._depth = count + 1  # stripes under way: one for each thread and one being written
        self._workspaces = [Workspace(block_elements) for _ in range(count)]
        self._buffers = Buffers()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(self, stripes: Iterable[Stripe]) -> Iterator[Done]:
        """The stripes computed, in their order. A result's buffers are taken back when the next one is asked for."""
        with closing(run_ahead(self._executor, self._compute, stripes, self._depth)) as results:
            for done in results:
                yield done
                self._buffers.give(done.before)
                if done.after is not done.before:
                    self._buffers.give(done.after)

    def _compute(self, stripe: Stripe) -> Done:
        """One thread's part: read rows, compute them, count what changed."""
        before = self._buffers.take(stripe.size)
        if stripe.shard is None:
            before.fill(0)
        else:
            stripe.shard.read_into(before.data, stripe.start)
        if not stripe.operations:
            return Done(stripe, before, before)
        after = self._buffers.take(stripe.size)
        kept = STORAGE[stripe.dtype]
        workspace = self._workspaces.pop()
        try:
            old, new = (part.view(kept).reshape(-1, stripe.columns) for part in (before, after))
            infinite = _apply(stripe, old, new, workspace)
        except InputError as error:
            what = f"`{show_name(stripe.tensor)}` cannot be merged: {error.message}"
            raise ModelError(what, code=error.code, hint=error.hint) from error
        finally:
            self._workspaces.append(workspace)
        bits = np.dtype(f"<u{kept.itemsize}")
        changed = int(np.count_nonzero(before.view(bits) != after.view(bits)))
        return Done(stripe, before, after, changed, infinite)


def _apply(stripe: Stripe, before: NDArray[np.generic], after: NDArray[np.generic], workspace: Workspace) -> bool:
    """Carry out a stripe's operations on the rows that each changes."""
    here = range(stripe.row, stripe.row + len(before))
    first = stripe.operations[0]
    if len(stripe.operations) == 1 and first.rows.start <= here.start and here.stop <= first.rows.stop:
        return first.apply(before, after, stripe.row, workspace)
    np.copyto(after, before)
    infinite = False
    for operation in stripe.operations:
        start, stop = max(operation.rows.start, here.start), min(operation.rows.stop, here.stop)
        rows = after[start - here.start : stop - here.start]
        infinite |= operation.apply(rows, rows, start, workspace)
    return infinite
