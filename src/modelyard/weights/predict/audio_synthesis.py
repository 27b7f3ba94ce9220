"""Texts spoken: to a waveform, or to the spectrogram that a vocoder makes one of.

These models draw random numbers (durations, noise, dropout that stays on), so each row is made alone and from the same
seed: it is the same sound in every batch. torch's generator is the process's; it is set under a lock and put back.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.batching import forward, to_device, to_numpy
from modelyard.weights.predict.encoding import check_text, core, find_tokenizer
from modelyard.weights.predict.media_results import Spectrogram, Speech
from modelyard.weights.predict.vision_inputs import generating, preparing, read_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["SpeakOptions", "draw", "seeded", "speak"]

_DRAWING = threading.Lock()


@dataclass(frozen=True, slots=True)
class SpeakOptions:
    """What `text-to-audio` and `text-to-spectrogram` take.

    Attributes:
        seed: Of everything that is drawn.
        max_new_tokens: For models that write their sound as tokens; None leaves it to the checkpoint.
    """

    seed: int = 0
    max_new_tokens: int | None = None


def speak(model: Model, rows: list[Any], options: PredictOptions) -> list[Speech]:
    """The sound of each text.

    Raises:
        RequestError: A wrong option, or a row that is no text.
        ModelError: The model makes no waveform, or does not say its rate.
    """
    chosen = options.take(SpeakOptions)
    found = []
    for row, value in enumerate(rows):
        inputs = _encode(model, check_text(value, row), row)
        with seeded(chosen.seed):
            made = _generate(model, inputs, chosen) if core(model.model).can_generate() else forward(model, inputs)
        wave = made if hasattr(made, "shape") else getattr(made, "waveform", None)
        if wave is None:
            wave = getattr(made, "sequences", None)
        if wave is None:
            wave = getattr(made, "audio", None)
        if isinstance(wave, list):
            wave = wave[0]
        if wave is None or not wave.is_floating_point():
            raise ModelError(f"`{model.folder}` makes no waveform but {type(made).__name__}")
        found.append(Speech(to_numpy(wave.flatten()), _find_rate(model)))
    return found


def draw(model: Model, rows: list[Any], options: PredictOptions) -> list[Spectrogram]:
    """The log-mel spectrogram of each text; a row is a text, or `{"text", "speaker"}` with the speaker's vector.

    Raises:
        RequestError: A wrong option, or a row that is none of these.
    """
    chosen = options.take(SpeakOptions)
    found = []
    for row, value in enumerate(rows):
        fields = read_fields(value if isinstance(value, dict) else {"text": value}, row, ["text"], ["speaker"])
        inputs = _encode(model, check_text(fields["text"], row), row)
        with seeded(chosen.seed):
            if hasattr(core(model.model), "generate_speech"):
                made = _speak_as(model, inputs, fields.get("speaker"), row)
            else:
                made = forward(model, inputs).spectrogram[0]
        found.append(Spectrogram(to_numpy(made)))
    return found


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch from `seed` inside the block; the caller's go on behind it as if nothing had been drawn."""
    import torch

    with _DRAWING, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _encode(model: Model, text: str, row: int) -> dict[str, Any]:
    preprocessor = model.processor if core(model.model).config.model_type in ("bark", "csm") else find_tokenizer(model)
    with preparing(model, row):
        made = preprocessor(text, return_tensors="pt")
    inputs = dict(made)
    if inputs["input_ids"].shape[-1] == 0:
        raise RequestError(f"row {row} has no tokens", hint="give a text that is not empty", field="inputs", row=row)
    _check_room(model, inputs["input_ids"].shape[-1], row)
    return {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}


def _check_room(model: Model, tokens: int, row: int) -> None:
    most = getattr(core(model.model).config, "max_text_positions", None)
    if isinstance(most, int) and tokens > most:
        raise RequestError(
            f"row {row} has {tokens} tokens and the model reads at most {most}",
            hint="give a shorter text, or its sentences as rows",
            field="inputs",
            row=row,
        )


def _generate(model: Model, inputs: dict[str, Any], chosen: SpeakOptions) -> Any:
    more: dict[str, Any] = {} if chosen.max_new_tokens is None else {"max_new_tokens": chosen.max_new_tokens}
    if core(model.model).config.model_type == "csm":
        more["output_audio"] = True
    with generating(model):
        return core(model.model).generate(**to_device(model, inputs), **more)


def _speak_as(model: Model, inputs: dict[str, Any], speaker: Any, row: int) -> Any:
    import torch

    inner = core(model.model)
    size = inner.config.speaker_embedding_dim
    vector = torch.zeros(size) if speaker is None else torch.as_tensor(speaker, dtype=torch.float32).flatten()
    if vector.numel() != size:
        raise RequestError(
            f"row {row}: `speaker` has {vector.numel()} numbers, and the model takes {size}", field="inputs", row=row
        )
    given = to_device(model, {**inputs, "speaker_embeddings": vector[None]})
    with generating(model):
        return inner.generate_speech(**given)


def _find_rate(model: Model) -> int:
    """Samples per second of what the model makes, from its configurations or its processor."""
    inner = core(model.model)
    places = [
        getattr(inner, "generation_config", None),
        inner.config,
        getattr(inner.config, "codec_config", None),
        getattr(inner.config, "audio_encoder", None),
        getattr(inner.config, "vocoder_config", None),
        getattr(model.processor, "feature_extractor", None),
    ]
    for place in places:
        for name in ("sample_rate", "sampling_rate"):
            rate = getattr(place, name, None)
            if isinstance(rate, int) and rate > 0:
                return rate
    raise ModelError(f"`{model.folder}` does not say how many samples per second it makes")
