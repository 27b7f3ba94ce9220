"""Series: no pipeline of transformers, so the models are called here by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import RequestError
from modelyard.weights.predict import predict
from task_models.opened import open_tiny
from task_models.timeseries import ARCHITECTURES, STEPS, series

FORECAST = "time-series-forecasting"
CLASSIFY = "time-series-classification"
REGRESS = "time-series-regression"


@pytest.mark.parametrize("kind", list(ARCHITECTURES[FORECAST]))
def test_forecasts_are_the_models(kind: str) -> None:
    """Mean and quantiles are what the model gives for a series alone, in a batch of different lengths too."""
    model = open_tiny(FORECAST, kind)
    rows = [series(), series(steps=20, seed=1), series(seed=2) - 10]
    for row, found in zip(rows, predict(model, rows), strict=True):
        with torch.no_grad():
            wanted = model.model(past_values=[torch.from_numpy(row)])
        np.testing.assert_allclose(found.mean, wanted.mean_predictions[0].numpy(), atol=1e-5)
        assert list(found.quantiles) == [f"{level:g}" for level in model.model.config.quantiles]
        for at, values in enumerate(found.quantiles.values()):
            np.testing.assert_allclose(values, wanted.full_predictions[0, :, at + 1].numpy(), atol=1e-5)


def test_a_row_below_zero_does_not_change_its_neighbours() -> None:
    """TimesFM 2.5 cuts forecasts off at 0 if the whole batch is positive; here each series decides for itself alone."""
    model = open_tiny(FORECAST, "timesfm2_5")
    positive, negative = series(), series() - 10
    alone = predict(model, positive)
    beside = predict(model, [positive, negative])[0]
    np.testing.assert_allclose(beside.mean, alone.mean, atol=1e-5)
    assert alone.mean.min() == 0
    both = model.model(past_values=[torch.from_numpy(positive), torch.from_numpy(negative)])
    assert both.mean_predictions[0].min() < 0  # what transformers says of the same series beside a negative one


def test_steps_and_frequency() -> None:
    """`steps` cuts the horizon, `frequency` reaches the model, and neither can be what the model has not."""
    model = open_tiny(FORECAST)
    whole = predict(model, series())
    np.testing.assert_array_equal(predict(model, series(), steps=3).mean, whole.mean[:3])
    with torch.no_grad():
        wanted = model.model(past_values=[torch.from_numpy(series())], freq=[2]).mean_predictions[0]
    np.testing.assert_allclose(predict(model, series(), frequency=2).mean, wanted.numpy(), atol=1e-5)
    for steps in (0, 9):
        with pytest.raises(RequestError, match="`steps`"):
            predict(model, series(), steps=steps)
    with pytest.raises(RequestError, match="`frequency`"):
        predict(model, series(), frequency=3)


@pytest.mark.parametrize("kind", list(ARCHITECTURES[CLASSIFY]))
def test_classes_are_the_models(kind: str) -> None:
    """Probabilities are the softmax of the model's logits, by the names of the checkpoint."""
    model = open_tiny(CLASSIFY, kind)
    rows = [series(2), series(2, seed=1)]
    for row, found in zip(rows, predict(model, rows), strict=True):
        with torch.no_grad():
            outputs = model.model(past_values=torch.from_numpy(row)[None])
        wanted = outputs[0][0].softmax(-1).tolist()
        scores = {label.label: label.score for label in found.labels}
        assert [scores[model.config.id2label[at]] for at in range(3)] == pytest.approx(wanted, abs=1e-5)
        assert found.label == model.config.id2label[int(np.argmax(wanted))]


@pytest.mark.parametrize("kind", list(ARCHITECTURES[REGRESS]))
def test_numbers_are_the_models(kind: str) -> None:
    """Numbers are the model's outputs; of a model that gives a distribution, its mean."""
    model = open_tiny(REGRESS, kind)
    rows = [series(2), series(2, seed=1)]
    for row, found in zip(rows, predict(model, rows), strict=True):
        with torch.no_grad():
            outputs = model.model(past_values=torch.from_numpy(row)[None]).regression_outputs
        # A normal distribution's first parameter is its mean.
        wanted = outputs[0] if isinstance(outputs, tuple) else outputs
        assert list(found.values) == pytest.approx(wanted.flatten().tolist(), abs=1e-5)


@pytest.mark.parametrize(("task", "kind"), [(CLASSIFY, "patchtst"), (REGRESS, "patchtst"), (CLASSIFY, "patchtsmixer")])
def test_missing_values_are_masked(task: str, kind: str) -> None:
    """NaN is a value that was not observed, where the model knows such: it gets a mask, and its neighbours in a batch none."""
    model = open_tiny(task, kind)
    row = series(2)
    row[3, 0] = np.nan
    if kind == "patchtsmixer":
        with pytest.raises(RequestError, match="row 0"):
            predict(model, row)
        return
    seen = torch.from_numpy(~np.isnan(row))[None]
    filled = torch.from_numpy(np.nan_to_num(row))[None]
    with torch.no_grad():
        wanted = model.model(past_values=filled, past_observed_mask=seen)[0][0]
    found = predict(model, [row, series(2)])
    if task == REGRESS:
        assert list(found[0].values) == pytest.approx(wanted.tolist(), abs=1e-5)
    else:
        assert found[0].score == pytest.approx(wanted.softmax(-1).max().item(), abs=1e-5)
        assert found[1].score == pytest.approx(predict(model, series(2)).score, abs=1e-5)


def test_long_series_are_refused_or_cut() -> None:
    """Nothing is cut unasked, where TimesFM forgets the beginning silently; `start` keeps the latest steps."""
    model = open_tiny(FORECAST)
    long = series(steps=STEPS + 10)
    with pytest.raises(RequestError, match=f"row 0 has {STEPS + 10} steps and the model reads {STEPS}"):
        predict(model, long)
    kept = predict(model, long, truncation="start")
    np.testing.assert_allclose(kept.mean, predict(model, long[-STEPS:]).mean, atol=1e-5)
    end = predict(model, long, truncation="end")
    np.testing.assert_allclose(end.mean, predict(model, long[:STEPS]).mean, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (FORECAST, np.array([1.0, np.nan, 2.0])),
        (FORECAST, np.array([1.0, np.inf, 2.0])),
        (FORECAST, "a text"),
        (FORECAST, np.zeros((4, 2))),
        (FORECAST, np.zeros(0)),
        (CLASSIFY, np.zeros((STEPS, 3), dtype=np.float32)),
        (CLASSIFY, np.zeros((STEPS - 1, 2), dtype=np.float32)),
        (REGRESS, np.full((STEPS, 2), np.nan, dtype=np.float32)),
    ],
)
def test_rows_that_are_no_series_are_named(task: str, row: Any) -> None:
    """Shapes, lengths and values that the model cannot read are errors that name the row."""
    with pytest.raises(RequestError, match="row 1"):
        predict(open_tiny(task), [series() if task == FORECAST else series(2), row])


def test_a_list_of_numbers_is_one_series() -> None:
    """A list of numbers is one input; a list of lists is many."""
    model = open_tiny(FORECAST)
    values = series().tolist()
    one, many = predict(model, values), predict(model, [values, values])
    np.testing.assert_array_equal(one.mean, many[1].mean)


def test_fewer_labels_than_one_are_refused() -> None:
    """`top_k=0` is an error that names the option."""
    with pytest.raises(RequestError, match="`top_k` is 0"):
        predict(open_tiny(CLASSIFY), series(2), top_k=0)
