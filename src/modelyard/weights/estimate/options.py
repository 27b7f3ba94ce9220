"""What else would do where an estimate does not fit: each a change of the workload, estimated itself. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError
from modelyard.weights.estimate.workload import DTYPES, Estimate, Option, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["find_options"]


def find_options(found: Estimate, peak: Callable[[Workload], int]) -> list[Option]:
    """Every single change that takes less, and, where none of them fits, all of them together; the largest peak first.

    Args:
        found: The estimate as asked for.
        peak: Estimates a changed workload, in bytes; an error of it leaves that change out.
    """
    available = found.machine.available if found.machine is not None else 0
    made: list[Option] = []
    for what, changes in _changes(found):
        option = _option(found.workload, what, changes, peak, available)
        if option is not None and option.peak < found.peak:
            made.append(option)
    if made and not any(option.fits for option in made):
        together: dict[str, Any] = {}
        for option in sorted(made, key=lambda option: -option.peak):
            together |= option.changes
        everything = _option(found.workload, "all of these together", together, peak, available)
        made += [everything] if everything is not None else []
    return sorted(made, key=lambda option: -option.peak)


def _option(
    workload: Workload, what: str, changes: dict[str, Any], peak: Callable[[Workload], int], available: int
) -> Option | None:
    try:
        size = peak(workload.changed(**changes))
    except YardError:
        return None  # this model or device has no such option: it is no way out, and nothing is lost by not naming it
    return Option(what, changes, size, size <= available)


def _changes(found: Estimate) -> Iterator[tuple[str, dict[str, Any]]]:
    asked = found.workload
    if asked.mode == "full":
        yield "train a LoRA adapter instead", {"mode": "lora"}
    if DTYPES[found.dtype] == 4 and asked.mode != "full":
        yield "16-bit weights", {"dtype": "bfloat16"}
    if asked.quantization is None and asked.mode != "full":
        yield "8-bit weights", {"quantization": "bnb-8bit"}
        yield "4-bit weights", {"quantization": "bnb-4bit"}
    if asked.training and not asked.gradient_checkpointing:
        yield "compute activations again", {"gradient_checkpointing": True}
    if asked.batch > 1:
        yield "one row at a time", {"batch": 1}
    if asked.length >= 256:
        yield f"rows of {asked.length // 4} tokens", {"length": asked.length // 4}
