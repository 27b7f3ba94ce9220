"""Batches of pictures, of sounds, and of questions about them, by the model's own preprocessor or by its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.weights.parity.batches import Batch, pad_rows
from modelyard.weights.parity.texts import allowed_ids, decoder_ids, make_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelyard.weights.tasks import TaskInfo

__all__ = ["make_conversations", "make_pictures", "make_sounds"]

_SECONDS = (0.2, 0.35, 0.5)


def make_pictures(info: TaskInfo, processor: Any, config: Any, random: np.random.Generator) -> list[Batch]:
    """One picture, and two; without a preprocessor, seeded pixels of the size that the configuration says."""
    if processor is None:
        shape = _picture_shape(config)
        return [
            Batch({"pixel_values": random.standard_normal((rows, *shape)).astype(np.float32)}, None, name)
            for rows, name in ((1, "picture"), (2, "two pictures"))
        ]
    part = getattr(processor, "image_processor", None) or processor
    shown = [random.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(3)]
    given: list[tuple[str, Any]] = [("picture", shown[:1]), ("two pictures", shown[1:])]
    if info.name == "keypoint-matching":
        given = [("pair of pictures", [shown[:2]])]
    if info.modality == "video":
        frames = int(getattr(config, "num_frames", None) or 8)
        given = [("video", [list(random.integers(0, 256, (frames, 48, 64, 3), np.uint8))])]
    return [Batch(_arrays(part(images=images, return_tensors="pt")), None, name) for name, images in given]


def _picture_shape(config: Any) -> tuple[int, ...]:
    part = getattr(config, "vision_config", None) or config
    side = getattr(part, "image_size", None) or 32
    height, width = (side, side) if isinstance(side, int) else tuple(side)[-2:]
    return (int(getattr(part, "num_channels", None) or 3), int(height), int(width))


def make_sounds(_info: TaskInfo, processor: Any, config: Any, random: np.random.Generator) -> list[Batch]:
    """Sounds of three lengths, and all of them padded."""
    part = getattr(processor, "feature_extractor", None) or processor
    rate = int(getattr(part, "sampling_rate", 16_000))
    # Whisper's encoder takes sounds of one length, and its extractor fills them up to it.
    padding: Any = "max_length" if hasattr(part, "chunk_length") else True
    waves = [random.standard_normal(int(rate * seconds)).astype(np.float32) * 0.1 for seconds in _SECONDS]
    given = [(f"{seconds} s", [wave]) for seconds, wave in zip(_SECONDS, waves, strict=True)]
    given.append(("padded", waves[::-1]))
    found = []
    for name, rows in given:
        inputs = _plain_sounds(rows) if part is None else {}
        inputs = inputs or _arrays(part(rows, sampling_rate=rate, padding=padding, return_tensors="pt"))
        kept = _frames(config, inputs)
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = decoder_ids(config, len(rows), random, allowed_ids(config, None))
        found.append(Batch(inputs, kept, name))
    return found


def _plain_sounds(rows: list[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    values, mask = pad_rows(rows, 0.0)
    return {"input_values": values, "attention_mask": mask.astype(np.int64)}


def _frames(config: Any, inputs: dict[str, NDArray[Any]]) -> NDArray[np.bool_] | None:
    """Which frames of the output are of sound and not of padding, by the strides of the configuration's convolutions."""
    mask, kernels = inputs.get("attention_mask"), getattr(config, "conv_kernel", None)
    if mask is None or mask.ndim != 2 or not isinstance(kernels, list | tuple) or "input_values" not in inputs:
        return None
    lengths = np.array([*mask.sum(axis=1), mask.shape[1]], np.int64)
    for kernel, stride in zip(kernels, config.conv_stride, strict=True):
        lengths = (lengths - kernel) // stride + 1
    kept: NDArray[np.bool_] = np.arange(lengths[-1])[None, :] < lengths[:-1, None]
    return kept


def make_conversations(info: TaskInfo, processor: Any, config: Any, random: np.random.Generator) -> list[Batch]:
    """Text alone; and, where there is a processor, questions about a picture or a sound, and two of them padded."""
    tokenizer = getattr(processor, "tokenizer", None)
    found = make_texts(info, tokenizer, config, random)
    images = getattr(processor, "image_processor", None) is not None
    sounds = getattr(processor, "feature_extractor", None) is not None
    if not images and not sounds:
        return found
    rate = int(getattr(getattr(processor, "feature_extractor", None), "sampling_rate", 16_000))
    media: list[Any] = [
        random.integers(0, 256, (48, 64, 3), np.uint8) if images else random.standard_normal(rate // 2) * 0.1
        for _ in _QUESTIONS
    ]
    asked = [_ask(processor, "image" if images else "audio", question) for question in _QUESTIONS]
    for name, part in (("question 1", [0]), ("question 2", [1]), ("padded questions", [0, 1])):
        values: dict[str, Any] = {"text": [asked[at] for at in part], "padding": True, "return_tensors": "pt"}
        values["images" if images else "audio"] = [media[at] for at in part]
        if not images:
            values["sampling_rate"] = rate
        inputs = _arrays(processor(**values, padding_side="left"))
        mask = inputs.get("attention_mask")
        found.append(Batch(inputs, None if mask is None else mask.astype(np.bool_), name))
    return found


_QUESTIONS = ("where is the card?", "one two three")


def _ask(processor: Any, kind: str, question: str) -> str:
    """A question as the chat template writes it; without one, behind the placeholder of its picture or sound."""
    if getattr(processor, "chat_template", None):
        content = [{"type": kind}, {"type": "text", "text": question}]
        made = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return str(made)
    return f"{getattr(processor, f'{kind}_token', None) or ''}{question}"


def _arrays(made: Any) -> dict[str, NDArray[Any]]:
    """What a preprocessor made, as arrays: floats as float32, whole numbers as int64."""
    import torch

    found: dict[str, NDArray[Any]] = {}
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            whole = not value.is_floating_point() and value.dtype != torch.bool
            found[name] = (value.float() if value.is_floating_point() else value.long() if whole else value).numpy()
    return found
