"""Labels of sounds, labels of their frames (who speaks when), and a vector that tells speakers apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.weights.predict.audio_inputs import prepare_sound, read_sound
from modelyard.weights.predict.batching import to_numpy
from modelyard.weights.predict.bounds import check_share
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.labels import LabelOptions
from modelyard.weights.predict.media_results import FrameLabels, Span
from modelyard.weights.predict.results import Classification, Embedding, Features, Regression
from modelyard.weights.predict.vision_inputs import Prepared, run_batches
from modelyard.weights.predict.vision_labels import decode_labels

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["FrameOptions", "classify", "embed_speakers", "extract", "label_frames"]


@dataclass(frozen=True, slots=True)
class FrameOptions:
    """What `audio-frame-classification` takes.

    Attributes:
        threshold: The score at which a label holds.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.threshold, "threshold")


def classify(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification | Regression]:
    """The labels of each sound.

    Raises:
        RequestError: A wrong option, or a row that is no sound.
    """
    chosen = options.take(LabelOptions)
    return run_batches(
        model,
        _prepare(model, rows),
        options.batch_size,
        lambda outputs, _batch: decode_labels(model, outputs, chosen),
    )


def label_frames(model: Model, rows: list[Any], options: PredictOptions) -> list[FrameLabels]:
    """The labels of each frame of each sound; labels may hold at once, as two speakers talk at once.

    Raises:
        RequestError: A wrong option, or a row that is no sound.
    """
    chosen = options.take(FrameOptions)
    names = core(model.model).config.id2label

    def decode(outputs: Any, batch: list[Prepared]) -> list[FrameLabels]:
        found = []
        for at, item in enumerate(batch):
            scores = to_numpy(outputs.logits[at].float().sigmoid())
            labels = tuple(str(names[place]) for place in range(scores.shape[1]))
            found.append(FrameLabels(scores, labels, _spans(scores, labels, item.note, chosen.threshold)))
        return found

    return run_batches(model, _prepare(model, rows), options.batch_size, decode)


def embed_speakers(model: Model, rows: list[Any], options: PredictOptions) -> list[Embedding]:
    """The x-vector of each sound: those of one speaker point the same way.

    Raises:
        RequestError: An option, or a row that is no sound.
    """
    options.take_none()

    def decode(outputs: Any, _batch: list[Prepared]) -> list[Embedding]:
        return [Embedding(to_numpy(one)) for one in outputs.embeddings]

    return run_batches(model, _prepare(model, rows), options.batch_size, decode)


def extract(model: Model, rows: list[Any], options: PredictOptions) -> list[Features]:
    """The last hidden states of each sound, (frames, hidden): what `feature-extraction` is for models of sounds.

    Raises:
        RequestError: An option, or a row that is no sound.
    """
    options.take_none()
    inner = core(model.model)
    if getattr(inner.config, "is_encoder_decoder", False):
        return _encode(model, rows)

    def decode(outputs: Any, _batch: list[Prepared]) -> list[Features]:
        return [Features(to_numpy(one)) for one in outputs.last_hidden_state]

    return run_batches(model, _prepare(model, rows), options.batch_size, decode)


def _encode(model: Model, rows: list[Any]) -> list[Features]:
    """What the encoder alone hears, of models that have a decoder for text too (Whisper)."""
    from modelyard.weights.predict.batching import running, to_device

    found = []
    for item in _prepare(model, rows):
        name = core(model.model).main_input_name
        with running(model):
            made = core(model.model).get_encoder()(**to_device(model, {name: item.tensors[name]}))
        found.append(Features(to_numpy(made.last_hidden_state[0])))
    return found


def _prepare(model: Model, rows: list[Any]) -> list[Prepared]:
    items = []
    for row, value in enumerate(rows):
        sound = read_sound(model, value, row)
        items.append(prepare_sound(model, sound.samples, row, sound.seconds))
    return items


def _spans(scores: Any, labels: tuple[str, ...], seconds: float, threshold: float) -> tuple[Span, ...]:
    """Stretches of frames in which a label's score stays at or above the threshold."""
    import numpy as np

    step = seconds / len(scores)
    found = []
    for place, label in enumerate(labels):
        held = np.flatnonzero(np.diff(np.concatenate([[0], (scores[:, place] >= threshold).astype(np.int8), [0]])))
        for start, end in zip(held[::2].tolist(), held[1::2].tolist(), strict=True):
            found.append(Span(label, start * step, end * step, float(scores[start:end, place].mean())))
    return tuple(sorted(found, key=lambda span: (span.start, span.end)))
