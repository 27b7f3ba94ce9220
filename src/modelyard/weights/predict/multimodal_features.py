"""Hidden states whatever a model reads: `feature-extraction` of texts, pictures or sounds, by what the model takes first.

Knows which module extracts what; does nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.weights.predict.encoding import core

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["extract"]


def extract(model: Model, rows: list[Any], options: PredictOptions) -> list[Any]:
    """`embeddings.extract` for models of texts, `vision_features.extract` of pictures, `audio_labels.extract` of sounds.

    Raises:
        RequestError: As they do.
    """
    from modelyard.weights.predict import audio_labels, embeddings, vision_features

    first = core(model.model).main_input_name
    if first in ("input_features", "input_values"):
        return list(audio_labels.extract(model, rows, options))
    if first == "pixel_values":
        return list(vision_features.extract(model, rows, options))
    return list(embeddings.extract(model, rows, options))
