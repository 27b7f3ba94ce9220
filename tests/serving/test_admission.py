"""The queue: order, bound, and no slot lost."""

from __future__ import annotations

import asyncio

import pytest

from modelyard.errors import BusyError
from modelyard.serving.admission import Admission


def test_first_come_first_served() -> None:
    """Slots go to whoever waited longest, and nobody overtakes."""

    async def run() -> list[int]:
        admission, order = Admission(slots=1, queue=10), []

        async def visit(number: int) -> None:
            await admission.enter()
            order.append(number)
            await asyncio.sleep(0)
            admission.leave()

        await asyncio.gather(*(visit(number) for number in range(6)))
        assert (admission.held, admission.waiting) == (0, 0)
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4, 5]


def test_full_queue_turns_away_at_once() -> None:
    """With every slot and place taken, `enter` raises at once and says when to come back."""

    async def run() -> None:
        admission = Admission(slots=1, queue=1)
        await admission.enter()
        waiting = asyncio.create_task(admission.enter())
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as caught:
            await admission.enter()
        assert caught.value.code == "queue_full"
        assert 1 <= caught.value.details["retry_after"] <= 60
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(run())


def test_no_slot_is_lost_to_a_visitor_that_gives_up() -> None:
    """Giving up in line, or in the very moment of getting the slot, leaves the slot to the next."""

    async def run() -> None:
        admission = Admission(slots=1, queue=10)
        await admission.enter()
        early, late, last = (asyncio.create_task(admission.enter()) for _ in range(3))
        await asyncio.sleep(0)
        early.cancel()
        await asyncio.sleep(0)
        admission.leave()  # hands the slot to `late`
        late.cancel()  # which gives up before it runs
        await asyncio.wait_for(last, 1)
        assert (admission.held, admission.waiting) == (1, 0)
        admission.leave()
        assert admission.held == 0

    asyncio.run(run())
