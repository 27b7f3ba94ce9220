"""A value for each pixel: depth, normals, points in space, mattes, and pictures made of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import read_image
from modelyard.weights.media.images import read_mask
from modelyard.weights.predict.batching import to_numpy
from modelyard.weights.predict.media_results import DepthMap, Matte, NormalMap, Picture, PointMap
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    named_row,
    prepare_image,
    preparing,
    read_fields,
    read_picture,
    run_batches,
    run_images,
)

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["cut_out", "estimate_depth", "estimate_normals", "estimate_points", "transform"]


def estimate_depth(model: Model, rows: list[Any], options: PredictOptions) -> list[DepthMap]:
    """The depth of each picture, at its own size.

    Raises:
        RequestError: An option, or a row that is no picture.
    """
    options.take_none()
    processor = find_part(model, "image_processor")

    def decode(outputs: Any, batch: list[Prepared]) -> list[DepthMap]:
        sizes = [item.size for item in batch]
        with preparing(model, batch[0].row):
            # By place: ZoeDepth calls the parameter `source_sizes`, the others `target_sizes`.
            found = processor.post_process_depth_estimation(outputs, sizes)
        return [DepthMap(to_numpy(one["predicted_depth"])) for one in found]

    return run_images(model, rows, options, decode)


def estimate_normals(model: Model, rows: list[Any], options: PredictOptions) -> list[NormalMap]:
    """The unit normal at each pixel of each picture.

    Raises:
        RequestError: An option, or a row that is no picture.
    """
    options.take_none()

    def decode(outputs: Any, batch: list[Prepared]) -> list[NormalMap]:
        import torch

        unit = torch.nn.functional.normalize(outputs.normals.float(), dim=1, eps=1e-8)
        return [NormalMap(_to_size(one, item.size)) for one, item in zip(unit, batch, strict=True)]

    return run_images(model, rows, options, decode)


def estimate_points(model: Model, rows: list[Any], options: PredictOptions) -> list[PointMap]:
    """Where each pixel of each picture is in space; a model that predicts a scale has it applied.

    Raises:
        RequestError: An option, or a row that is no picture.
    """
    options.take_none()

    def decode(outputs: Any, batch: list[Prepared]) -> list[PointMap]:
        scales = getattr(outputs, "scales", None)
        found = []
        for at, item in enumerate(batch):
            points, scale = outputs.pointmaps[at].float(), None
            if scales is not None:
                scale = float(scales[at].item())
                points = points / scale
            found.append(PointMap(_to_size(points, item.size), scale))
        return found

    return run_images(model, rows, options, decode)


def cut_out(model: Model, rows: list[Any], options: PredictOptions) -> list[Matte]:
    """How much of each pixel is foreground.

    A row is `{"image", "trimap"}` for models that are told where to look (ViTMatte: 0 is background, 255 foreground, 128
    to be found out), a picture for those that are not.

    Raises:
        RequestError: An option, or a row that is none of these.
    """
    options.take_none()
    told = "trimaps" in _parameters(find_part(model, "image_processor"))
    items = [_prepare_matte(model, value, row, told) for row, value in enumerate(rows)]

    def decode(outputs: Any, batch: list[Prepared]) -> list[Matte]:
        foregrounds = getattr(outputs, "foregrounds", None)
        found = []
        for at, item in enumerate(batch):
            # Told models pad at the right and below, and keep the size; the others were stretched to theirs.
            alpha = _crop(outputs.alphas[at], item.size) if told else _to_size(outputs.alphas[at].float(), item.size)
            colours = None if foregrounds is None else _to_size(foregrounds[at].float(), item.size).clip(0, 1)
            found.append(Matte(alpha[..., 0].clip(0, 1), colours))
        return found

    return run_batches(model, items, options.batch_size, decode)


def transform(model: Model, rows: list[Any], options: PredictOptions) -> list[Picture]:
    """The picture that the model makes of each picture (a sharper and larger one).

    Raises:
        RequestError: An option, or a row that is no picture.
        ModelError: The model makes no picture.
    """
    options.take_none()

    def decode(outputs: Any, batch: list[Prepared]) -> list[Picture]:
        import numpy as np

        made = getattr(outputs, "reconstruction", None)
        if made is None:
            raise ModelError(f"`{model.folder}` ({type(outputs).__name__}) makes no picture")
        found = []
        for at, item in enumerate(batch):
            factor = made.shape[-1] // item.tensors["pixel_values"].shape[-1]
            pixels = _crop(made[at], (item.size[0] * factor, item.size[1] * factor))  # padded to whole windows
            found.append(Picture(np.round(pixels.clip(0, 1) * 255).astype(np.uint8)))
        return found

    return run_images(model, rows, options, decode)


def _prepare_matte(model: Model, value: Any, row: int, told: bool) -> Prepared:
    if not told:
        return prepare_image(model, read_picture(value, row), row)
    fields = read_fields(value, row, ["image", "trimap"])
    with named_row(row):
        picture = read_image(fields["image"])
        trimap = read_mask(fields["trimap"], picture.size)
    if len(trimap.getcolors() or ()) < 1:
        raise RequestError(f"row {row}: `trimap` is empty", field="inputs", row=row)
    return prepare_image(model, picture, row, trimaps=[trimap])


def _parameters(processor: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(processor.preprocess).parameters)


def _to_size(values: Any, size: tuple[int, int]) -> Any:
    """(channels, h, w) stretched to `size`, as a float32 array (height, width, channels)."""
    import torch

    stretched = torch.nn.functional.interpolate(values[None], size=size, mode="bilinear", align_corners=False)
    return to_numpy(stretched[0].permute(1, 2, 0))


def _crop(values: Any, size: tuple[int, int]) -> Any:
    """(channels, h, w) without what was padded, as a float32 array (height, width, channels)."""
    return to_numpy(values[:, : size[0], : size[1]].float().permute(1, 2, 0))
