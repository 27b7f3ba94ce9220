"""Objects in pictures: boxes in pixels of the picture as it was given, with labels and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.weights.predict.bounds import check_share
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.media_results import Box, DetectedObject, Detections
from modelyard.weights.predict.vision_inputs import Prepared, find_part, preparing, run_images

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["DetectOptions", "detect", "gather"]


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """What `object-detection` takes.

    Attributes:
        threshold: The lowest score of an object that is given.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.threshold, "threshold")


def detect(model: Model, rows: list[Any], options: PredictOptions) -> list[Detections]:
    """The objects of each picture, the surest first.

    Raises:
        RequestError: A wrong option, or a row that is no picture.
    """
    chosen = options.take(DetectOptions)
    processor = find_part(model, "image_processor")
    names = core(model.model).config.id2label

    def decode(outputs: Any, batch: list[Prepared]) -> list[Detections]:
        sizes = [item.size for item in batch]
        with preparing(model, batch[0].row):
            found = processor.post_process_object_detection(outputs, threshold=chosen.threshold, target_sizes=sizes)
        return [gather(one, names, item.size) for one, item in zip(found, batch, strict=True)]

    return run_images(model, rows, options, decode)


def gather(found: Mapping[str, Any], names: Mapping[int, str], size: tuple[int, int]) -> Detections:
    """Boxes, scores and labels of one picture, as processors give them (tensors), the surest first."""
    triples = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    objects = [DetectedObject(str(names[label]), score, Box(*box)) for box, score, label in triples]
    return Detections(tuple(sorted(objects, key=lambda item: -item.score)), size)
