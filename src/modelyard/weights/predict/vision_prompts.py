"""Masks for what a prompt points at: points and boxes on a picture, with the SAM family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import read_image
from modelyard.weights.predict.batching import forward, to_numpy
from modelyard.weights.predict.media_results import Masks
from modelyard.weights.predict.vision_inputs import named_row, preparing, read_fields, tensors_of, to_plain_tensors
from modelyard.weights.predict.vision_points import read_boxes

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["mask"]

_SIZES = ("original_sizes", "reshaped_input_sizes")


def mask(model: Model, rows: list[Any], options: PredictOptions) -> list[Masks]:
    """The masks of each prompt of each picture.

    A row is `{"image", "points"}` or `{"image", "boxes"}` in pixels. `points` [(x, y), ...] are one prompt; a list of such
    lists is one prompt each. `labels` go with points: 1 where a point is on the object, 0 where it is not.

    Raises:
        RequestError: An option, or a row that is none of these.
        ModelError: The model's processor takes no prompts.
    """
    options.take_none()
    if not hasattr(model.processor, "post_process_masks") and not hasattr(model.processor, "image_processor"):
        raise ModelError(f"the preprocessor of `{model.folder}` ({type(model.processor).__name__}) takes no prompts")
    return [_mask_one(model, value, row) for row, value in enumerate(rows)]


def _mask_one(model: Model, value: Any, row: int) -> Masks:
    import torch

    fields = read_fields(value, row, ["image"], ["points", "labels", "boxes"])
    with named_row(row):
        picture = read_image(fields["image"])
    prompt = _read_prompt(fields, row)
    with preparing(model, row):
        made = model.processor(images=picture, return_tensors="pt", **prompt)
    tensors = tensors_of(made)
    given = {name: tensor for name, tensor in tensors.items() if name not in _SIZES}
    outputs = to_plain_tensors(forward(model, given))
    scores = outputs.iou_scores[0]
    sizes = [tensors[name] for name in _SIZES if name in tensors]  # SAM 2 does not pad, and knows the first alone
    processor = model.processor.image_processor
    with torch.inference_mode(), preparing(model, row):
        masks = processor.post_process_masks([outputs.pred_masks[0]], *sizes)[0]
    order = scores.argsort(dim=-1, descending=True, stable=True)
    index = order[..., None, None].expand(*order.shape, *masks.shape[-2:])
    return Masks(to_numpy(masks.gather(1, index)), to_numpy(scores.gather(1, order)))


def _read_prompt(fields: dict[str, Any], row: int) -> dict[str, Any]:
    if (fields.get("points") is None) == (fields.get("boxes") is None):
        raise RequestError(
            f"row {row} needs `points` or `boxes`, and not both",
            hint='{"image": ..., "points": [(x, y)]} or {"image": ..., "boxes": [(left, top, right, bottom)]}',
            field="inputs",
            row=row,
        )
    if fields.get("boxes") is not None:
        return {"input_boxes": [[list(box) for box in read_boxes(fields["boxes"], row)]]}
    try:
        prompts = _nest(fields["points"], 2)
        found: dict[str, Any] = {"input_points": [[[[float(x), float(y)] for x, y in prompt] for prompt in prompts]]}
        labels = None if fields.get("labels") is None else _nest(fields["labels"], 1)
    except (TypeError, ValueError, IndexError) as error:
        raise RequestError(
            f"row {row}: `points` are no points",
            hint="[(x, y), ...] in pixels, or a list of such lists",
            field="inputs",
            row=row,
        ) from error
    if labels is not None:
        if [len(prompt) for prompt in labels] != [len(prompt) for prompt in prompts]:
            raise RequestError(f"row {row} has not one of `labels` for each of `points`", field="inputs", row=row)
        found["input_labels"] = [[[int(label) for label in prompt] for prompt in labels]]
    return found


def _nest(values: Any, depth: int) -> list[Any]:
    """`values` as a list of prompts: one level of lists more where they are one prompt. `depth` is that of a prompt."""
    level, at = 0, values
    while isinstance(at, list | tuple) or hasattr(at, "shape"):
        level, at = level + 1, at[0]
    if level == depth:
        return [list(values)]
    if level == depth + 1:
        return [list(prompt) for prompt in values]
    raise ValueError(f"{level} levels of lists")
