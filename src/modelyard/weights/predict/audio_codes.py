"""Sounds as tokens of a neural codec, and back: an input is a sound, or the `Codes` of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.predict.audio_inputs import find_rate, prepare_sound, read_sound
from modelyard.weights.predict.batching import running, to_device, to_numpy
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.media_results import Codes, Speech

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["tokenize"]


def tokenize(model: Model, rows: list[Any], options: PredictOptions) -> list[Codes | Speech]:
    """The codes of each sound; of a row that is `Codes`, the sound.

    Raises:
        RequestError: An option, or a row that is neither.
        ModelError: The model has no codes.
    """
    options.take_none()
    return [
        _speak(model, value) if isinstance(value, Codes) else _encode(model, value, row)
        for row, value in enumerate(rows)
    ]


def _encode(model: Model, value: Any, row: int) -> Codes:
    # Alone: a codec pads a batch to its longest sound, and its convolutions hear the padding.
    sound = read_sound(model, value, row)
    item = prepare_sound(model, sound.samples, row)
    with running(model):
        made = core(model.model).encode(**to_device(model, {"input_values": item.tensors["input_values"]}))
    codes = getattr(made, "audio_codes", None)
    if codes is None:
        raise ModelError(f"`{model.folder}` ({type(made).__name__}) gives no codes")
    return Codes(to_numpy(codes.reshape(-1, codes.shape[-1]).long()), find_rate(model))


def _speak(model: Model, codes: Codes) -> Speech:
    import torch

    with running(model):
        given = torch.from_numpy(codes.values)[None].to(model.model.device)
        made = core(model.model).decode(audio_codes=given).audio_values
    return Speech(to_numpy(made.flatten()), codes.rate)
