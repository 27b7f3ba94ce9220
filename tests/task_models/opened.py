"""The tiny models of `task_models`, loaded once for each test process: tests that change a model load their own."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import transformers

from modelyard.weights.load import load
from modelyard.weights.model import Model
from task_models import text, timeseries

__all__ = ["open_tiny", "pipeline"]

ARCHITECTURES = {**text.ARCHITECTURES, **timeseries.ARCHITECTURES}


@cache
def open_tiny(task: str, kind: str | None = None) -> Model:
    """The tiny model of a task, of a model type (by default the task's first), loaded by `load`."""
    row = ARCHITECTURES[task]
    with tempfile.TemporaryDirectory() as folder:
        made = row[kind or next(iter(row))](Path(folder) / "model")
        return load(made, task=task)


def pipeline(task: str, model: Model, **values: Any) -> Any:
    """Transformers' own pipeline over the same weights and the same tokenizer."""
    make: Any = transformers.pipeline
    return make(task, model=model.model, tokenizer=model.processor, **values)
