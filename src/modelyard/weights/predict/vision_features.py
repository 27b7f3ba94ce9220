"""What models see in pictures: hidden states, feature maps of backbones, hidden patches guessed, pictures continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import read_image
from modelyard.weights.predict.audio_synthesis import seeded
from modelyard.weights.predict.batching import running, to_device, to_numpy
from modelyard.weights.predict.bounds import check_share
from modelyard.weights.predict.encoding import core
from modelyard.weights.predict.media_results import FeatureMaps, ImageFeatures, Picture, Reconstruction
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    generating,
    named_row,
    prepare_image,
    read_fields,
    read_picture,
    run_batches,
    run_images,
    stack,
)

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["ContinueOptions", "HideOptions", "continue_pictures", "extract", "extract_maps", "reconstruct"]


@dataclass(frozen=True, slots=True)
class HideOptions:
    """What `masked-image-modeling` takes.

    Attributes:
        share: Of the patches that are hidden where a row brings no mask.
        seed: Of which ones.
    """

    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self.share, "share")


@dataclass(frozen=True, slots=True)
class ContinueOptions:
    """What `causal-image-modeling` takes.

    Attributes:
        keep: The upper share of the picture that is kept; the rest is made.
        sample: Draw pixels by their probabilities instead of taking the likeliest.
        seed: Of the drawing.
    """

    keep: float = 0.5
    sample: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self.keep, "keep")


def extract(model: Model, rows: list[Any], options: PredictOptions) -> list[ImageFeatures]:
    """The last hidden states of each picture.

    Raises:
        RequestError: An option, or a row that is no picture.
    """
    options.take_none()
    inner = core(model.model)
    # Models of pictures and texts (CLIP) have their eyes as a part.
    vision = inner if not hasattr(inner, "vision_model") else inner.vision_model

    def decode(outputs: Any, batch: list[Prepared]) -> list[ImageFeatures]:
        pooled = getattr(outputs, "pooler_output", None)
        return [
            ImageFeatures(
                to_numpy(outputs.last_hidden_state[at]),
                None if pooled is None else to_numpy(pooled[at].flatten()),
            )
            for at in range(len(batch))
        ]

    if vision is inner:
        return run_images(model, rows, options, decode)
    found: list[ImageFeatures] = []
    for row, value in enumerate(rows):
        item = prepare_image(model, read_picture(value, row), row)
        with running(model):
            found += decode(vision(**to_device(model, {"pixel_values": item.tensors["pixel_values"]})), [item])
    return found


def extract_maps(model: Model, rows: list[Any], options: PredictOptions) -> list[FeatureMaps]:
    """The feature maps of a backbone's stages for each picture.

    Raises:
        RequestError: An option, or a row that is no picture.
    """
    options.take_none()
    stages = list(core(model.model).out_features)

    def decode(outputs: Any, batch: list[Prepared]) -> list[FeatureMaps]:
        return [
            FeatureMaps({name: to_numpy(maps[at]) for name, maps in zip(stages, outputs.feature_maps, strict=True)})
            for at in range(len(batch))
        ]

    return run_images(model, rows, options, decode)


def reconstruct(model: Model, rows: list[Any], options: PredictOptions) -> list[Reconstruction]:
    """Each picture with hidden patches guessed. A row is a picture, or `{"image", "mask"}` with a bool (rows, columns).

    Raises:
        RequestError: A wrong option, or a row that is none of these.
        ModelError: A batch failed in the model.
    """
    chosen = options.take(HideOptions)
    items = [_hide(model, value, row, chosen) for row, value in enumerate(rows)]

    def decode(outputs: Any, batch: list[Prepared]) -> list[Reconstruction]:
        found = []
        for at, item in enumerate(batch):
            made = outputs.reconstruction[at].float()
            given = item.tensors["pixel_values"][0].to(made)
            scale = made.shape[-1] // item.note.shape[-1]
            hidden = item.note.repeat_interleave(scale, 0).repeat_interleave(scale, 1).to(made.device)
            error = (made - given).abs()[:, hidden]
            loss = float(error.mean()) if error.numel() else 0.0
            found.append(Reconstruction(to_numpy(made), to_numpy(item.note), loss))
        return found

    return run_batches(model, items, options.batch_size, decode)


def continue_pictures(model: Model, rows: list[Any], options: PredictOptions) -> list[Picture]:
    """The upper part of each picture, at the model's own size and colours, and what the model makes of the rest.

    Raises:
        RequestError: A wrong option, or a row that is no picture.
        ModelError: The image processor has no colours (`clusters`).
    """
    chosen = options.take(ContinueOptions)
    processor = find_part(model, "image_processor")
    clusters = getattr(processor, "clusters", None)
    if clusters is None:
        raise ModelError(f"the image processor of `{model.folder}` has no colours (`clusters`)")
    items = [prepare_image(model, read_picture(value, row), row) for row, value in enumerate(rows)]
    if not chosen.sample:
        return run_generation(model, items, options.batch_size, clusters, chosen)
    return run_generation(model, items, 1, clusters, chosen)  # each row draws from its own seed


def run_generation(
    model: Model, items: list[Prepared], size: int, clusters: Any, chosen: ContinueOptions
) -> list[Picture]:
    """Pixels after pixels, row by row of the picture."""
    import math

    import numpy as np
    import torch

    colours = np.asarray(clusters, dtype=np.float32)
    start = core(model.model).config.vocab_size - 1  # the token in front of the first pixel; no colour
    found: list[Picture] = []
    for first in range(0, len(items), size):
        batch = items[first : first + size]
        ids = stack(batch)["input_ids"].flatten(1).to(model.model.device)
        total = ids.shape[1]
        side = math.isqrt(total)
        kept = round(side * chosen.keep) * side
        given = torch.cat([torch.full((len(batch), 1), start, device=ids.device), ids[:, :kept]], dim=1)
        made = given
        if kept < total:
            with seeded(chosen.seed), generating(model):
                made = core(model.model).generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=total - kept,
                    min_new_tokens=total - kept,
                    do_sample=chosen.sample,
                    suppress_tokens=[start],
                    pad_token_id=start,
                )
        for pixels in made[:, 1:].cpu().numpy():
            levels = np.rint(127.5 * (colours[pixels] + 1)).clip(0, 255).astype(np.uint8)
            found.append(Picture(levels.reshape(side, side, 3)))
    return found


def _hide(model: Model, value: Any, row: int, chosen: HideOptions) -> Prepared:
    import torch

    fields = read_fields(value if isinstance(value, dict) else {"image": value}, row, ["image"], ["mask"])
    with named_row(row):
        picture = read_image(fields["image"])
    item = prepare_image(model, picture, row)
    config = core(model.model).config
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    shape = tuple(side // patch for side in item.tensors["pixel_values"].shape[-2:])
    if fields.get("mask") is not None:
        mask = torch.as_tensor(fields["mask"]).bool()
        if tuple(mask.shape) != shape:
            raise RequestError(
                f"row {row}: `mask` has the shape {tuple(mask.shape)}, and the model has {shape} patches",
                field="inputs",
                row=row,
            )
    else:
        count = shape[0] * shape[1]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(chosen.seed))
        mask = torch.zeros(count, dtype=torch.bool)
        mask[order[: round(count * chosen.share)]] = True
        mask = mask.reshape(shape)
    tensors = {**item.tensors, "bool_masked_pos": mask.flatten()[None]}
    return Prepared(row, tensors, item.size, mask)
