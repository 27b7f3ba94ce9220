"""Pictures judged by labels that are chosen at run time: the likeliest one, or where each of them is.

A row is `{"image", "candidate_labels"}`; with the option `candidate_labels` a row may be a picture alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import read_image
from modelyard.weights.predict.batching import forward
from modelyard.weights.predict.bounds import check_counts, check_share
from modelyard.weights.predict.encoding import core, find_limit, find_tokenizer
from modelyard.weights.predict.labels import rank
from modelyard.weights.predict.media_results import Box, DetectedObject, Detections
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    grouped,
    named_row,
    prepare_image,
    preparing,
    read_fields,
    stack,
    to_plain_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions
    from modelyard.weights.predict.results import Classification

__all__ = ["ChooseOptions", "FindOptions", "choose", "find"]

_GROUNDED = ("grounding-dino", "mm-grounding-dino")


@dataclass(frozen=True, slots=True)
class ChooseOptions:
    """What `zero-shot-image-classification` takes.

    Attributes:
        candidate_labels: To choose from, for rows that bring none.
        hypothesis_template: What a label is written into, with `{}` for it.
        top_k: Labels to give, the likeliest first; None for all.
    """

    candidate_labels: Sequence[str] | None = None
    hypothesis_template: str = "This is a photo of {}."
    top_k: int | None = None

    def __post_init__(self) -> None:
        if "{}" not in self.hypothesis_template:
            raise RequestError(
                f"`hypothesis_template` is {self.hypothesis_template!r}",
                hint="write {} where the label goes",
                field="hypothesis_template",
            )
        check_counts(self, "top_k")


@dataclass(frozen=True, slots=True)
class FindOptions:
    """What `zero-shot-object-detection` takes.

    Attributes:
        candidate_labels: To look for, for rows that bring none.
        threshold: The lowest score of an object that is given.
    """

    candidate_labels: Sequence[str] | None = None
    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_share(self.threshold, "threshold")


def choose(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification]:
    """The labels of each picture by their probability (SigLIP: each for itself, the others sum to 1).

    Raises:
        RequestError: A wrong option, or a row without picture or labels.
    """
    chosen = options.take(ChooseOptions)
    items = _prepare(model, rows, chosen.candidate_labels)
    kind = core(model.model).config.model_type
    found: dict[int, Classification] = {}
    for labels in dict.fromkeys(item.note for item in items):
        texts = _encode(model, [chosen.hypothesis_template.replace("{}", label) for label in labels], kind)
        for batch in grouped([item for item in items if item.note == labels], options.batch_size):
            outputs = forward(model, {**texts, **stack(batch)})
            logits = getattr(outputs, "logits_per_image", None)
            if logits is None:
                raise ModelError(f"`{model.folder}` ({type(outputs).__name__}) compares no pictures with texts")
            scores = logits.float().sigmoid() if "siglip" in kind else logits.float().softmax(-1)
            for item, row in zip(batch, scores.tolist(), strict=True):
                found[item.row] = rank(row, labels, chosen.top_k)
    return [found[row] for row in range(len(rows))]


def find(model: Model, rows: list[Any], options: PredictOptions) -> list[Detections]:
    """Where each label is in each picture, the surest first.

    Raises:
        RequestError: A wrong option, or a row without picture or labels.
    """
    chosen = options.take(FindOptions)
    items = _prepare(model, rows, chosen.candidate_labels, detect=True)
    grounded = core(model.model).config.model_type in _GROUNDED
    # A row at a time: its labels are the other half of its batch, and models pad them to the longest.
    return [_find_grounded(model, item, chosen) if grounded else _find_each(model, item, chosen) for item in items]


def _find_each(model: Model, item: Prepared, chosen: FindOptions) -> Detections:
    """Each label asked for itself (OWL-ViT, OWLv2)."""
    processor = find_part(model, "image_processor")
    objects = []
    for label in item.note:
        outputs = to_plain_tensors(forward(model, {**_encode(model, [label], "owl"), **item.tensors}))
        with preparing(model, item.row):
            made = processor.post_process_object_detection(
                outputs, threshold=chosen.threshold, target_sizes=[item.size]
            )[0]
        objects += [
            DetectedObject(label, score, Box(*box))
            for score, box in zip(made["scores"].tolist(), made["boxes"].tolist(), strict=True)
        ]
    return Detections(tuple(sorted(objects, key=lambda one: -one.score)), item.size)


def _find_grounded(model: Model, item: Prepared, chosen: FindOptions) -> Detections:
    """All labels in one text, and each object's words found in it (Grounding DINO)."""
    with preparing(model, item.row):
        text = find_tokenizer(model)(". ".join(item.note) + ".", return_tensors="pt")
    outputs = to_plain_tensors(forward(model, {**dict(text), **item.tensors}))
    with preparing(model, item.row):
        made = model.processor.post_process_grounded_object_detection(
            outputs,
            text["input_ids"],
            threshold=chosen.threshold,
            text_threshold=chosen.threshold,
            target_sizes=[item.size],
        )[0]
    names = made["text_labels"] if "text_labels" in made else made["labels"]  # reading the latter warns
    objects = [
        DetectedObject(str(label), score, Box(*box))
        for label, score, box in zip(names, made["scores"].tolist(), made["boxes"].tolist(), strict=True)
    ]
    return Detections(tuple(sorted(objects, key=lambda one: -one.score)), item.size)


def _prepare(model: Model, rows: list[Any], given: Sequence[str] | None, *, detect: bool = False) -> list[Prepared]:
    items = []
    for row, value in enumerate(rows):
        fields = read_fields(
            value if isinstance(value, Mapping) else {"image": value}, row, ["image"], ["candidate_labels"]
        )
        labels = fields.get("candidate_labels", given)
        labels = labels.split(",") if isinstance(labels, str) else labels
        cleaned = tuple(str(label).strip() for label in labels or ())
        if not cleaned or not all(cleaned):
            raise RequestError(
                f"row {row} has no labels",
                hint='{"image": ..., "candidate_labels": ["cat", "dog"]}',
                field="inputs",
                row=row,
            )
        with named_row(row):
            picture = read_image(fields["image"])
        item = prepare_image(model, picture, row, cleaned)
        kept = {name: tensor for name, tensor in item.tensors.items() if name.startswith("pixel") or not detect}
        items.append(Prepared(row, kept, item.size, cleaned))
    return items


def _encode(model: Model, texts: list[str], kind: str) -> dict[str, Any]:
    tokenizer = find_tokenizer(model)
    limit = find_limit(model)
    if "siglip" in kind:  # trained on texts padded to their full length, without a mask
        made = tokenizer(
            texts, padding="max_length", max_length=min(limit or 64, 64), truncation=True, return_tensors="pt"
        )
    else:
        made = tokenizer(texts, padding=True, return_tensors="pt")
    longest = made["input_ids"].shape[1]
    if limit is not None and longest > limit:
        raise RequestError(
            f"a label has {longest} tokens and the model takes {limit}", hint="shorten it", field="candidate_labels"
        )
    return dict(made)
