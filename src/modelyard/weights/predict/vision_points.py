"""Points in pictures: poses of persons, keypoints, and keypoints that two pictures share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.media import read_image
from modelyard.weights.predict.batching import forward, to_numpy
from modelyard.weights.predict.bounds import check_share
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.media_results import Box, Keypoints, Matches, Pose, Poses
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    named_row,
    prepare_image,
    preparing,
    read_fields,
    run_batches,
    run_images,
    tensors_of,
    to_plain_tensors,
)

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["MatchOptions", "find_keypoints", "find_poses", "match_keypoints", "read_boxes"]


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """What `keypoint-matching` takes.

    Attributes:
        threshold: The lowest score of a match; 0 gives all that the model found.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_share(self.threshold, "threshold")


def find_poses(model: Model, rows: list[Any], options: PredictOptions) -> list[Poses]:
    """The keypoints of each person of each picture.

    A row is `{"image", "boxes"}`: persons are found by a detector first, and given as (left, top, right, bottom). A
    picture alone is one person as large as it.

    Raises:
        RequestError: An option, or a row that is none of these.
    """
    options.take_none()
    processor = find_part(model, "image_processor")
    names = core(model.model).config.id2label
    found = []
    for row, value in enumerate(rows):  # the boxes of a row are its batch
        fields = read_fields(value if isinstance(value, dict) else {"image": value}, row, ["image"], ["boxes"])
        with named_row(row):
            picture = read_image(fields["image"])
        boxes = (
            read_boxes(fields.get("boxes"), row)
            if fields.get("boxes") is not None
            else [(0.0, 0.0, float(picture.width), float(picture.height))]
        )
        corners = [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes]
        poses: list[Pose] = []
        for start in range(0, len(corners), options.batch_size):
            part = corners[start : start + options.batch_size]
            item = prepare_image(model, picture, row, boxes=[part])
            more = {"dataset_index": _experts(model, len(part))} if _has_experts(model) else {}
            outputs = to_plain_tensors(forward(model, item.tensors, **more))
            with preparing(model, row):
                made = processor.post_process_pose_estimation(outputs, boxes=[part])[0]
            for one, box in zip(made, boxes[start : start + options.batch_size], strict=True):
                labels = tuple(str(names[int(label)]) for label in one["labels"])
                poses.append(Pose(to_numpy(one["keypoints"]), to_numpy(one["scores"]), labels, Box(*box)))
        found.append(Poses(tuple(poses)))
    return found


def find_keypoints(model: Model, rows: list[Any], options: PredictOptions) -> list[Keypoints]:
    """The keypoints of each picture with their descriptors.

    Raises:
        RequestError: An option, or a row that is no picture.
    """
    options.take_none()
    processor = find_part(model, "image_processor")

    def decode(outputs: Any, batch: list[Prepared]) -> list[Keypoints]:
        with preparing(model, batch[0].row):
            made = processor.post_process_keypoint_detection(outputs, [item.size for item in batch])
        return [
            Keypoints(to_numpy(one["keypoints"].float()), to_numpy(one["scores"]), to_numpy(one["descriptors"]))
            for one in made
        ]

    return run_images(model, rows, options, decode)


def match_keypoints(model: Model, rows: list[Any], options: PredictOptions) -> list[Matches]:
    """Where the points of `image` are in `other`; a row is `{"image", "other"}`.

    Raises:
        RequestError: A wrong option, or a row that is none.
    """
    chosen = options.take(MatchOptions)
    processor = find_part(model, "image_processor")
    items = []
    for row, value in enumerate(rows):
        fields = read_fields(value, row, ["image", "other"])
        with named_row(row):
            first, second = read_image(fields["image"]), read_image(fields["other"])
        with preparing(model, row):
            made = processor([[first, second]], return_tensors="pt")
        sizes = [(first.height, first.width), (second.height, second.width)]
        items.append(Prepared(row, tensors_of(made), sizes[0], sizes))

    def decode(outputs: Any, batch: list[Prepared]) -> list[Matches]:
        with preparing(model, batch[0].row):
            made = processor.post_process_keypoint_matching(
                outputs, [item.note for item in batch], threshold=chosen.threshold
            )
        return [_order(one) for one in made]

    # One pair at a time: the matcher pads a batch to its longest list of keypoints, and padding takes part in attention.
    return run_batches(model, items, 1, decode)


def read_boxes(value: Any, row: int) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) of a row, in pixels.

    Raises:
        RequestError: There are none, or one is none.
    """
    found = []
    for box in value if isinstance(value, list | tuple) or hasattr(value, "shape") else ():
        numbers = [float(number) for number in box]
        if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
            raise RequestError(
                f"row {row}: {tuple(numbers)} is no box",
                hint="(left, top, right, bottom) in pixels",
                field="inputs",
                row=row,
            )
        found.append((numbers[0], numbers[1], numbers[2], numbers[3]))
    if not found:
        raise RequestError(
            f"row {row} has no boxes", hint='"boxes": [(left, top, right, bottom), ...]', field="inputs", row=row
        )
    return found


def _order(found: Any) -> Matches:
    order = found["matching_scores"].argsort(descending=True, stable=True)
    points, others = (to_numpy(found[name][order].float()) for name in ("keypoints0", "keypoints1"))
    return Matches(points, others, to_numpy(found["matching_scores"][order]))


def _has_experts(model: Model) -> bool:
    """Whether it is a ViTPose+ model: layers of experts, one for each data set, the first for persons."""
    backbone = getattr(core(model.model).config, "backbone_config", None)
    return getattr(backbone, "num_experts", 1) > 1


def _experts(model: Model, count: int) -> Any:
    import torch

    return torch.zeros(count, dtype=torch.long, device=model.model.device)
