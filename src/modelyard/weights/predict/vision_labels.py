"""Labels of pictures and of videos.

Scores are what the checkpoint's problem type says, as for texts. A video is read at as many frames as the model was made
for, spread evenly over the whole of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.weights.media import read_video
from modelyard.weights.media.images import is_picture
from modelyard.weights.media.video import pick_frames
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.labels import LabelOptions, decode
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    named_row,
    preparing,
    run_batches,
    run_images,
    tensors_of,
)

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions
    from modelyard.weights.predict.results import Classification, Regression

__all__ = ["classify", "classify_videos", "decode_labels", "is_one_video"]


def classify(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification | Regression]:
    """The labels of each picture; for a regression model its numbers.

    Raises:
        RequestError: A wrong option, or a row that is no picture.
    """
    chosen = options.take(LabelOptions)
    return run_images(model, rows, options, lambda outputs, _batch: decode_labels(model, outputs, chosen))


def decode_labels(model: Model, outputs: Any, chosen: LabelOptions) -> list[Classification | Regression]:
    """A result for each row of a classifier's logits."""
    config = core(model.model).config
    return [decode(config, row, chosen) for row in outputs.logits.float().tolist()]


def classify_videos(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification | Regression]:
    """The labels of each video.

    Raises:
        RequestError: A wrong option, or a row that is no video.
    """
    chosen = options.take(LabelOptions)
    items = [_prepare_video(model, value, row) for row, value in enumerate(rows)]
    return run_batches(model, items, options.batch_size, lambda outputs, _batch: decode_labels(model, outputs, chosen))


def is_one_video(inputs: Any) -> bool:
    """Whether `inputs` is one video: a list of pictures is one, a list of lists or of arrays of four axes is several."""
    if not isinstance(inputs, list | tuple):
        return True
    # A path or bytes is a whole video too: a list of them is several videos, unless it is a list of frames' arrays.
    return (
        bool(inputs)
        and all(is_picture(item) and getattr(item, "ndim", 3) != 4 for item in inputs)
        and not any(isinstance(item, str | bytes) or hasattr(item, "__fspath__") for item in inputs)
    )


def _prepare_video(model: Model, value: Any, row: int) -> Prepared:
    with named_row(row):
        frames = read_video(value)
    config = core(model.model).config
    count = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    chosen = pick_frames(frames, count) if count else frames
    processor = find_part(model, "image_processor")
    with preparing(model, row):
        made = processor([list(chosen)], return_tensors="pt")
    return Prepared(row, tensors_of(made), (frames[0].height, frames[0].width))
