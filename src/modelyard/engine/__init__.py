"""Engines: many requests on one model at once.

`base` says what any engine takes and gives; `torch_engine` is the default one, over transformers' models; `scheduler`
decides who runs, without a tensor in sight. An engine knows a loaded model; it knows no HTTP, no reference, no store.
"""

from __future__ import annotations

from modelyard.engine.base import (
    Answer,
    Capabilities,
    Engine,
    EngineRequest,
    Event,
    Failed,
    Finished,
    Stats,
    Token,
    Usage,
)
from modelyard.engine.scheduler import Plan, Scheduler
from modelyard.engine.torch_engine import TorchEngine

__all__ = [
    "Answer",
    "Capabilities",
    "Engine",
    "EngineRequest",
    "Event",
    "Failed",
    "Finished",
    "Plan",
    "Scheduler",
    "Stats",
    "Token",
    "TorchEngine",
    "Usage",
]
