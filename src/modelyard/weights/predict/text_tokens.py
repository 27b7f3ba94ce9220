"""Labels of tokens: named entities and their kin, with exact places in the text.

A text that is too long is read in overlapping windows when `truncation="windows"` says so; each token then has the scores
of the window in which it has the most text on both sides, and entities are put together once, over the whole text, so
that none is lost or doubled at a seam. Knows tags as `B-`, `I-` and plain names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import forward, to_numpy
from modelyard.weights.predict.encoding import (
    Encoded,
    check_text,
    collate,
    core,
    encode,
    find_limit,
    find_tokenizer,
    hold,
    plan_batches,
)
from modelyard.weights.predict.results import Entity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["STRATEGIES", "TagOptions", "tag"]

STRATEGIES = ("none", "simple", "first", "average", "max")
"""How tokens become entities: not at all; neighbours of one label; or words first, labelled by their first token, their
average or their surest token, then neighbouring words."""


@dataclass(frozen=True, slots=True)
class TagOptions:
    """What `token-classification` takes.

    Attributes:
        aggregation: One of `STRATEGIES`.
        ignore: Labels that are left out.
        stride: Tokens that neighbouring windows share (with `truncation="windows"`); by default a quarter of one.
    """

    aggregation: str = "none"
    ignore: Sequence[str] = ("O",)
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.aggregation not in STRATEGIES:
            hint = f"one of {', '.join(STRATEGIES)}"
            raise RequestError(f"`aggregation` is {self.aggregation!r}", hint=hint, field="aggregation")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token or a word on its way into an entity."""

    scores: Any
    start: int | None
    end: int | None
    index: int
    word: int | None
    token: str


def tag(model: Model, rows: list[Any], options: PredictOptions) -> list[list[Entity]]:
    """The entities of each text, in order of the text; a list of words is taken as the words joined by blanks.

    Raises:
        RequestError: A wrong option, a row that is no text, one that is too long, or a strategy over words where the
            tokenizer knows none.
    """
    chosen = options.take(TagOptions)
    tokenizer = find_tokenizer(model)
    if chosen.aggregation in {"first", "average", "max"} and not getattr(tokenizer, "is_fast", False):
        raise RequestError(
            f"`aggregation` is {chosen.aggregation!r}, and the tokenizer of `{model.folder}` knows no words",
            hint='pass aggregation="simple"',
            field="aggregation",
        )
    texts = [check_text(" ".join(v) if _is_words(v) else v, row) for row, v in enumerate(rows)]
    whole = encode(tokenizer, [(text, None) for text in texts])
    items = hold(whole, find_limit(model), options, cut=0, stride=chosen.stride)
    scores = _score_rows(model, whole, items, options.batch_size)
    names = core(model.model).config.id2label
    return [
        _find_entities(text, item, row_scores, names=names, chosen=chosen, tokenizer=tokenizer)
        for text, item, row_scores in zip(texts, whole, scores, strict=True)
    ]


def _is_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(word, str) for word in value)


def _score_rows(model: Model, whole: Sequence[Encoded], items: Sequence[Encoded], batch_size: int) -> list[Any]:
    """For each row the probabilities (tokens, labels) of its whole encoding; NaN where a token was cut off."""
    labels = core(model.model).config.num_labels
    scores = [np.full((len(item.ids), labels), np.nan, dtype=np.float32) for item in whole]
    margins = [np.full(len(item.ids), -1) for item in whole]
    for places in plan_batches(model, items, batch_size):
        batch = [items[at] for at in places]
        found = to_numpy(forward(model, collate(model, batch)).logits.float().softmax(-1))
        for item, values in zip(batch, found, strict=True):
            size = len(item.ids)
            for at, position in enumerate(item.positions):
                margin = min(at, size - 1 - at)
                if margin > margins[item.row][position]:
                    margins[item.row][position] = margin
                    scores[item.row][position] = values[at]
    return scores


def _find_entities(
    text: str, item: Encoded, scores: Any, *, names: Any, chosen: TagOptions, tokenizer: Any
) -> list[Entity]:
    tokens = tokenizer.convert_ids_to_tokens(list(item.ids))
    pieces = []
    for at, sequence in enumerate(item.sequence):
        if sequence is None or np.isnan(scores[at]).any():
            continue
        start, end = _trim(text, item.offsets[at]) if item.offsets is not None else (None, None)
        if start is not None and start == end:
            continue  # a blank and nothing more
        word = None if item.words is None else item.words[at]
        pieces.append(_Piece(scores[at], start, end, at, word, tokens[at]))
    if chosen.aggregation in {"first", "average", "max"}:
        pieces = [_join_word(group, chosen.aggregation) for group in _words(pieces)]
    labelled = [(piece, str(names[int(piece.scores.argmax())])) for piece in pieces]
    if chosen.aggregation == "none":
        entities = [
            Entity(
                label,
                float(piece.scores.max()),
                _text_of([piece], text, tokenizer),
                piece.start,
                piece.end,
                piece.index,
            )
            for piece, label in labelled
        ]
    else:
        entities = [_join(group, text, tokenizer) for group in _runs(labelled)]
    return [entity for entity in entities if entity.label not in chosen.ignore]


def _trim(text: str, offsets: tuple[int, int]) -> tuple[int, int]:
    """A token's place without the blanks around it, which byte-level tokenizers count to it."""
    start, end = offsets
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _words(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if groups and piece.word is not None and groups[-1][-1].word == piece.word:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _join_word(group: Sequence[_Piece], strategy: str) -> _Piece:
    """One word: its scores are the first token's, the surest token's, or the average."""
    if strategy == "first":
        scores = group[0].scores
    elif strategy == "max":
        scores = max(group, key=lambda piece: piece.scores.max()).scores
    else:
        scores = np.mean([piece.scores for piece in group], axis=0)
    token = " ".join(piece.token for piece in group)
    return _Piece(scores, group[0].start, group[-1].end, group[0].index, group[0].word, token)


def _split_tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's name."""
    return label.startswith("B-"), label[2:] if label[:2] in {"B-", "I-"} else label


def _runs(labelled: Sequence[tuple[_Piece, str]]) -> list[list[tuple[_Piece, str]]]:
    """Neighbours of one name, parted where a label begins an entity."""
    groups: list[list[tuple[_Piece, str]]] = []
    for piece, label in labelled:
        begins, name = _split_tag(label)
        if groups and not begins and _split_tag(groups[-1][-1][1])[1] == name:
            groups[-1].append((piece, label))
        else:
            groups.append([(piece, label)])
    return groups


def _join(group: Sequence[tuple[_Piece, str]], text: str, tokenizer: Any) -> Entity:
    pieces = [piece for piece, _ in group]
    score = float(np.mean([piece.scores.max() for piece in pieces]))
    name = _split_tag(group[0][1])[1]
    return Entity(name, score, _text_of(pieces, text, tokenizer), pieces[0].start, pieces[-1].end)


def _text_of(pieces: Sequence[_Piece], text: str, tokenizer: Any) -> str:
    start, end = pieces[0].start, pieces[-1].end
    if start is not None and end is not None:
        return text[start:end]
    return str(tokenizer.convert_tokens_to_string([piece.token for piece in pieces]))
