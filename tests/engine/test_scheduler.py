"""Who runs next: the rules of the queue, one by one and under random use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.engine.scheduler import Plan, Scheduler
from modelyard.errors import BusyError, InternalError, RequestError


def fill(scheduler: Scheduler, *needs: tuple[int, int]) -> None:
    """Submit requests named by their number: prompt tokens, new tokens."""
    for at, (prompt, new) in enumerate(needs):
        scheduler.submit(str(at), prompt, new)


def test_requests_start_in_the_order_in_which_they_came() -> None:
    """First come, first served, up to the number of slots."""
    scheduler = Scheduler(max_running=2, max_waiting=3)
    fill(scheduler, (1, 1), (1, 1), (1, 1))
    assert scheduler.plan() == Plan((), ("0", "1"))
    assert scheduler.plan() == Plan((), ())
    scheduler.finish("1")
    assert scheduler.plan() == Plan((), ("2",))
    assert scheduler.running == ("0", "2")


def test_a_full_queue_is_busy_and_takes_nothing() -> None:
    """One more than fits is a BusyError with the numbers, and the queue is as before."""
    scheduler = Scheduler(max_running=1, max_waiting=1)
    fill(scheduler, (1, 1), (1, 1))
    with pytest.raises(BusyError) as caught:
        scheduler.submit("x", 1, 1)
    assert caught.value.details == {"running": 0, "waiting": 2}
    scheduler.plan()
    with pytest.raises(BusyError):
        scheduler.submit("x", 1, 1)
    scheduler.finish("0")
    scheduler.submit("x", 1, 1)
    assert scheduler.waiting == ("1", "x")


def test_no_queue_still_fills_the_slots() -> None:
    """With nobody allowed to wait, requests are taken as long as a slot is free."""
    scheduler = Scheduler(max_running=2, max_waiting=0)
    fill(scheduler, (1, 1), (1, 1))
    with pytest.raises(BusyError):
        scheduler.submit("x", 1, 1)


def test_an_id_is_used_once_at_a_time() -> None:
    """A second request of the same id is refused while the first waits or runs, and taken afterwards."""
    scheduler = Scheduler(max_running=1, max_waiting=4)
    scheduler.submit("a", 1, 1)
    with pytest.raises(RequestError, match="running already"):
        scheduler.submit("a", 1, 1)
    scheduler.plan()
    with pytest.raises(RequestError, match="running already"):
        scheduler.submit("a", 1, 1)
    scheduler.finish("a")
    scheduler.submit("a", 1, 1)


def test_a_step_takes_in_a_bounded_number_of_prompt_tokens() -> None:
    """Prompts beyond the step's share wait for the next step, so that running requests are not held up for long."""
    scheduler = Scheduler(max_running=8, max_waiting=8, max_prefill=10)
    fill(scheduler, (4, 1), (6, 1), (1, 1), (30, 1), (1, 1))
    assert [scheduler.plan().admit for _ in range(4)] == [("0", "1"), ("2",), ("3",), ("4",)]


def test_the_cache_is_counted_as_rows_times_the_widest() -> None:
    """A wide request waits until the rectangle that it makes of all rows fits, and nobody overtakes it."""
    scheduler = Scheduler(max_running=8, max_waiting=8, max_cells=100)
    fill(scheduler, (10, 10), (10, 10), (30, 10), (1, 1))
    assert scheduler.plan().admit == ("0", "1")  # 2 x 20; with the third it would be 3 x 40
    scheduler.finish("0")
    assert scheduler.plan().admit == ("2",)  # 2 x 40; a fourth row would be 3 x 40
    scheduler.finish("2")
    assert scheduler.plan().admit == ("3",)


def test_what_can_never_fit_is_refused_at_once() -> None:
    """A request that alone exceeds the cache is a RequestError with the numbers, not a place in the queue."""
    scheduler = Scheduler(max_running=2, max_waiting=2, max_cells=50)
    with pytest.raises(RequestError, match="51 is more than the cache of 50"):
        scheduler.submit("a", 41, 10)
    assert scheduler.idle


def test_a_waiting_request_is_cancelled_at_once() -> None:
    """It leaves the queue, never runs, and makes room."""
    scheduler = Scheduler(max_running=1, max_waiting=1)
    fill(scheduler, (1, 1), (1, 1))
    assert scheduler.cancel("1") is True
    assert scheduler.plan() == Plan((), ("0",))
    assert scheduler.idle is False
    scheduler.submit("2", 1, 1)


def test_a_running_request_is_dropped_by_the_next_plan() -> None:
    """Cancelling takes effect between two steps, once, and its slot is used in the same plan."""
    scheduler = Scheduler(max_running=1, max_waiting=1)
    fill(scheduler, (1, 1), (1, 1))
    scheduler.plan()
    assert scheduler.cancel("0") is False
    assert scheduler.cancel("0") is False
    assert scheduler.plan() == Plan(("0",), ("1",))
    assert scheduler.plan() == Plan((), ())


def test_what_finishes_before_it_is_dropped_is_not_dropped() -> None:
    """A request that came to its end in the very step is over once."""
    scheduler = Scheduler(max_running=1, max_waiting=1)
    scheduler.submit("a", 1, 1)
    scheduler.plan()
    scheduler.cancel("a")
    scheduler.finish("a")
    assert scheduler.plan() == Plan((), ())
    assert scheduler.idle


def test_unknown_requests() -> None:
    """Cancelling what is not there says so; finishing it is a fault of the caller's."""
    scheduler = Scheduler(max_running=1, max_waiting=1)
    assert scheduler.cancel("a") is None
    with pytest.raises(InternalError):
        scheduler.finish("a")


def test_clear_names_everyone() -> None:
    """Who ran comes first, then who waited; afterwards nothing is left."""
    scheduler = Scheduler(max_running=1, max_waiting=3)
    fill(scheduler, (1, 1), (1, 1), (1, 1))
    scheduler.plan()
    assert scheduler.clear() == ("0", "1", "2")
    assert scheduler.idle
    assert scheduler.plan() == Plan((), ())


@pytest.mark.parametrize("wrong", [{"max_running": 0}, {"max_waiting": -1}, {"max_prefill": 0}, {"max_cells": 0}])
def test_limits_are_positive(wrong: dict[str, int]) -> None:
    """A scheduler that could run nothing cannot be made."""
    limits: dict[str, int] = {"max_running": 1, "max_waiting": 1, **wrong}
    with pytest.raises(RequestError):
        Scheduler(**limits)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["submit", "cancel", "plan", "finish"]), st.integers(0, 9), st.integers(1, 12)),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS, st.integers(1, 4), st.integers(0, 4), st.integers(1, 20), st.one_of(st.none(), st.integers(12, 60)))
def test_the_rules_hold_under_any_use(
    actions: list[tuple[str, int, int]], slots: int, queue: int, prefill: int, cells: int | None
) -> None:
    """Slots, queue, cache and order hold whatever is done, and everything taken is started, cancelled or still there."""
    scheduler = Scheduler(max_running=slots, max_waiting=queue, max_prefill=prefill, max_cells=cells)
    needs: dict[str, int] = {}
    order: list[str] = []  # taken and neither started nor cancelled
    running: set[str] = set()
    cancelled: set[str] = set()
    for action, number, size in actions:
        name = str(number)
        if action == "submit" and name not in order and name not in running and size <= (cells or size):
            free = slots - len(running)
            if len(order) < queue + free:
                scheduler.submit(name, size, 0)
                needs[name] = size
                order.append(name)
            else:
                with pytest.raises(BusyError):
                    scheduler.submit(name, size, 0)
        elif action == "cancel":
            found = scheduler.cancel(name)
            assert found is (True if name in order else False if name in running else None)
            if found:
                order.remove(name)
            elif found is False:
                cancelled.add(name)
        elif action == "finish" and name in running:
            scheduler.finish(name)
            running.discard(name)
            cancelled.discard(name)
        elif action == "plan":
            plan = scheduler.plan()
            assert set(plan.drop) == cancelled
            running -= cancelled
            cancelled.clear()
            assert list(plan.admit) == order[: len(plan.admit)]
            assert len(plan.admit) <= 1 or sum(needs[item] for item in plan.admit) <= prefill
            assert plan.admit or running or not order  # something always runs
            del order[: len(plan.admit)]
            running |= set(plan.admit)
        assert set(scheduler.running) == running
        assert list(scheduler.waiting) == order
        assert len(running) <= slots
        if cells is not None and running:
            assert len(running) * max(needs[item] for item in running) <= cells
