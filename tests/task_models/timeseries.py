"""Tiny model folders for every time-series task: random weights, a context of 32 steps; they have no preprocessor.

`ARCHITECTURES[task][model type]` writes a folder as users have it; `MODELS[task]` is the first of them, `SAMPLES[task]` an
input of `predict` for it, and `REASONS[task]` why a task has none here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from task_models.text import config, heads, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = 32
SHAPE = {"context_length": STEPS, "patch_length": 8, "num_input_channels": 2}
LABELS = heads(["rising", "falling", "flat"])


def series(channels: int = 1, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    """A float32 series (steps, channels), or (steps,) for one channel: waves on a slope."""
    generator = np.random.default_rng(seed)
    at = np.arange(steps)[:, None]
    values = np.sin(at / generator.uniform(1, 5, channels)) + at * generator.uniform(-0.1, 0.1, channels) + 2
    return (values if channels > 1 else values[:, 0]).astype(np.float32)


def _timesfm(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        more = {"head_dim": 8, "patch_length": 8, "context_length": STEPS, "horizon_length": 8}
        if kind == "TimesFm2_5":
            more |= {"num_key_value_heads": 4, "output_quantile_len": 16, "max_position_embeddings": STEPS}
        return save(folder, f"{kind}ModelForPrediction", config(kind, **shape, **more))

    return write


def _patchtst(name: str, **values: Any) -> Callable[[Path], Path]:
    shape = {"d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "patch_stride": 8}
    return lambda folder: save(folder, name, config("PatchTST", **SHAPE, **shape, **values))


def _patchtsmixer(name: str, **values: Any) -> Callable[[Path], Path]:
    shape = {"d_model": 8, "num_layers": 2, "patch_stride": 8}
    return lambda folder: save(folder, name, config("PatchTSMixer", **SHAPE, **shape, **values))


ARCHITECTURES: dict[str, dict[str, Callable[[Path], Path]]] = {
    "time-series-forecasting": {"timesfm": _timesfm("TimesFm"), "timesfm2_5": _timesfm("TimesFm2_5")},
    "time-series-classification": {
        "patchtst": _patchtst("PatchTSTForClassification", num_targets=3, **LABELS),
        "patchtsmixer": _patchtsmixer("PatchTSMixerForTimeSeriesClassification", num_targets=3, **LABELS),
    },
    "time-series-regression": {
        "patchtst": _patchtst("PatchTSTForRegression", num_targets=2),
        "patchtst-nll": _patchtst("PatchTSTForRegression", num_targets=2, loss="nll", distribution_output="normal"),
        "patchtsmixer": _patchtsmixer("PatchTSMixerForRegression", num_targets=2),
    },
}

MODELS: dict[str, Callable[[Path], Path]] = {task: next(iter(row.values())) for task, row in ARCHITECTURES.items()}
"""Task to what writes a tiny model folder for it."""

SAMPLES: dict[str, Any] = {
    "time-series-forecasting": series(),
    "time-series-classification": series(2),
    "time-series-regression": series(2),
}
"""Task to an input of `predict`."""

REASONS: dict[str, str] = {}
"""Task to why no model of it can be made here."""
