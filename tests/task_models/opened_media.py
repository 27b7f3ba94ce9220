"""The tiny models of images, sounds and several kinds, loaded once for each test process by `load`."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.weights.load import load
from task_models import audio, multimodal, vision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model

__all__ = ["ARCHITECTURES", "SAMPLES", "assert_close", "assert_rows_alone", "open_media", "pipeline_of"]

ARCHITECTURES = {**vision.ARCHITECTURES, **audio.ARCHITECTURES, **multimodal.ARCHITECTURES}
SAMPLES = {**vision.SAMPLES, **audio.SAMPLES, **multimodal.SAMPLES}


@cache
def open_media(task: str, kind: str | None = None) -> Model:
    """The tiny model of a task, of a model type (by default the task's first)."""
    row = ARCHITECTURES[task]
    with tempfile.TemporaryDirectory() as folder:
        return load(row[kind or next(iter(row))](Path(folder) / "model"), task=task)


def pipeline_of(task: str, model: Model, **values: Any) -> Any:
    """Transformers' own pipeline over the same weights and the same preprocessors."""
    import transformers

    whole = model.processor
    parts: dict[str, Any] = {}
    for name in ("tokenizer", "image_processor", "feature_extractor"):
        part = getattr(whole, name, None)
        if part is not None:
            parts[name] = part
    if not parts:
        kind = "feature_extractor" if hasattr(whole, "sampling_rate") else "image_processor"
        parts[kind] = whole
    make: Any = transformers.pipeline
    return make(task, model=model.model, **{**parts, **values})


def assert_close(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    """Two results are the same within `tolerance`: fields, lists and arrays by turns; texts and labels exactly."""
    assert type(one) is type(other)
    if hasattr(one, "__dataclass_fields__"):
        for name in one.__dataclass_fields__:
            assert_close(getattr(one, name), getattr(other, name), tolerance)
    elif isinstance(one, np.ndarray):
        assert one.shape == other.shape
        if one.dtype.kind == "f":
            scale = max(1.0, float(np.abs(one).max())) if one.size else 1.0
            np.testing.assert_allclose(one, other, atol=tolerance * scale, rtol=0)
        else:
            np.testing.assert_array_equal(one, other)
    elif isinstance(one, float):
        assert abs(one - other) <= tolerance * max(1.0, abs(one))
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_close(mine, theirs, tolerance)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name], tolerance)
    else:
        assert one == other


def assert_rows_alone(model: Model, rows: Sequence[Any], tolerance: float = 1e-5, **options: Any) -> list[Any]:
    """Each row of a batch is what it is alone; the batch's results."""
    together = model.predict(list(rows), **options)
    assert len(together) == len(rows)
    for row, found in zip(rows, together, strict=True):
        assert_close(found, model.predict(row, **options), tolerance)
    return list(together)
