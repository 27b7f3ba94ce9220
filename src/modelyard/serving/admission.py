"""Who may start now, who waits, who is turned away: a first-come-first-served queue with a bound.

Belongs to one event loop. It knows neither requests nor workers, only slots.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from modelyard.errors import BusyError

__all__ = ["Admission"]

_SMOOTHING = 0.2


class Admission:
    """`slots` holders at once and at most `queue` waiting for one.

    Every `enter` that returns must be followed by exactly one `leave`.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self.slots = slots
        self.queue = queue
        self.held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0
        self._entered: deque[float] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Take a slot, waiting in line; `BusyError` with `details["retry_after"]` (seconds) when the line is full."""
        if self.held < self.slots and not self._waiting:
            self._hold()
            return
        if len(self._waiting) >= self.queue:
            raise BusyError(
                f"{self.held} requests are in work and {self.waiting} are waiting, which is the limit",
                hint=f"try again in {self.retry_after()} s",
                code="queue_full",
                retry_after=self.retry_after(),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the slot had just been handed over
            else:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Give the slot back, to the first in line if there is one."""
        self.held -= 1
        taken = time.monotonic() - self._entered.popleft()
        self._seconds += _SMOOTHING * (taken - self._seconds)
        while self._waiting and self.held < self.slots:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._hold()

    def retry_after(self) -> int:
        """Whole seconds after which a slot is likely free, from how long requests took lately; 1 to 60."""
        return max(1, min(60, math.ceil(self._seconds * (self.waiting + 1) / self.slots)))

    def _hold(self) -> None:
        self.held += 1
        self._entered.append(time.monotonic())
