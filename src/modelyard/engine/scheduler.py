"""Who runs next: pure bookkeeping between two steps of a model.

Requests wait in the order in which they came and none overtakes another, so none starves. A waiting request is let in
as soon as there is a free slot, the step's share of prompt tokens is not used up (prompts are computed between other
requests' tokens, and would delay them), and the cache has room: all rows are as wide as the widest, so the room is
counted in cells, rows times the widest row's tokens at its full length.

Knows ids and counts. No tensors, no threads, no clock: whoever owns it calls it from one thread at a time.

>>> scheduler = Scheduler(max_running=1, max_waiting=2)
>>> scheduler.submit("a", 10, 5); scheduler.submit("b", 10, 5)
>>> scheduler.plan()
Plan(drop=(), admit=('a',))
>>> scheduler.finish("a")
>>> scheduler.plan()
Plan(drop=(), admit=('b',))
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.errors import BusyError, InternalError, RequestError

__all__ = ["Plan", "Scheduler"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What changes before the next step: running requests to let go of, and waiting ones to start, oldest first."""

    drop: tuple[str, ...]
    admit: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Need:
    prompt: int
    total: int


class Scheduler:
    """Keeps the queue and the slots.

    Args:
        max_running: Most requests in one step.
        max_waiting: Most requests that wait for a slot.
        max_prefill: Most prompt tokens that one step takes in; a longer prompt is taken in alone.
        max_cells: Most cells of cache (rows times the widest row's full length); None for no bound.
    """

    def __init__(
        self, *, max_running: int, max_waiting: int, max_prefill: int = 2048, max_cells: int | None = None
    ) -> None:
        if min(max_running, max_prefill) < 1 or max_waiting < 0 or (max_cells is not None and max_cells < 1):
            raise RequestError("a scheduler's limits are positive", hint="`max_waiting` may be 0", field="max_running")
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_prefill = max_prefill
        self.max_cells = max_cells
        self._waiting: dict[str, _Need] = {}
        self._running: dict[str, _Need] = {}
        self._dropping: dict[str, None] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Who waits, oldest first."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[str, ...]:
        """Who runs, in the order in which they were let in."""
        return tuple(self._running)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def submit(self, request: str, prompt_tokens: int, new_tokens: int) -> None:
        """Put a request at the end of the queue.

        A queue of length zero still takes what a free slot would start at once.

        Raises:
            RequestError: The id is in use, or the request alone needs more than `max_cells`.
            BusyError: The queue is full.
        """
        if request in self._waiting or request in self._running:
            raise RequestError(
                f"request `{request}` is running already", hint="give every request its own id", field="id"
            )
        total = prompt_tokens + new_tokens
        if self.max_cells is not None and total > self.max_cells:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens and `max_new_tokens` is {new_tokens}: "
                f"{total} is more than the cache of {self.max_cells} holds",
                hint="ask for fewer new tokens, or shorten the prompt",
                field="max_new_tokens",
            )
        free = self.max_running - len(self._running)
        if len(self._waiting) >= self.max_waiting + free:
            raise BusyError(
                f"{len(self._running)} requests are running and {len(self._waiting)} are waiting: the queue is full",
                hint="try again in a moment",
                running=len(self._running),
                waiting=len(self._waiting),
            )
        self._waiting[request] = _Need(prompt_tokens, total)

    def cancel(self, request: str) -> bool | None:
        """Give a request up: True if it waited and is gone, False if it runs and the next plan drops it, else None."""
        if self._waiting.pop(request, None) is not None:
            return True
        if request in self._running:
            self._dropping[request] = None
            return False
        return None

    def plan(self) -> Plan:
        """Decide the next step: what is cancelled leaves, and what has room starts."""
        drop = tuple(self._dropping)
        for request in drop:
            del self._running[request]
        self._dropping.clear()
        admit: list[str] = []
        prefill = 0
        while self._waiting and len(self._running) < self.max_running:
            request, need = next(iter(self._waiting.items()))
            if admit and prefill + need.prompt > self.max_prefill:
                break
            if not self._fits(need):
                break
            prefill += need.prompt
            del self._waiting[request]
            self._running[request] = need
            admit.append(request)
        return Plan(drop, tuple(admit))

    def finish(self, request: str) -> None:
        """A running request is over; its slot is free."""
        if self._running.pop(request, None) is None:
            raise InternalError(f"request `{request}` finished without running")
        self._dropping.pop(request, None)

    def clear(self) -> tuple[str, ...]:
        """Forget everything; who ran and who waited, oldest first."""
        everyone = (*self._running, *self._waiting)
        for requests in (self._running, self._waiting, self._dropping):
            requests.clear()
        return everyone

    def _fits(self, need: _Need) -> bool:
        if self.max_cells is None:
            return True
        widest = max(need.total, *(other.total for other in self._running.values()), 0)
        return (len(self._running) + 1) * widest <= self.max_cells
