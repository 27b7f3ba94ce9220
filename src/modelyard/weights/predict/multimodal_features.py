"""Hidden states whatever a model reads: `feature-extraction` of texts, pictures or sounds, by what its preprocessor makes.

Knows which module extracts what; does nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    parts = {
        model.processor,
        *(getattr(model.processor, name, None) for name in ("image_processor", "feature_extractor")),
    }
    if model.tokenizer is None and any(hasattr(part, "sampling_rate") for part in parts):
        return list(audio_labels.extract(model, rows, options))
    if model.tokenizer is None and any(hasattr(part, "image_mean") or hasattr(part, "do_resize") for part in parts):
        return list(vision_features.extract(model, rows, options))
    return list(embeddings.extract(model, rows, options))
