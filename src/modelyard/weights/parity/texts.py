"""Batches of token ids: seeded or of given texts, single rows and all of them padded. Knows configurations and tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.weights.parity.batches import LENGTHS, Batch, pad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelyard.weights.tasks import TaskInfo

__all__ = ["allowed_ids", "decoder_ids", "make_texts", "tokenize"]

_LEFT = frozenset({"text-generation", "image-text-to-text", "any-to-any"})
_PAIRS = frozenset({"question-answering", "next-sentence-prediction", "multiple-choice"})
_LONGEST = 32  # tokens of a text


def make_texts(
    info: TaskInfo,
    tokenizer: Any,
    config: Any,
    random: np.random.Generator,
    rows: list[NDArray[np.int64]] | None = None,
) -> list[Batch]:
    """Single rows and all of them padded, `LENGTHS` of seeded ids by default; of multiple choice each row stands twice."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    allowed = allowed_ids(text, tokenizer)
    if rows is None:
        lengths = sorted({_limit(text, length) for length in LENGTHS})
        rows = [random.choice(allowed, length).astype(np.int64) for length in lengths]
        given = [(f"length {len(row)}", [row]) for row in rows]
    else:
        given = [(f"text {at}", [row]) for at, row in enumerate(rows, 1)]
    _mark(info, rows, text, tokenizer)
    given += [("padded", rows[::-1])] if len(rows) > 1 else []
    found = []
    for name, part in given:
        batch = _text_batch(info, name, part, config, _pad_id(text, tokenizer))
        if getattr(config, "is_encoder_decoder", False):
            batch.inputs["decoder_input_ids"] = decoder_ids(config, len(part), random, allowed)
        found.append(batch)
    return found


def tokenize(texts: Sequence[str], tokenizer: Any, config: Any) -> list[NDArray[np.int64]] | None:
    """The ids of each text, within the model's vocabulary and context; None without a tokenizer or ids that fit."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size, limit = int(getattr(text, "vocab_size", None) or 1 << 31), _limit(text, _LONGEST)
    rows = [
        np.array([each for each in tokenizer(line, verbose=False)["input_ids"] if each < size][:limit], np.int64)
        for line in texts
    ]
    return [row for row in rows if len(row)] or None


def _limit(text: Any, wanted: int) -> int:
    """Tokens of a row: `wanted`, unless the context holds fewer and some that are generated."""
    held = getattr(text, "max_position_embeddings", None)
    return max(2, min(wanted, (int(held) if isinstance(held, int) and held > 0 else wanted + 4) - 4))


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


def decoder_ids(config: Any, rows: int, random: np.random.Generator, allowed: NDArray[np.int64]) -> NDArray[np.int64]:
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


def allowed_ids(text: Any, tokenizer: Any) -> NDArray[np.int64]:
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
