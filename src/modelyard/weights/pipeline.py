"""Work done by threads a few pieces ahead, handed out in order, in memory that is used again. Knows neither files nor arithmetic."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Buffers", "Bytes", "run_ahead", "usable_cores"]

Bytes = NDArray[np.uint8]
Item = TypeVar("Item")
Made = TypeVar("Made")


class Buffers:
    """Memory that is used again, by any number of threads: a large block costs more to get from the system, page by page, than to fill.

    Args:
        least: How large a buffer is at least, so that it fits more than what it was first taken for.
    """

    def __init__(self, least: int = 0) -> None:
        self._least = least
        self._free: list[Bytes] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Bytes:
        """A buffer of exactly `size` bytes, its content undefined."""
        with self._lock:
            for number, buffer in enumerate(self._free):
                if buffer.size >= size:
                    return self._free.pop(number)[:size]
            if self._free:
                self._free.pop()  # too small: let it go, so that there are never more than are in use at once
        return np.empty(max(size, self._least), np.uint8)[:size]

    def give(self, *buffers: Bytes) -> None:
        """Put buffers back; memory that is a library's own is let go."""
        for buffer in buffers:
            owner = buffer if buffer.base is None else buffer.base
            if isinstance(owner, np.ndarray):
                with self._lock:
                    self._free.append(owner)


def run_ahead(
    executor: ThreadPoolExecutor, compute: Callable[[Item], Made], items: Iterable[Item], depth: int
) -> Generator[Made, None, None]:
    """What `compute` makes of each item, in their order; at most `depth` are under way, the one handed out among them.

    Raises:
        Exception: What `compute` raises, in its turn. Nothing is under way any more when the iterator ends, however it does.
    """
    running: deque[Future[Made]] = deque()
    try:
        for item in items:
            running.append(executor.submit(compute, item))
            while len(running) >= depth:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        # After an error, nobody may still be reading when a file is closed.
        wait([future for future in running if not future.cancel()])


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
