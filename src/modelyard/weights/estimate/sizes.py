"""What one step of a model holds, as one value: of a run on the meta device, or of a closed form. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Profile"]


@dataclass(frozen=True, slots=True)
class Profile:
    """What one step holds, in bytes; `peak` is the most beyond weights and adapter.

    Attributes:
        parameters: Elements of the model, tied ones once.
        trainable: Elements that are trained.
        weights: Parameters and buffers in the dtype of the workload.
        linear: Elements of weights of linear layers outside the output layer, and how many rows they have.
        largest: Elements of the largest of them.
        kv_cache: The cache's tensors at the end.
        gradients: Of trained parameters.
        optimizer: States of the optimizer.
        adapter: LoRA's parameters.
        peak: Everything above that is held at once, at most.
        heap: What of a step's blocks below `machine.HEAP_BLOCK` is held at once, at most.
        events: Allocations of the step in their order, see `Tracker.events`; none of a closed form.
        marks: How many of them there were when the forward and when the backward pass of training ended.
        closed: Whether it comes from a closed form.
    """

    parameters: int
    trainable: int
    weights: int
    linear: tuple[int, int]
    largest: int
    kv_cache: int
    gradients: int
    optimizer: int
    adapter: int
    peak: int
    heap: int
    events: Sequence[tuple[int, int]] = ()
    marks: tuple[int, ...] = ()
    closed: bool = False
