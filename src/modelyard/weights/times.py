"""How long each stage of loading takes, which one is slow, and its cure.

A load goes through the stages of `STAGES`. Whoever runs one reports it to an `Observe`: `registry.loading` reports `resolve` and
`verify` of a version, `load` reports the rest. This module knows folders and stage times; it knows no yard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["STAGES", "LoadTimes", "Observe", "Stage"]

STAGES = ("resolve", "verify", "read", "cast", "place", "preprocessor", "audit")
"""The stages in the order in which a load goes through them."""

Observe = Callable[[str, float, int], None]
"""Called once a stage ended: its name (of `STAGES`), its seconds, and the bytes that it went over (0 where bytes say nothing)."""


@dataclass(frozen=True)
class Stage:
    """One stage: `seconds` on the clock, `bytes` that it went over."""

    name: str
    seconds: float
    bytes: int

    @property
    def rate(self) -> float | None:
        """Bytes a second; None where bytes say nothing about it."""
        return self.bytes / self.seconds if self.bytes and self.seconds > 0 else None


@dataclass(frozen=True)
class LoadTimes:
    """What loading took.

    Attributes:
        source: What was loaded.
        stages: In the order of `STAGES`; a stage that did not happen is not listed.
        seconds: All of them together.
        slowest: The name of the slowest stage.
        cause: Why it is slow, as far as it was seen.
        cure: What makes it faster.
    """

    source: str
    stages: tuple[Stage, ...]
    seconds: float
    slowest: str
    cause: str
    cure: str | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        plain = asdict(self)
        plain["stages"] = [asdict(stage) | {"bytes_per_second": stage.rate} for stage in self.stages]
        return plain
