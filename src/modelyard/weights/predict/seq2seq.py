"""Text from text by an encoder and a decoder: summaries, translations, corrections.

transformers 5 has the models and no pipeline for them. Greedy by default; beams and sampling are transformers' own
`generate`. Sampled rows are drawn one at a time, each from the same seed, so that a batch does not change a row.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError, near_match
from modelyard.weights.predict.batching import refuse_windows, running, to_device
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import (
    Encoded,
    check_text,
    collate,
    core,
    encode,
    find_limit,
    find_room,
    find_tokenizer,
    hold,
    plan_batches,
)
from modelyard.weights.predict.results import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["DEFAULT_NEW_TOKENS", "TransformOptions", "transform"]

DEFAULT_NEW_TOKENS = 256
"""Most new tokens where neither the caller nor the checkpoint says how many."""


@dataclass(frozen=True, slots=True)
class TransformOptions:
    """What `text2text-generation`, `summarization` and `translation` take.

    Attributes:
        max_new_tokens: Most tokens of the result; by default what the checkpoint says, else `DEFAULT_NEW_TOKENS`.
        num_beams: Beams that are searched; by default what the checkpoint says, else 1.
        temperature: 0 is greedy (or beams); more samples.
        seed: What sampling is drawn from.
        prefix: Put in front of every input, as T5 wants ("summarize: ").
        src_lang: Language of the inputs, for tokenizers that write one (mBART, M2M100, NLLB).
        tgt_lang: Language of the results, for the same.
        generation: Further arguments of transformers' `generate` (`length_penalty`, `no_repeat_ngram_size`, ...).
    """

    max_new_tokens: int | None = None
    num_beams: int | None = None
    temperature: float = 0.0
    seed: int = 0
    prefix: str = ""
    src_lang: str | None = None
    tgt_lang: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_counts(self, "max_new_tokens", "num_beams")
        if self.temperature < 0:
            raise RequestError(f"`temperature` is {self.temperature}", hint="0 or more", field="temperature")


def transform(model: Model, rows: list[Any], options: PredictOptions) -> list[Text]:
    """What the decoder writes for each text.

    Raises:
        RequestError: A wrong option or language, a row that is no text, or one that is too long.
    """
    chosen = options.take(TransformOptions)
    refuse_windows(options)
    tokenizer = _speak(find_tokenizer(model), chosen.src_lang)
    texts = [(chosen.prefix + check_text(value, row), None) for row, value in enumerate(rows)]
    items = hold(encode(tokenizer, texts), find_limit(model), options)
    settings = _settings(model, tokenizer, chosen)
    size = 1 if settings["do_sample"] else options.batch_size
    found: dict[int, Text] = {}
    for places in plan_batches(model, items, size):
        outputs = _generate(model, [items[at] for at in places], settings, chosen.seed)
        for at, ids in zip(places, outputs, strict=True):
            found[at] = Text(tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(ids))
    return [found[at] for at in range(len(rows))]


def _generate(model: Model, items: Sequence[Encoded], settings: dict[str, Any], seed: int) -> list[list[int]]:
    """The new tokens of each row, up to and with its end."""
    import torch

    config = model.model.generation_config
    ends = config.eos_token_id
    ending = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    inputs = to_device(model, collate(model, items))
    drawn = torch.random.fork_rng(devices=range(torch.cuda.device_count())) if settings["do_sample"] else nullcontext()
    with running(model), drawn:
        if settings["do_sample"]:
            torch.manual_seed(seed)
        rows = model.model.generate(**inputs, **settings)
    return [_cut_at_end(row[1:], ending) for row in rows.tolist()]  # the first token is the decoder's start


def _cut_at_end(ids: list[int], ending: set[int]) -> list[int]:
    for at, token in enumerate(ids):
        if token in ending:
            return ids[: at + 1]
    return ids


def _settings(model: Model, tokenizer: Any, chosen: TransformOptions) -> dict[str, Any]:
    settings: dict[str, Any] = dict(chosen.generation)
    for name in ("max_new_tokens", "num_beams", "do_sample", "temperature", "forced_bos_token_id"):
        if name in settings:
            raise RequestError(
                f"`generation` has `{name}`",
                hint="pass it by itself (`tgt_lang` for the first token)",
                field="generation",
            )
    settings["do_sample"] = chosen.temperature > 0
    if chosen.temperature > 0:
        settings["temperature"] = chosen.temperature
    if chosen.num_beams is not None:
        settings["num_beams"] = chosen.num_beams
    settings["max_new_tokens"] = _read_length(model, chosen.max_new_tokens)
    if chosen.tgt_lang is not None:
        settings["forced_bos_token_id"] = _find_language(tokenizer, chosen.tgt_lang, "tgt_lang")
    return settings


def _read_length(model: Model, wanted: int | None) -> int:
    """Most new tokens: as many as are wanted, else as the checkpoint says, and no more than the decoder has places for."""
    said = model.model.generation_config
    room = find_room(model)
    if wanted is not None:
        if room is not None and wanted > room:
            raise RequestError(
                f"`max_new_tokens` is {wanted} and the decoder writes {room} at most",
                field="max_new_tokens",
                limit=room,
            )
        return wanted
    length = getattr(said, "max_new_tokens", None) or getattr(said, "max_length", None) or DEFAULT_NEW_TOKENS
    return int(length if room is None else min(length, room))


def _speak(tokenizer: Any, language: str | None) -> Any:
    """The tokenizer, set to a source language: a copy, since another thread may be using the one that was loaded."""
    if language is None:
        return tokenizer
    _find_language(tokenizer, language, "src_lang")
    if tokenizer.src_lang == language:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.src_lang = language
    return tokenizer


def _find_language(tokenizer: Any, language: str, field_name: str) -> int:
    """The token of a language.

    Raises:
        RequestError: The tokenizer writes no languages, or not this one.
    """
    if not hasattr(tokenizer, "src_lang"):
        raise RequestError(
            f"{type(tokenizer).__name__} writes no languages, so `{field_name}` says nothing",
            hint='models like T5 take them in the text: prefix="translate English to German: "',
            field=field_name,
        )
    codes: dict[str, int] = dict(getattr(tokenizer, "lang_code_to_id", None) or {})
    if not codes:
        special = [str(token) for token in tokenizer.all_special_tokens]
        codes = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    if language not in codes:
        meant = near_match(language, codes)
        hint = f"did you mean `{meant}`?" if meant else f"it has {', '.join(sorted(codes)[:12])}, ..."
        raise RequestError(f"the tokenizer has no language `{language}`", hint=hint, field=field_name)
    return int(tokenizer.get_lang_id(language) if hasattr(tokenizer, "get_lang_id") else codes[language])


def decoder_start(model: Model) -> int:
    """The token that a decoder starts from: what the checkpoint says, else its padding token, as T5's is."""
    inner = core(model.model)
    for said in (getattr(inner, "generation_config", None), inner.config):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(said, name, None)
            if isinstance(value, int):
                return value
    return 0
