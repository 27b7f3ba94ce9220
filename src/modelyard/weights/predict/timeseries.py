"""Series of numbers: their future, their class, or numbers about them.

A series is float values, (steps,) or (steps, channels); NaN is a value that was not observed, where the model knows such.
Knows no dates and no frequencies but the class of frequency that TimesFM asks for.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import batches, forward, refuse_windows, to_numpy
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.labels import rank
from modelyard.weights.predict.results import Classification, Forecast, Regression

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["ForecastOptions", "SeriesOptions", "classify", "forecast", "is_single", "regress"]


@dataclass(frozen=True, slots=True)
class ForecastOptions:
    """What `time-series-forecasting` takes.

    Attributes:
        steps: Steps of the future to give; None for as many as the model does.
        frequency: For TimesFM 1 and 2: 0 high (to daily), 1 medium (weekly, monthly), 2 low (quarterly and rarer).
    """

    steps: int | None = None
    frequency: int = 0

    def __post_init__(self) -> None:
        if self.frequency not in {0, 1, 2}:
            raise RequestError(f"`frequency` is {self.frequency!r}", hint="0, 1 or 2", field="frequency")


@dataclass(frozen=True, slots=True)
class SeriesOptions:
    """What `time-series-classification` takes.

    Attributes:
        top_k: Labels to give, the likeliest first; None for all.
    """

    top_k: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "top_k")


def is_single(inputs: Any) -> bool:
    """Whether `inputs` is one series: an array, or a list of numbers; a list of arrays or lists is many."""
    if not isinstance(inputs, list | tuple):
        return True
    return bool(inputs) and all(np.isscalar(value) for value in inputs)


def forecast(model: Model, rows: list[Any], options: PredictOptions) -> list[Forecast]:
    """The future of each series of one channel: mean, and quantiles by their level.

    Raises:
        RequestError: A wrong option, a row that is no series, or one longer than the model's context.
    """
    import torch

    chosen = options.take(ForecastOptions)
    refuse_windows(options)
    inner = core(model.model)
    config = inner.config
    horizon = int(config.horizon_length)
    steps = horizon if chosen.steps is None else chosen.steps
    if not 1 <= steps <= horizon:
        raise RequestError(f"`steps` is {steps}", hint=f"1 to {horizon}, the model's horizon", field="steps")
    series = [
        _hold(_read_series(value, row, 1), row, int(config.context_length), options)[:, 0]
        for row, value in enumerate(rows)
    ]
    for row, values in enumerate(series):
        if np.isnan(values).any():
            raise RequestError(
                f"row {row} has values that are missing (NaN)", hint="fill them in", field="inputs", row=row
            )
    first = config.model_type == "timesfm"
    found: list[Forecast] = []
    for batch in batches(series, options.batch_size):
        given = [torch.from_numpy(values).to(model.model.device, model.model.dtype) for values in batch]
        # What transformers decides by the lowest value of the whole batch is decided for each row below.
        more: dict[str, Any] = {"truncate_negative": False}
        if first:
            more["freq"] = [chosen.frequency] * len(batch)
        outputs = forward(model, {"past_values": given}, **more)
        means, full = to_numpy(outputs.mean_predictions), to_numpy(outputs.full_predictions)
        for values, mean, levels in zip(batch, means, full, strict=True):
            positive = not first and bool(config.infer_is_positive) and values.min() >= 0
            found.append(_make_forecast(mean[:steps], levels[:steps], config.quantiles, positive))
    return found


def _make_forecast(mean: Any, levels: Any, quantiles: Any, positive: bool) -> Forecast:
    if positive:
        mean, levels = np.maximum(mean, 0), np.maximum(levels, 0)
    # Column 0 of `levels` is the mean, the others are the quantiles in their order.
    by_level = {f"{level:g}": levels[:, at + 1].copy() for at, level in enumerate(quantiles)}
    return Forecast(mean.copy(), quantiles=by_level)


def classify(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification]:
    """The class of each series, with every class's probability.

    Raises:
        RequestError: A wrong option, a row that is no series of the model's channels and length.
    """
    chosen = options.take(SeriesOptions)
    names = core(model.model).config.id2label
    found = []
    for outputs, count in _run(model, rows, options):
        # PatchTST and PatchTSMixer name the same tensor differently.
        logits = outputs.get("prediction_logits", outputs.get("prediction_outputs"))
        for scores in logits.float().softmax(-1).tolist()[:count]:
            known = {at: names.get(at, f"LABEL_{at}") for at in range(len(scores))}
            found.append(rank(scores, known, chosen.top_k))
    return found


def regress(model: Model, rows: list[Any], options: PredictOptions) -> list[Regression]:
    """The numbers that the model gives for each series.

    Raises:
        RequestError: An option, a row that is no series of the model's channels and length.
    """
    options.take_none()
    found = []
    for outputs, _ in _run(model, rows, options):
        values = outputs["regression_outputs"]
        if isinstance(values, tuple):  # a distribution's parameters (loss "nll"): its mean
            values = core(model.model).distribution_output.distribution(values).mean
        found += [Regression(tuple(row)) for row in values.float().reshape(values.shape[0], -1).tolist()]
    return found


def _run(model: Model, rows: list[Any], options: PredictOptions) -> Any:
    """The outputs for each batch, with its number of rows."""
    import torch

    refuse_windows(options)
    config = core(model.model).config
    length = int(config.context_length)
    series = []
    for row, value in enumerate(rows):
        values = _hold(_read_series(value, row, int(config.num_input_channels)), row, length, options)
        if len(values) < length:
            raise RequestError(
                f"row {row} has {len(values)} steps and the model reads {length}",
                hint="give more",
                field="inputs",
                row=row,
            )
        missing = np.isnan(values)
        if missing.all(axis=0).any() or (missing.any() and _find_mask(model) is None):
            hint = None if _find_mask(model) else "this model knows no missing values: fill them in"
            what = "a channel without one value" if missing.all(axis=0).any() else "values that are missing (NaN)"
            raise RequestError(f"row {row} has {what}", hint=hint, field="inputs", row=row)
        series.append(values)
    mask = _find_mask(model)
    for batch in batches(series, options.batch_size):
        stacked = np.stack(batch)
        seen = ~np.isnan(stacked)
        tensors = {"past_values": torch.from_numpy(np.where(seen, stacked, 0)).float()}
        if mask is not None and not seen.all():
            tensors[mask] = torch.from_numpy(seen)
        yield forward(model, tensors), len(batch)


def _find_mask(model: Model) -> str | None:
    """What the model calls its mask of observed values; None where it has none."""
    taken = inspect.signature(core(model.model).forward).parameters
    return next((name for name in ("past_observed_mask", "observed_mask") if name in taken), None)


def _read_series(value: Any, row: int, channels: int) -> Any:
    """A series as float32 (steps, channels)."""
    try:
        values = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RequestError(f"row {row} is no series of numbers: {error}", field="inputs", row=row) from error
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not len(values) or values.shape[1] != channels:
        raise RequestError(
            f"row {row} has the shape {np.shape(value)}",
            hint=f"(steps, {channels})" + (" or (steps,)" if channels == 1 else ""),
            field="inputs",
            row=row,
        )
    if np.isinf(values).any():
        raise RequestError(f"row {row} has values that are infinite", field="inputs", row=row)
    return values


def _hold(values: Any, row: int, limit: int, options: PredictOptions) -> Any:
    if len(values) <= limit:
        return values
    if options.truncation == "error":
        raise RequestError(
            f"row {row} has {len(values)} steps and the model reads {limit}",
            hint='pass truncation="start" to read the latest ones',
            field="inputs",
            row=row,
            tokens=len(values),
            limit=limit,
        )
    return values[-limit:] if options.truncation == "start" else values[:limit]
