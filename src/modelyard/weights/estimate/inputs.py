"""Inputs of any model class, by its configuration, on the meta device: shapes and types, no values.

Knows what the kinds of models take (text, pictures, sound); knows no weights.
"""

from __future__ import annotations

import inspect
from typing import Any

from modelyard.errors import ModelError

__all__ = ["make_inputs", "make_labels"]

_IMAGE = 224  # pixels a side, where neither the configuration nor a preprocessor says
_SAMPLES = 160_000  # ten seconds at 16 kHz: what a model that takes any length of sound is estimated for


def make_inputs(model: Any, batch: int, length: int, *, targets: int = 1) -> dict[str, Any]:
    """Inputs of `model.forward`: (batch, length) of tokens, or pictures and sound of the size that the model takes.

    Args:
        model: A model of transformers on the meta device.
        batch: Rows.
        length: Tokens of a row; of no effect for a model that takes pictures or sound of one size.
        targets: Tokens that the decoder of an encoder-decoder is given.

    Raises:
        ModelError: `no_sample_input`: it is not known what this class takes.
    """
    import torch

    config, taken = model.config, inspect.signature(model.forward).parameters
    made: dict[str, Any] = {}
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main in _MAKERS:
        made[main] = _MAKERS[main](model, batch, length)
    elif main in {"input_ids", "decoder_input_ids"} or "input_ids" in taken:
        made["input_ids"] = _tokens(batch, length)
    else:
        raise ModelError(
            f"`{type(model).__name__}` takes `{main}`, of which no sample can be made here", code="no_sample_input"
        )
    dual = hasattr(config, "text_config") and hasattr(config, "vision_config") and not _writes(model)
    if dual and "pixel_values" in taken and "input_ids" in taken:  # a pair of encoders, such as CLIP: both are run
        made.setdefault("pixel_values", _pixels(model, batch, length))
        made.setdefault("input_ids", _tokens(batch, _limit(config.text_config, length)))
    if "decoder_input_ids" in taken and getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = _tokens(batch, targets)
    if "bbox" in taken and "input_ids" in made:
        made["bbox"] = torch.empty((*made["input_ids"].shape, 4), dtype=torch.long, device="meta")
    return made


def make_labels(model: Any, batch: int, length: int) -> dict[str, Any]:
    """The labels that make `forward` compute its loss; empty where it is not known which: then the outputs' sum is one."""
    import torch

    name, config = type(model).__name__, model.config
    taken = inspect.signature(model.forward).parameters

    def whole(*shape: int) -> Any:
        return torch.empty(shape, dtype=torch.long, device="meta")

    if "QuestionAnswering" in name and "start_positions" in taken:
        return {"start_positions": whole(batch), "end_positions": whole(batch)}
    if "labels" not in taken:
        return {}
    if name.endswith(("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")):
        if getattr(config, "num_labels", 2) == 1:
            return {"labels": torch.empty((batch,), dtype=model.dtype, device="meta")}
        return {"labels": whole(batch)}
    if name.endswith(("ForTokenClassification", "ForMaskedLM")) or _writes(model):
        return {"labels": whole(batch, length)}
    return {}


def _writes(model: Any) -> bool:
    """Whether it makes text: then its labels are tokens."""
    can: Any = getattr(model, "can_generate", None)
    return bool(can and can())


def _tokens(batch: int, length: int) -> Any:
    import torch

    return torch.empty((batch, length), dtype=torch.long, device="meta")


def _limit(config: Any, length: int) -> int:
    return min(length, int(getattr(config, "max_position_embeddings", length) or length))


def _pixels(model: Any, batch: int, _length: int) -> Any:
    import torch

    config = model.config
    vision = getattr(config, "vision_config", None) or config
    side = getattr(vision, "image_size", None) or _IMAGE
    height, width = (side, side) if isinstance(side, int) else tuple(side)[-2:]
    channels = getattr(vision, "num_channels", None) or 3
    shape = [batch, channels, height, width]
    if getattr(vision, "num_frames", None) and "Video" in type(model).__name__ + str(model.config.model_type).title():
        shape.insert(1, vision.num_frames)
    return torch.empty(shape, dtype=model.dtype, device="meta")


def _features(model: Any, batch: int, length: int) -> Any:
    import torch

    config = model.config
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", None) or 80
    frames = getattr(config, "max_source_positions", None) or length
    if config.model_type == "whisper":
        return torch.empty((batch, bins, 2 * frames), dtype=model.dtype, device="meta")
    return torch.empty((batch, frames, bins), dtype=model.dtype, device="meta")


def _samples(model: Any, batch: int, _length: int) -> Any:
    import torch

    config = model.config
    if getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None) and "patch_size" in vars(config):
        return torch.empty((batch, config.max_length, config.num_mel_bins), dtype=model.dtype, device="meta")
    return torch.empty((batch, _SAMPLES), dtype=model.dtype, device="meta")


_MAKERS: dict[str, Any] = {
    "pixel_values": _pixels,
    "pixel_values_videos": _pixels,
    "input_features": _features,
    "input_values": _samples,
}
