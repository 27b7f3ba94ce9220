"""Extractive question answering: the span of a context that answers a question.

transformers 5 has the models and no pipeline for them, so the decoding is ours. A window's start and end logits are
probabilities over the tokens of the *context* alone (and the first token, where an answer may be missing); a span's score
is the product of both; over all windows each span counts once, with its highest score. That there is no answer is as
likely as the window that believes it least says.

Knows questions, contexts and characters; knows no other task's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import forward, to_numpy
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import (
    Encoded,
    collate,
    encode,
    find_limit,
    find_tokenizer,
    hold,
    plan_batches,
    read_pair,
)
from modelyard.weights.predict.results import Answer

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["AnswerOptions", "answer"]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What `question-answering` takes.

    Attributes:
        top_k: Answers to give, the likeliest first: one, and `top_k - 1` in its `others`.
        max_answer_tokens: Longest answer.
        impossible: Whether the answer may be that there is none (an empty text): for models trained on such questions.
        stride: Tokens of the context that neighbouring windows share (with `truncation="windows"`).
    """

    top_k: int = 1
    max_answer_tokens: int = 15
    impossible: bool = False
    stride: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "top_k", "max_answer_tokens")


def answer(model: Model, rows: list[Any], options: PredictOptions) -> list[Answer]:
    """The answer to each `{"question", "context"}`, with its place in the context.

    Raises:
        RequestError: A wrong option, a row that is no question with a context, one that is too long, or a tokenizer
            that does not know where its tokens stand.
    """
    chosen = options.take(AnswerOptions)
    tokenizer = find_tokenizer(model)
    pairs = []
    for row, value in enumerate(rows):
        question, context = read_pair(value, row, ("question", "context"))
        if not (question.strip() and context and context.strip()):
            raise RequestError(f"row {row} has no question or no context", field="inputs", row=row)
        pairs.append((question, context))
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(
            f"the tokenizer of `{model.folder}` does not know where its tokens stand in a text",
            hint="save it with tokenizer.json (a fast tokenizer)",
            field="inputs",
        )
    items = hold(encode(tokenizer, pairs), find_limit(model), options, cut=1, stride=chosen.stride)
    spans: list[dict[tuple[int, int], float]] = [{} for _ in rows]
    nothing = [1.0] * len(rows)
    for places in plan_batches(model, items, options.batch_size):
        batch = [items[at] for at in places]
        outputs = forward(model, collate(model, batch))
        starts, ends = to_numpy(outputs.start_logits), to_numpy(outputs.end_logits)
        for item, start, end in zip(batch, starts, ends, strict=True):
            found, none = _score_window(item, start, end, chosen)
            nothing[item.row] = min(nothing[item.row], none)
            for span, score in found.items():
                spans[item.row][span] = max(score, spans[item.row].get(span, 0.0))
    return [_best(found, none, pair[1], chosen) for found, none, pair in zip(spans, nothing, pairs, strict=True)]


def _score_window(
    item: Encoded, start_logits: Any, end_logits: Any, chosen: AnswerOptions
) -> tuple[dict[tuple[int, int], float], float]:
    """The likeliest spans of one window as places in the context, with their scores; and that there is no answer."""
    offsets = item.offsets or ()
    context = np.array([sequence == 1 for sequence in item.sequence])
    allowed = context.copy()
    if chosen.impossible:
        allowed[0] = True  # models answer "none" with their first token, which is a special one
    starts, ends = _softmax(start_logits[: len(item.ids)], allowed), _softmax(end_logits[: len(item.ids)], allowed)
    none = float(starts[0] * ends[0]) if chosen.impossible else 0.0
    places = np.flatnonzero(context)
    table = np.outer(starts[places], ends[places])
    gap = places[None, :] - places[:, None]
    table[(gap < 0) | (gap >= chosen.max_answer_tokens)] = -1.0
    # Spans that differ in their tokens only by characters that are trimmed away are one answer: take some to spare.
    order = np.argsort(-table, axis=None, kind="stable")[: chosen.top_k * 4]
    found: dict[tuple[int, int], float] = {}
    for start, end in zip(*np.unravel_index(order, table.shape), strict=True):
        if table[start, end] >= 0:
            span = offsets[places[start]][0], offsets[places[end]][1]
            found.setdefault(span, float(table[start, end]))
    return found, none


def _softmax(logits: Any, allowed: Any) -> Any:
    """Probabilities over the allowed tokens alone, in float64."""
    values = np.where(allowed, logits.astype(np.float64), -np.inf)
    if not allowed.any():
        return np.zeros_like(values)
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def _best(spans: dict[tuple[int, int], float], nothing: float, context: str, chosen: AnswerOptions) -> Answer:
    merged: dict[tuple[int, int], float] = {}
    for (start, end), score in spans.items():
        place = _trim(context, start, end)
        if place[0] < place[1]:  # else it was a blank and nothing more
            merged[place] = max(score, merged.get(place, 0.0))
    answers = [Answer(context[start:end], score, start, end) for (start, end), score in merged.items()]
    if chosen.impossible or not answers:
        answers.append(Answer("", nothing, 0, 0))
    answers.sort(key=lambda found: (-found.score, found.start, found.end))
    return replace(answers[0], others=tuple(answers[1 : chosen.top_k]))


def _trim(context: str, start: int, end: int) -> tuple[int, int]:
    """A span without the blank in front that byte-level tokenizers count to a token."""
    while start < end and context[start].isspace():
        start += 1
    return start, end
