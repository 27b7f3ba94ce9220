"""Labels of texts: one of several, several at once, numbers, or labels that are chosen at run time.

What the numbers mean is what the checkpoint says (`config.problem_type`); zero-shot classification asks a model of
natural-language inference whether each label follows from the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.batching import forward, refuse_windows
from modelyard.weights.predict.encoding import (
    check_text,
    collate,
    core,
    encode,
    find_limit,
    find_tokenizer,
    hold,
    plan_batches,
    read_pair,
)
from modelyard.weights.predict.labels import LabelOptions, decode, rank, softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions
    from modelyard.weights.predict.results import Classification, Regression

__all__ = ["ClassifyOptions", "classify", "score_logits"]


@dataclass(frozen=True, slots=True)
class ClassifyOptions(LabelOptions):
    """What `text-classification` takes.

    Attributes:
        candidate_labels: Labels to choose from (zero-shot): the model must be one of natural-language inference.
        hypothesis_template: What is asked for each candidate, with `{}` for it.
        multi_label: Candidates are judged each for itself and their scores sum to anything.
    """

    candidate_labels: Sequence[str] | None = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False


def classify(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification | Regression]:
    """The labels of each text, `{"text", "text_pair"}` or pair; for a regression model its numbers.

    Raises:
        RequestError: A wrong option, a row that is no text, or one that is too long.
        ModelError: Zero-shot with a model that has no label `entailment`.
    """
    chosen = options.take(ClassifyOptions)
    refuse_windows(options)
    if chosen.candidate_labels is not None:
        return list(_zero_shot(model, rows, options, chosen))
    texts = [read_pair(value, row, ("text", "text_pair"), optional=True) for row, value in enumerate(rows)]
    config = core(model.model).config
    return [decode(config, logits, chosen) for logits in score_logits(model, texts, options, cut=None)]


def score_logits(
    model: Model,
    texts: Sequence[tuple[str, str | None]],
    options: PredictOptions,
    *,
    cut: int | None,
    rows: Sequence[int] | None = None,
) -> list[list[float]]:
    """The logits of a sequence classifier for each text, in order; `cut` and `rows` as `encoding` takes them."""
    items = hold(encode(find_tokenizer(model), texts, rows), find_limit(model), options, cut=cut)
    found: dict[int, list[float]] = {}
    for places in plan_batches(model, items, options.batch_size, pooled=True):
        logits = forward(model, collate(model, [items[at] for at in places])).logits.float()
        found.update(zip(places, logits.tolist(), strict=True))
    return [found[at] for at in range(len(items))]


def _zero_shot(model: Model, rows: list[Any], options: PredictOptions, chosen: ClassifyOptions) -> list[Classification]:
    labels = _candidates(chosen)
    entails, contradicts = _inference_labels(model)
    texts = [
        (check_text(value, row), chosen.hypothesis_template.replace("{}", label))
        for row, value in enumerate(rows)
        for label in labels
    ]
    owners = [row for row in range(len(rows)) for _ in labels]
    logits = score_logits(model, texts, options, cut=0, rows=owners)
    found = []
    for at in range(0, len(logits), len(labels)):
        group = logits[at : at + len(labels)]
        if chosen.multi_label or len(labels) == 1:
            scores = [softmax([row[contradicts], row[entails]])[1] for row in group]
        else:
            scores = softmax([row[entails] for row in group])
        found.append(rank(scores, labels, chosen.top_k))
    return found


def _candidates(chosen: ClassifyOptions) -> list[str]:
    given = chosen.candidate_labels or ()
    labels = [label.strip() for label in (given.split(",") if isinstance(given, str) else given)]
    if not labels or not all(labels):
        raise RequestError("`candidate_labels` is empty", hint="a list of labels", field="candidate_labels")
    if "{}" not in chosen.hypothesis_template:
        raise RequestError(
            f"`hypothesis_template` is {chosen.hypothesis_template!r}: it has no place for a label",
            hint='write {} where the label goes, as in "This example is {}."',
            field="hypothesis_template",
        )
    return labels


def _inference_labels(model: Model) -> tuple[int, int]:
    """Which outputs mean entailment and contradiction (by name, else the first or last that is not the former)."""
    names = {int(at): str(name).lower() for at, name in core(model.model).config.id2label.items()}
    entails = next((at for at, name in names.items() if name.startswith("entail")), None)
    if entails is None:
        raise ModelError(
            f"`{model.folder}` has no label `entailment` (its labels: {', '.join(names.values())})",
            hint="zero-shot classification needs a model of natural-language inference",
        )
    named = next((at for at, name in names.items() if name.startswith("contradict")), None)
    return entails, named if named is not None else (max(names) if entails == 0 else 0)
