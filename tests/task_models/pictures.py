"""What the tiny models of pictures are made with: pictures, configurations, image processors of 32 pixels, a way to save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 32


LABELS = {0: "cat", 1: "dog", 2: "bird"}


HEADS = {"id2label": LABELS, "label2id": {name: at for at, name in LABELS.items()}}


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 8,
}


SWIN = {"image_size": SIZE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """A uint8 RGB picture (height, width, 3): smooth colours with a bright box, another for each seed."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    slopes = generator.uniform(0.5, 3.0, size=(3, 2))
    values = np.stack([80 + a * x + b * y for a, b in slopes], axis=-1)
    values[height // 3 : height // 2, width // 3 : width // 2] = generator.uniform(0, 255, size=3)
    made: np.ndarray = np.clip(values, 0, 255).astype(np.uint8)
    return made


def clip(frames: int = 4, width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """A uint8 video (frames, height, width, 3)."""
    return np.stack([picture(width, height, seed + at) for at in range(frames)])


def save(folder: Path, name: str, config: Any, *preprocessors: Any) -> Path:
    """Write a model of the class `name` with seeded random weights, and its preprocessors, to `folder`."""
    import torch
    import transformers

    torch.manual_seed(0)
    model: Any = getattr(transformers, name)(config)
    with torch.no_grad():  # the usual 0.02 makes every output nearly equal, and wrong code would pass
        for values in model.parameters():
            if values.ndim > 1 and 0 < values.std() < 0.1:
                wide = values.shape[0] > 1  # else a table of positions
                values.mul_((values[0].numel() ** -0.5 if wide else 0.5) / values.std())
    model.eval().save_pretrained(folder)
    for preprocessor in preprocessors:
        preprocessor.save_pretrained(folder)
    return folder


def config(name: str, **values: Any) -> Any:
    """A configuration of transformers, by the name of its class."""
    import transformers

    return getattr(transformers, name)(**values)


def processor(name: str, **values: Any) -> Any:
    """An image processor of the Pillow backend."""
    import transformers

    return getattr(transformers, f"{name}ImageProcessorPil")(**values)


def square(name: str = "ViT", **values: Any) -> Any:
    """An image processor that makes images of `SIZE` x `SIZE`."""
    return processor(name, size={"height": SIZE, "width": SIZE}, **values)


def trimap(width: int = 40, height: int = 30) -> np.ndarray:
    """A uint8 trimap (height, width): 0 background, 255 foreground, 128 unknown."""
    values = np.zeros((height, width), dtype=np.uint8)
    values[height // 4 : -height // 4, width // 4 : -width // 4] = 128
    values[height // 3 : -height // 3, width // 3 : -width // 3] = 255
    return values
