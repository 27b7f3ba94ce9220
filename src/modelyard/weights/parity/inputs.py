"""`fixed_inputs`: the same batches for the same model each time, for every task whose inputs are texts, pictures or sounds.

Texts are seeded token ids within the vocabulary, special tokens left out; pictures and sounds are seeded arrays that the
model's own preprocessor takes. What cannot be made from a preprocessor alone (questions about documents, tables, prompts
of masks) is what the model's own prediction makes of a built-in sample. Knows no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.parity.batches import LENGTHS, Batch, pad_rows
from modelyard.weights.tasks import TaskInfo, find_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["fixed_inputs"]

_LEFT = frozenset({"text-generation", "image-text-to-text", "any-to-any"})
_PAIRS = frozenset({"question-answering", "next-sentence-prediction", "multiple-choice"})
_TEXTS = frozenset(
    {
        "text-generation",
        "text-classification",
        "token-classification",
        "question-answering",
        "multiple-choice",
        "next-sentence-prediction",
        "fill-mask",
        "text2text-generation",
        "text-encoding",
    }
)
_SECONDS = (0.2, 0.35, 0.5)


def fixed_inputs(task: str, source: Any = None, config: Any = None, *, seed: int = 0) -> list[Batch]:
    """Seeded batches for a model: single rows of three lengths, and the same rows padded as one batch.

    Args:
        task: A name of `weights.tasks.TASKS`, or another name for it.
        source: A `weights.model.Model`, or a preprocessor (tokenizer, image processor, feature extractor, processor); of a
            task that reads texts alone it may be None.
        config: The configuration of transformers; by default the model's.
        seed: What ids, pixels and samples are drawn from.

    Returns:
        Token ids and masks int64, (rows, tokens), padded on the left where the task writes text behind them and on the right
        otherwise; pictures and sounds float32 as the preprocessor gives them.

    Raises:
        ModelError: `no_fixed_inputs`: the task has other inputs than text, pictures and sound, or they cannot be made from what
            is given; `no_preprocessor`: pictures or sounds need one.
        RequestError: No such task.
    """
    info = find_task(task)
    config = config if config is not None else getattr(source, "config", None)
    processor = getattr(source, "processor", None) if hasattr(source, "core") else source
    if config is None:
        raise ModelError(
            f"the inputs of {info.name} depend on the model's configuration, and none was given",
            code="no_fixed_inputs",
            hint="pass `config`, or a loaded model",
        )
    for able, make in _MAKERS:
        if able(info, processor, config):
            return make(info, processor, config, np.random.default_rng(seed))
    raise ModelError(
        f"no fixed inputs of {info.name} can be made from {type(source).__name__}",
        code="no_fixed_inputs",
        hint="they are made for tasks of text, pictures and sound",
        task=info.name,
    )


def _texts(info: TaskInfo, tokenizer: Any, config: Any, random: np.random.Generator) -> list[Batch]:
    """Single rows of `LENGTHS` and all of them padded; of multiple choice each row stands twice."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    allowed = _allowed_ids(text, tokenizer)
    limit = int(getattr(text, "max_position_embeddings", None) or LENGTHS[-1] + 4) - 4
    lengths = sorted({max(2, min(length, limit)) for length in LENGTHS})
    rows = [random.choice(allowed, length).astype(np.int64) for length in lengths]
    _mark(info, rows, text, tokenizer)
    given = [(f"length {len(row)}", [row]) for row in rows]
    given += [("padded", rows[::-1])] if len(rows) > 1 else []
    found = []
    for name, part in given:
        batch = _text_batch(info, name, part, config, _pad_id(text, tokenizer))
        if getattr(config, "is_encoder_decoder", False):
            batch.inputs["decoder_input_ids"] = _decoder_ids(config, len(part), random, allowed)
        found.append(batch)
    return found


def _text_batch(info: TaskInfo, name: str, rows: list[NDArray[np.int64]], config: Any, pad: int) -> Batch:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    ids, mask = pad_rows(rows, pad, left=info.name in _LEFT)
    inputs: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    if info.name in _PAIRS and (getattr(text, "type_vocab_size", 0) or 0) > 1:
        second = np.zeros_like(ids)
        for at, row in enumerate(rows):
            second[at, len(row) // 2 : len(row)] = 1
        inputs["token_type_ids"] = second
    kept: NDArray[np.bool_] | None = mask
    if info.name == "multiple-choice":
        inputs = {key: np.stack((values, values[:, ::-1]), axis=1) for key, values in inputs.items()}
        kept = None
    return Batch(inputs, kept, name)


def _decoder_ids(config: Any, rows: int, random: np.random.Generator, allowed: NDArray[np.int64]) -> NDArray[np.int64]:
    """The decoder's start token and two more: of a length that no row of the encoder has."""
    start = getattr(config, "decoder_start_token_id", None)
    start = start if isinstance(start, int) else getattr(config, "bos_token_id", None)
    more = random.choice(allowed, (rows, 2)).astype(np.int64)
    return np.concatenate((np.full((rows, 1), start if isinstance(start, int) else 0, np.int64), more), axis=1)


def _mark(info: TaskInfo, rows: list[NDArray[np.int64]], text: Any, tokenizer: Any) -> None:
    """What a task needs in each row: a mask to fill; the end that classifiers on encoder-decoders read at."""
    mask = getattr(tokenizer, "mask_token_id", None)
    if info.name == "fill-mask" and mask is not None:
        for row in rows:
            row[len(row) // 2] = mask
    end = getattr(text, "eos_token_id", None)
    if info.name != "text2text-generation" and getattr(text, "is_encoder_decoder", False) and isinstance(end, int):
        for row in rows:
            row[-1] = end


def _allowed_ids(text: Any, tokenizer: Any) -> NDArray[np.int64]:
    """Ids that mean nothing but themselves: special tokens and placeholders of pictures and sounds are left out."""
    size = int(getattr(text, "vocab_size", None) or 128)
    special = {int(each) for each in getattr(tokenizer, "all_special_ids", None) or ()}
    for name, value in text.to_dict().items():
        if name.endswith(("token_id", "token_index")):
            special |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
    ids = np.array([each for each in range(size) if each not in special], np.int64)
    return ids if len(ids) else np.arange(size, dtype=np.int64)


def _pad_id(text: Any, tokenizer: Any) -> int:
    for found in (getattr(text, "pad_token_id", None), getattr(tokenizer, "pad_token_id", None)):
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def _pictures(info: TaskInfo, processor: Any, config: Any, random: np.random.Generator) -> list[Batch]:
    """One picture, and two."""
    part = getattr(processor, "image_processor", None) or processor
    shown = [random.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(3)]
    given: list[tuple[str, Any]] = [("picture", shown[:1]), ("two pictures", shown[1:])]
    if info.name == "keypoint-matching":
        given = [("pair of pictures", [shown[:2]])]
    if info.modality == "video":
        frames = int(getattr(config, "num_frames", None) or 8)
        given = [("video", [list(random.integers(0, 256, (frames, 48, 64, 3), np.uint8))])]
    return [Batch(_arrays(part(images=images, return_tensors="pt")), None, name) for name, images in given]


def _sounds(_info: TaskInfo, processor: Any, config: Any, random: np.random.Generator) -> list[Batch]:
    """Sounds of three lengths, and all of them padded."""
    part = getattr(processor, "feature_extractor", None) or processor
    rate = int(getattr(part, "sampling_rate", 16_000))
    waves = [random.standard_normal(int(rate * seconds)).astype(np.float32) * 0.1 for seconds in _SECONDS]
    given = [(f"{seconds} s", [wave]) for seconds, wave in zip(_SECONDS, waves, strict=True)]
    given.append(("padded", waves[::-1]))
    found = []
    for name, rows in given:
        inputs = _arrays(part(rows, sampling_rate=rate, padding=True, return_tensors="pt"))
        kept = _frames(config, inputs)
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = _decoder_ids(config, len(rows), random, _allowed_ids(config, None))
        found.append(Batch(inputs, kept, name))
    return found


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


def _arrays(made: Any) -> dict[str, NDArray[Any]]:
    """What a preprocessor made, as arrays: floats as float32, whole numbers as int64."""
    import torch

    found: dict[str, NDArray[Any]] = {}
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            whole = not value.is_floating_point() and value.dtype != torch.bool
            found[name] = (value.float() if value.is_floating_point() else value.long() if whole else value).numpy()
    return found


def _needs(info: TaskInfo, processor: Any, what: str) -> bool:
    if processor is None:
        raise ModelError(
            f"the {what} of {info.name} need the model's preprocessor, and none was given",
            code="no_preprocessor",
            hint="pass a loaded model, or its preprocessor",
            task=info.name,
        )
    return True


def _reads_texts(info: TaskInfo, processor: Any, _config: Any) -> bool:
    if info.name in _TEXTS:
        return True
    return info.name in {"feature-extraction", "pretraining"} and (
        processor is None or hasattr(processor, "convert_ids_to_tokens")
    )


def _reads_pictures(info: TaskInfo, processor: Any, _config: Any) -> bool:
    if info.name in {"mask-generation", "zero-shot-object-detection", "zero-shot-image-classification"}:
        return False
    if info.name in {"feature-extraction", "pretraining"}:
        return hasattr(processor, "image_mean") or hasattr(processor, "do_resize")
    return info.modality in {"image", "video"} and _needs(info, processor, "pictures")


def _reads_sounds(info: TaskInfo, processor: Any, _config: Any) -> bool:
    if info.name in {"feature-extraction", "pretraining"}:
        return hasattr(processor, "sampling_rate")
    return info.modality == "audio" and _needs(info, processor, "sounds")


_MAKERS: tuple[tuple[Callable[..., bool], Callable[..., list[Batch]]], ...] = (
    (_reads_texts, _texts),
    (_reads_pictures, _pictures),
    (_reads_sounds, _sounds),
)
