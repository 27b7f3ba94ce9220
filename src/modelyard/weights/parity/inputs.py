"""`fixed_inputs`: the same batches for the same model each time, for every task whose inputs are texts, pictures or sounds.

Texts are seeded token ids within the vocabulary, special tokens left out; pictures and sounds are seeded arrays that the
model's own preprocessor takes. What cannot be made from a preprocessor alone (questions about documents, tables, prompts
of masks) is what the model's own prediction makes of a built-in sample (`captured`). Knows no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.parity.captured import CAPTURED, capture_inputs
from modelyard.weights.parity.media import make_conversations, make_pictures, make_sounds
from modelyard.weights.parity.texts import make_texts, tokenize
from modelyard.weights.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelyard.weights.parity.batches import Batch
    from modelyard.weights.tasks import TaskInfo

__all__ = ["fixed_inputs"]

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
_ANYTHING = frozenset({"feature-extraction", "pretraining"})


def fixed_inputs(
    task: str, source: Any = None, config: Any = None, *, seed: int = 0, texts: Sequence[str] | None = None
) -> list[Batch]:
    """Seeded batches for a model: single rows of three lengths, and the same rows padded as one batch.

    Args:
        task: A name of `weights.tasks.TASKS`, or another name for it.
        source: A `weights.model.Model`, or a preprocessor (tokenizer, image processor, feature extractor, processor); of a
            task that reads texts alone it may be None.
        config: The configuration of transformers; by default the model's.
        seed: What ids, pixels and samples are drawn from.
        texts: Texts to take instead of seeded ids, for a task that reads texts alone and a source that has a tokenizer.

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
    random = np.random.default_rng(seed)
    if info.name in CAPTURED and hasattr(source, "core"):
        return [capture_inputs(source, CAPTURED[info.name](random), f"sample {at}") for at in (1, 2)]
    for able, make in _MAKERS:
        if able(info, processor, config):
            rows = tokenize(texts, processor, config) if texts and make is make_texts else None
            return (
                make(info, processor, config, random) if rows is None else make(info, processor, config, random, rows)
            )
    raise ModelError(
        f"no fixed inputs of {info.name} can be made from {type(source).__name__}",
        code="no_fixed_inputs",
        hint="pass a loaded model" if info.name in CAPTURED else "they are made for tasks of text, pictures and sound",
        task=info.name,
    )


def _refuse_without(info: TaskInfo, processor: Any, able: bool, what: str) -> bool:
    if processor is None and not able:
        raise ModelError(
            f"the {what} of {info.name} need the model's preprocessor, and none was given",
            code="no_preprocessor",
            hint="pass a loaded model, or its preprocessor",
            task=info.name,
        )
    return True


def _reads_texts(info: TaskInfo, processor: Any, config: Any) -> bool:
    if info.name in _TEXTS:
        return True
    if info.name not in _ANYTHING:
        return False
    return hasattr(processor, "convert_ids_to_tokens") or (processor is None and hasattr(config, "vocab_size"))


def _reads_pictures(info: TaskInfo, processor: Any, config: Any) -> bool:
    able = hasattr(config, "image_size") or hasattr(config, "num_channels")
    if info.name in _ANYTHING:
        return hasattr(processor, "image_mean") or hasattr(processor, "do_resize") or (processor is None and able)
    if info.name in CAPTURED or info.modality not in {"image", "video"}:
        return False
    return _refuse_without(info, processor, able and info.modality == "image", "pictures")


def _reads_sounds(info: TaskInfo, processor: Any, config: Any) -> bool:
    able = hasattr(config, "conv_kernel")
    if info.name in _ANYTHING:
        return hasattr(processor, "sampling_rate") or (processor is None and able)
    return info.modality == "audio" and _refuse_without(info, processor, able, "sounds")


def _converses(info: TaskInfo, _processor: Any, config: Any) -> bool:
    return info.name in {"image-text-to-text", "any-to-any"} and hasattr(config.get_text_config(), "vocab_size")


_MAKERS: tuple[tuple[Callable[..., bool], Callable[..., list[Batch]]], ...] = (
    (_converses, make_conversations),
    (_reads_texts, make_texts),
    (_reads_pictures, make_pictures),
    (_reads_sounds, make_sounds),
)
