"""What a running recipe says: typed values for whoever shows them. Nothing here prints.

>>> StepFinished("train", cached=True, seconds=0.0, summary="team/intents@v1").to_dict()["event"]
'step-finished'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

__all__ = ["Event", "Note", "Progress", "StepFailed", "StepFinished", "StepProgress", "StepStarted", "ignore"]


class _Event:
    def to_dict(self) -> dict[str, Any]:
        """As plain values; `event` names the kind."""
        kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()
        return {"event": kind, **asdict(self)}  # type: ignore[call-overload]  # every event is a dataclass


@dataclass(frozen=True)
class StepStarted(_Event):
    """A step begins to work; a cached step only finishes.

    Attributes:
        step: Its name.
        index: Its place, from 1.
        count: How many steps the recipe has.
        reason: Why it runs: what changed since the last run, or that it is the first.
    """

    step: str
    index: int
    count: int
    reason: str


@dataclass(frozen=True)
class StepProgress(_Event):
    """A step got further.

    Attributes:
        step: Its name.
        fraction: How much is done, in [0, 1]; None where that is not known.
        detail: What is happening, for people.
    """

    step: str
    fraction: float | None
    detail: str


@dataclass(frozen=True)
class StepFinished(_Event):
    """A step's outcome is there.

    Attributes:
        step: Its name.
        cached: Whether it was there already.
        seconds: How long this took.
        summary: The outcome, for people.
    """

    step: str
    cached: bool
    seconds: float
    summary: str


@dataclass(frozen=True)
class StepFailed(_Event):
    """A step ended in an error, which is raised as well; earlier outcomes are kept."""

    step: str
    seconds: float
    message: str


@dataclass(frozen=True)
class Note(_Event):
    """Something worth knowing that stops nothing: a finding of the preflight, an alias that is left alone."""

    step: str
    message: str
    hint: str | None = None


Event: TypeAlias = StepStarted | StepProgress | StepFinished | StepFailed | Note
Progress: TypeAlias = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""
