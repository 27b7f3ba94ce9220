"""Regions of pictures: semantic, instance and panoptic segmentation, as masks of the picture's own size."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.batching import to_numpy
from modelyard.weights.predict.bounds import check_share
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.media_results import Segment, Segmentation
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    named_row,
    prepare_image,
    preparing,
    read_picture,
    run_batches,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["KINDS", "SegmentOptions", "segment"]

KINDS = ("panoptic", "instance", "semantic")
"""Kinds of segmentation, in the order in which one is looked for."""

_FIRST = {"semantic-segmentation": ("semantic",), "instance-segmentation": ("instance", "panoptic", "semantic")}


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What the segmentations take.

    Attributes:
        kind: `semantic`, `instance` or `panoptic`; by default the task's own, or the first of `KINDS` that the model does.
        threshold: The lowest score of a region (not of a semantic segmentation, which has no scores).
        mask_threshold: What a pixel needs to belong to a mask.
        overlap_threshold: The share of a mask that must be left when surer masks have taken their pixels.
    """

    kind: str | None = None
    threshold: float = 0.5
    mask_threshold: float = 0.5
    overlap_threshold: float = 0.8

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise RequestError(f"`kind` is {self.kind!r}", hint=f"one of {', '.join(KINDS)}", field="kind")
        for name in ("threshold", "mask_threshold", "overlap_threshold"):
            check_share(getattr(self, name), name)


def segment(model: Model, rows: list[Any], options: PredictOptions) -> list[Segmentation]:
    """The regions of each picture.

    Raises:
        RequestError: A wrong option, a row that is no picture, or a kind that the model does not do.
        ModelError: Its processor does no segmentation.
    """
    chosen = options.take(SegmentOptions)
    processor = find_part(model, "image_processor")
    kind = _pick_kind(model, processor, options.task, chosen)
    names = core(model.model).config.id2label
    asked = {"task_inputs": [kind]} if core(model.model).config.model_type == "oneformer" else {}
    whole = model.processor if asked else None

    def decode(outputs: Any, batch: list[Prepared]) -> list[Segmentation]:
        sizes = [item.size for item in batch]
        process = getattr(processor, f"post_process_{kind}_segmentation")
        # Said outright, or the library logs that it assumes it.
        more: dict[str, Any] = (
            {"label_ids_to_fuse": set()} if "label_ids_to_fuse" in inspect.signature(process).parameters else {}
        )
        with preparing(model, batch[0].row):
            if kind == "semantic":
                maps = process(outputs, target_sizes=sizes)
                return [_semantic(found, names, size) for found, size in zip(maps, sizes, strict=True)]
            found = process(
                outputs,
                threshold=chosen.threshold,
                mask_threshold=chosen.mask_threshold,
                overlap_mask_area_threshold=chosen.overlap_threshold,
                target_sizes=sizes,
                **more,
            )
        return [_parts(one, names, kind, size) for one, size in zip(found, sizes, strict=True)]

    items = []
    for row, value in enumerate(rows):
        picture = read_picture(value, row)
        if whole is None:
            items.append(prepare_image(model, picture, row))
            continue
        with named_row(row), preparing(model, row):  # OneFormer is told in words what to do
            made = whole(images=[picture], return_tensors="pt", **asked)
        items.append(Prepared(row, dict(made), (picture.height, picture.width)))
    return run_batches(model, items, options.batch_size, decode)


def _pick_kind(model: Model, processor: Any, task: str, chosen: SegmentOptions) -> str:
    able = [kind for kind in KINDS if hasattr(processor, f"post_process_{kind}_segmentation")]
    if not able:
        raise ModelError(f"the image processor of `{model.folder}` ({type(processor).__name__}) does no segmentation")
    if chosen.kind is not None:
        if chosen.kind not in able:
            raise RequestError(
                f"`{model.folder}` does no {chosen.kind} segmentation", hint=f"it does {', '.join(able)}", field="kind"
            )
        return chosen.kind
    return next(kind for kind in (*_FIRST.get(task, ()), *KINDS) if kind in able)


def _semantic(found: Any, names: Mapping[int, str], size: tuple[int, int]) -> Segmentation:
    import numpy as np

    labels = to_numpy(found)
    segments = [Segment(str(names[int(label)]), None, labels == label) for label in np.unique(labels)]
    return Segmentation(tuple(segments), "semantic", size)


def _parts(found: Mapping[str, Any], names: Mapping[int, str], kind: str, size: tuple[int, int]) -> Segmentation:
    labels = to_numpy(found["segmentation"])
    segments = [
        Segment(str(names[part["label_id"]]), float(part["score"]), labels == part["id"])
        for part in found["segments_info"]
    ]
    return Segmentation(tuple(sorted(segments, key=lambda item: -(item.score or 0.0))), kind, size)
