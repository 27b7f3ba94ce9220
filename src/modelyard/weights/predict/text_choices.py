"""Which of several continuations fits (multiple choice), and whether one text follows another (next sentence)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import batches, forward, refuse_windows, to_numpy
from modelyard.weights.predict.encoding import (
    Encoded,
    check_text,
    collate,
    encode,
    find_limit,
    find_tokenizer,
    hold,
    plan_batches,
    read_pair,
)
from modelyard.weights.predict.results import Choice, Follows

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["choose", "follow"]


def choose(model: Model, rows: list[Any], options: PredictOptions) -> list[Choice]:
    """The likeliest choice of each `{"prompt": text, "choices": [text, ...]}`.

    Where something is cut, it is the prompt: the choices are what is asked about.

    Raises:
        RequestError: An option, a row of another form, or one that is too long.
    """
    options.take_none()
    refuse_windows(options)
    questions = [_read_question(value, row) for row, value in enumerate(rows)]
    texts = [(prompt, choice) for prompt, choices in questions for choice in choices]
    owners = [row for row, (_, choices) in enumerate(questions) for _ in choices]
    items: list[list[Encoded]] = [[] for _ in rows]
    for item in hold(encode(find_tokenizer(model), texts, owners), find_limit(model), options, cut=0):
        items[item.row].append(item)
    found: dict[int, Choice] = {}
    for places in _alike(items, options.batch_size, model):
        batch = collate(model, [item for at in places for item in items[at]])
        count = len(items[places[0]])
        shaped = {name: values.view(len(places), count, -1) for name, values in batch.items()}
        scores = forward(model, shaped).logits.float().softmax(-1)
        for at, row in zip(places, to_numpy(scores).tolist(), strict=True):
            best = max(range(count), key=row.__getitem__)
            found[at] = Choice(best, questions[at][1][best], row[best], tuple(row))
    return [found[at] for at in range(len(rows))]


def _read_question(value: Any, row: int) -> tuple[str, list[str]]:
    if (
        isinstance(value, Mapping)
        and set(value) == {"prompt", "choices"}
        and isinstance(value["choices"], list | tuple)
    ):
        choices = [check_text(choice, row, "a choice") for choice in value["choices"]]
        if len(choices) > 1:
            return check_text(value["prompt"], row, "`prompt`"), choices
    raise RequestError(
        f"row {row} is no question with choices",
        hint='give {"prompt": ..., "choices": [..., ...]} with two choices or more',
        field="inputs",
        row=row,
    )


def _alike(items: list[list[Encoded]], size: int, model: Model) -> list[list[int]]:
    """Rows of as many choices each, at most `size` together; a model that padding changes gets rows of one length."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, choices in enumerate(items):
        plans = list(plan_batches(model, choices, len(choices)))
        if len(plans) > 1:
            raise RequestError(
                f"row {row}: its choices have different lengths, and padding would change what this model says of them",
                hint="use a model that ignores padding (BERT, RoBERTa, ...)",
                field="inputs",
                row=row,
            )
        groups[len(choices)].append(row)
    if len(list(plan_batches(model, [item for choices in items for item in choices], 1 << 30))) > 1:
        return [[row] for row in range(len(items))]
    return [batch for group in groups.values() for batch in batches(group, size)]


def follow(model: Model, rows: list[Any], options: PredictOptions) -> list[Follows]:
    """Whether `next` follows `text`, for each `{"text", "next"}` or pair, with the probability that it does.

    Raises:
        RequestError: An option, a row that is no pair of texts, or one that is too long.
    """
    options.take_none()
    refuse_windows(options)
    pairs = [read_pair(value, row, ("text", "next")) for row, value in enumerate(rows)]
    items = hold(encode(find_tokenizer(model), pairs), find_limit(model), options)
    found: dict[int, Follows] = {}
    for places in plan_batches(model, items, options.batch_size):
        # Output 0 is "is the next sentence" in every model of this task.
        scores = forward(model, collate(model, [items[at] for at in places])).logits.float().softmax(-1)[:, 0]
        found.update((at, Follows(score > 0.5, score)) for at, score in zip(places, scores.tolist(), strict=True))
    return [found[at] for at in range(len(rows))]
