"""Work in threads a few pieces ahead, and the memory that it uses again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from modelyard.weights.pipeline import Buffers, run_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_results_come_in_order_and_no_further_ahead_than_asked() -> None:
    """Each item's result, in the order of the items; no item is taken while `depth` results are still to be handed out."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = run_ahead(pool, lambda number: number * number, items(), 4)
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
        assert list(results) == [n * n for n in range(1, 9)]


def test_nothing_runs_once_the_iterator_ended() -> None:
    """An error comes in its item's turn, after everything that was under way is over."""
    running, lock = [0], threading.Lock()

    def compute(number: int) -> int:
        with lock:
            running[0] += 1
        if number == 2:
            raise ValueError("the third")
        with lock:
            running[0] -= 1
        return number

    with ThreadPoolExecutor(4) as pool:
        results = run_ahead(pool, compute, range(100), 5)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="the third"):
            next(results)
        assert running == [1]


def test_threads_never_share_a_buffer() -> None:
    """Many threads that take and give buffers of several sizes each have exactly the bytes they asked for, to themselves."""
    buffers = Buffers()

    def use(number: int) -> bool:
        size = 1000 + number % 7 * 500
        mine = buffers.take(size)
        mine[:] = number % 251
        whole = mine.size == size and bool((mine == number % 251).all())
        buffers.give(mine)
        return whole

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(4000)))
    assert len(buffers._free) <= 8
