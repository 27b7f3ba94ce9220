"""Pictures become batches of tensors: read, run through the model's own image processor, and batched by shape.

Each picture is prepared alone and only tensors of one shape share a batch. Padding pictures to a common size would change
them: position embeddings are stretched over the padding, and convolutions see its edge.

Knows pictures and processors; knows no task and no result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from modelyard.errors import ModelError, RequestError, YardError
from modelyard.weights.media import read_image
from modelyard.weights.predict.batching import batches, forward, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = [
    "Prepared",
    "find_part",
    "generating",
    "grouped",
    "named_row",
    "prepare_image",
    "preparing",
    "read_fields",
    "read_picture",
    "run_batches",
    "run_images",
    "stack",
    "tensors_of",
    "to_plain_tensors",
]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One row as a model takes it.

    Attributes:
        row: Its number.
        tensors: By the model's names; the first axis is 1.
        size: (height, width) of its picture.
        note: What the task still needs to know of it.
    """

    row: int
    tensors: dict[str, Any]
    size: tuple[int, int]
    note: Any = None


@contextmanager
def named_row(row: int) -> Iterator[None]:
    """Errors about an input say which row it is."""
    try:
        yield
    except RequestError as error:
        if "row" in error.details:
            raise
        raise RequestError(
            f"row {row}: {error.message}", code=error.code, hint=error.hint, **{**error.details, "row": row}
        ) from error


@contextmanager
def preparing(model: Model, row: int) -> Iterator[None]:
    """What a preprocessor raises, by name: a library that is missing, or an input that it refuses.

    Raises:
        ModelError: It needs torchvision, torchaudio or another library (code `needs_torchvision`, ...).
        RequestError: It refuses the input.
    """
    try:
        yield
    except YardError:
        raise
    except ImportError as error:
        said = f"{error} {error.name or ''}"
        known = ("torchvision", "torchaudio", "scipy", "timm", "detectron2", "pytesseract", "librosa", "phonemizer")
        needed = next((name for name in known if name in said), error.name or "another library")
        raise ModelError(
            f"`{model.folder}`: its preprocessor needs {needed}, which is not installed",
            code=f"needs_{needed}",
            hint=f"pip install {needed}",
        ) from error
    except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError) as error:
        # What processors raise of inputs that they were not made for; the cause is theirs, the row ours.
        said = str(error).strip().split("\n")[0][:300]
        raise RequestError(
            f"row {row}: the model's preprocessor refuses it: {said}", field="inputs", row=row
        ) from error


@contextmanager
def generating(model: Model) -> Iterator[None]:
    """Around a model's own `generate`: `running`, and a configuration that it cannot work with is named.

    Raises:
        ModelError: The model cannot generate as it is configured, or memory ran out.
    """
    try:
        with running(model):
            yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        # What `generate` raises of configurations that lack a token or of lengths beyond the positions.
        said = str(error).strip().split("\n")[0][:300]
        raise ModelError(
            f"`{model.folder}` cannot generate: {said}",
            hint=f"look at its generation_config.json, or run `yard doctor {model.folder}`",
        ) from error


def find_part(model: Model, kind: str) -> Any:
    """The `image_processor` or `feature_extractor` of a model: its whole preprocessor, or the part of it.

    Raises:
        ModelError: It has none.
    """
    whole = model.processor
    part = getattr(whole, kind, None)
    if part is None and kind == "image_processor":
        part = getattr(whole, "video_processor", None)
    found = part if part is not None else whole
    if found is None or hasattr(found, "convert_ids_to_tokens"):
        raise ModelError(
            f"`{model.folder}` has no {kind.replace('_', ' ')}",
            code="no_preprocessor",
            hint="it needs preprocessor_config.json or processor_config.json",
        )
    return found


def read_fields(value: Any, row: int, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a row that is a mapping.

    Raises:
        RequestError: It is none, lacks a field, or has one that means nothing here.
    """
    known = [*needed, *optional]
    if not isinstance(value, Mapping):
        raise RequestError(
            f"row {row} is a {type(value).__name__}, no mapping with {', '.join(f'`{name}`' for name in needed)}",
            hint="{" + ", ".join(f'"{name}": ...' for name in needed) + "}",
            field="inputs",
            row=row,
        )
    for name in needed:
        if value.get(name) is None:
            raise RequestError(
                f"row {row} has no `{name}`", hint=f"it takes {', '.join(known)}", field="inputs", row=row
            )
    for name in value:
        if name not in known:
            raise RequestError(
                f"row {row}: `{name}` means nothing here", hint=f"it takes {', '.join(known)}", field="inputs", row=row
            )
    return dict(value)


def read_picture(value: Any, row: int) -> Image:
    """The picture of a row: itself, or under `image` of a mapping that has nothing else.

    Raises:
        RequestError: No picture; the message names the row.
    """
    if isinstance(value, Mapping):
        value = read_fields(value, row, ["image"])["image"]
    with named_row(row):
        return read_image(value)


def prepare_image(model: Model, picture: Image, row: int, note: Any = None, **more: Any) -> Prepared:
    """A picture as the model takes it, alone; `more` goes to its image processor."""
    processor = find_part(model, "image_processor")
    with preparing(model, row):
        made = processor(images=[picture], return_tensors="pt", **more)
    return Prepared(row, tensors_of(made), (picture.height, picture.width), note)


def tensors_of(made: Mapping[str, Any]) -> dict[str, Any]:
    """What of a processor's output is a tensor."""
    import torch

    return {str(name): value for name, value in made.items() if isinstance(value, torch.Tensor)}


def grouped(items: Sequence[Prepared], size: int) -> Iterator[list[Prepared]]:
    """`items` in batches of at most `size` whose tensors have one shape each."""
    groups: dict[Any, list[Prepared]] = defaultdict(list)
    for item in items:
        groups[tuple((name, tuple(tensor.shape)) for name, tensor in sorted(item.tensors.items()))].append(item)
    for group in groups.values():
        yield from batches(group, size)


def stack(items: Sequence[Prepared]) -> dict[str, Any]:
    """The tensors of a batch, put together along the first axis."""
    import torch

    return {name: torch.cat([item.tensors[name] for item in items]) for name in items[0].tensors}


def run_batches(
    model: Model,
    items: Sequence[Prepared],
    size: int,
    decode: Callable[[Any, list[Prepared]], Sequence[Result]],
    **more: Any,
) -> list[Result]:
    """One forward pass for each batch of `items`; `decode(outputs, batch)` gives a result for each row, in inference mode."""
    import torch

    found: dict[int, Result] = {}
    for batch in grouped(items, size):
        outputs = to_plain_tensors(forward(model, stack(batch), **more))
        with torch.inference_mode():
            results = decode(outputs, batch)
        found.update(zip((item.row for item in batch), results, strict=True))
    return [found[item.row] for item in items]


def run_images(
    model: Model,
    rows: Sequence[Any],
    options: PredictOptions,
    decode: Callable[[Any, list[Prepared]], Sequence[Result]],
    **more: Any,
) -> list[Result]:
    """As `run_batches`, for rows that are pictures."""
    items = [prepare_image(model, read_picture(value, row), row) for row, value in enumerate(rows)]
    return run_batches(model, items, options.batch_size, decode, **more)


def to_plain_tensors(outputs: Any) -> Any:
    """A model's outputs on the CPU, floats as float32: processors decode with NumPy and SciPy, which know no bfloat16."""
    import torch

    if isinstance(outputs, torch.Tensor):
        return outputs.cpu().float() if outputs.is_floating_point() else outputs.cpu()
    if isinstance(outputs, list | tuple):
        return type(outputs)(to_plain_tensors(item) for item in outputs)
    if isinstance(outputs, dict):  # transformers' ModelOutput is one, and keeps its attributes in step
        for name in list(outputs):
            outputs[name] = to_plain_tensors(outputs[name])
    return outputs
