"""Work done a few pieces ahead by threads, its results in order, within a bound on memory. Knows no bytes.

>>> with ThreadPoolExecutor(2) as pool:
...     list(ahead(pool, ((1, lambda share, n=n: n * share) for n in range(4)), threads=2, most=10))
[0, 1, 2, 3]
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["ThreadPoolExecutor", "ahead"]

Result = TypeVar("Result")


def ahead(
    pool: ThreadPoolExecutor, jobs: Iterable[tuple[int, Callable[[int], Result]]], *, threads: int, most: int
) -> Iterator[Result]:
    """Run jobs and yield their results in the order of the jobs.

    Args:
        pool: Runs them.
        jobs: What each costs, in any unit, and the job; it is given how many threads it may use itself: all of them when it
            costs more than half of `most`, because it then runs alone.
        threads: How many jobs run at once.
        most: What the jobs that run at once may cost together; a job that costs more runs alone.
    """
    running: deque[tuple[int, Future[Result]]] = deque()
    cost = 0
    try:
        for price, job in jobs:
            while running and (len(running) >= threads or cost + price > most):
                paid, future = running.popleft()
                yield future.result()
                del future  # or its result would be held until the next one is there
                cost -= paid
            running.append((price, pool.submit(job, threads if price > most // 2 else 1)))
            cost += price
        while running:
            yield running.popleft()[1].result()
    finally:
        for _, future in running:
            future.cancel()
