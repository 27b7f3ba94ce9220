"""Sounds become batches of tensors: read at the model's rate, run through its feature extractor, and batched by shape.

Each sound is prepared alone and only tensors of one shape share a batch: group norms, convolutions and relative positions
carry the silence behind a shorter sound into it, and a result would depend on its neighbours.

Knows sounds and feature extractors; knows no task and no result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.media import Audio, read_audio
from modelyard.weights.predict.vision_inputs import Prepared, find_part, named_row, preparing, tensors_of

if TYPE_CHECKING:
    from modelyard.weights.model import Model

__all__ = ["find_rate", "prepare_sound", "read_sound"]


def find_rate(model: Model) -> int:
    """Samples per second that the model was made for.

    Raises:
        ModelError: Its preprocessor does not say.
    """
    extractor = find_part(model, "feature_extractor")
    rate = getattr(extractor, "sampling_rate", None)
    if not isinstance(rate, int) or rate < 1:
        raise ModelError(
            f"the preprocessor of `{model.folder}` ({type(extractor).__name__}) says no sampling rate",
            code="no_preprocessor",
            hint="it needs the `sampling_rate` of a feature extractor in preprocessor_config.json",
        )
    return rate


def read_sound(model: Model, value: Any, row: int) -> Audio:
    """The sound of a row at the model's rate.

    Raises:
        RequestError: No sound; the message names the row.
    """
    with named_row(row):
        return read_audio(value, find_rate(model))


def prepare_sound(model: Model, samples: Any, row: int, note: Any = None, **more: Any) -> Prepared:
    """Samples at the model's rate as the model takes them, alone; `more` goes to its feature extractor."""
    extractor = find_part(model, "feature_extractor")
    with preparing(model, row):
        made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt", **more)
    return Prepared(row, tensors_of(made), (1, len(samples)), note)
