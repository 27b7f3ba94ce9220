"""Filling masks: the likeliest tokens for each mask of a text, of the whole vocabulary or of a few targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.batching import forward, refuse_windows
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import (
    Encoded,
    check_text,
    collate,
    encode,
    find_limit,
    find_tokenizer,
    hold,
    plan_batches,
)
from modelyard.weights.predict.results import Fill, Fills

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["FillOptions", "fill"]


@dataclass(frozen=True, slots=True)
class FillOptions:
    """What `fill-mask` takes.

    Attributes:
        top_k: Tokens for each mask.
        targets: Words to choose from, each one token of the vocabulary; None for all.
    """

    top_k: int = 5
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_counts(self, "top_k")


def fill(model: Model, rows: list[Any], options: PredictOptions) -> list[Fills]:
    """The likeliest tokens for each mask of each text; scores are probabilities over the whole vocabulary.

    Raises:
        RequestError: A wrong option or target, a text without a mask, or one that is too long.
        ModelError: The tokenizer has no mask token.
    """
    chosen = options.take(FillOptions)
    refuse_windows(options)
    tokenizer = find_tokenizer(model)
    if tokenizer.mask_token_id is None:
        raise ModelError(f"the tokenizer of `{model.folder}` has no mask token")
    targets = None if chosen.targets is None else [_find_target(word, tokenizer) for word in _listed(chosen.targets)]
    texts = [(check_text(value, row), None) for row, value in enumerate(rows)]
    items = hold(encode(tokenizer, texts), find_limit(model), options)
    masks = [[at for at, token in enumerate(item.ids) if token == tokenizer.mask_token_id] for item in items]
    for row, found in enumerate(masks):
        if not found:
            hint = f"write {tokenizer.mask_token} where a word is wanted"
            raise RequestError(f"row {row} has no {tokenizer.mask_token}", hint=hint, field="inputs", row=row)
    results: dict[int, Fills] = {}
    for places in plan_batches(model, items, options.batch_size):
        logits = forward(model, collate(model, [items[at] for at in places])).logits
        for place, row in zip(places, logits, strict=True):
            scores = row[masks[place]].float().softmax(-1)
            results[place] = _best(
                items[place], masks[place], scores, targets=targets, top_k=chosen.top_k, tokenizer=tokenizer
            )
    return [results[at] for at in range(len(rows))]


def _best(
    item: Encoded, masks: Sequence[int], scores: Any, *, targets: list[int] | None, top_k: int, tokenizer: Any
) -> Fills:
    """The best tokens for each mask; `scores` is a tensor (masks, vocabulary)."""
    if targets is not None:
        scores = scores[:, targets]
    best = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    found = []
    for mask, values, places in zip(masks, best.values.tolist(), best.indices.tolist(), strict=True):
        fills = []
        for score, place in zip(values, places, strict=True):
            token = place if targets is None else targets[place]
            ids = [token if at == mask else old for at, old in enumerate(item.ids) if item.sequence[at] is not None]
            text = tokenizer.decode(ids, skip_special_tokens=len(masks) == 1)  # else the other masks would vanish
            fills.append(Fill(tokenizer.decode([token]), token, text, score))
        found.append(tuple(fills))
    return Fills(tuple(found))


def _listed(targets: Sequence[str]) -> list[str]:
    words = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
    if not words:
        raise RequestError("`targets` is empty", hint="words of the vocabulary, or None for all", field="targets")
    return words


def _find_target(word: str, tokenizer: Any) -> int:
    """The token that `word` is, with a blank in front where the vocabulary has it only so."""
    vocabulary = tokenizer.get_vocab()
    if word in vocabulary:
        return int(vocabulary[word])
    pieces: list[int] = []
    for text in (word, f" {word}"):
        pieces = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:
            return int(pieces[0])
    shown = ", ".join(tokenizer.convert_ids_to_tokens(pieces))
    raise RequestError(
        f"the target `{word}` is no token of the vocabulary (it would be: {shown})",
        hint="a mask stands for one token: choose a word that is one",
        field="targets",
    )
