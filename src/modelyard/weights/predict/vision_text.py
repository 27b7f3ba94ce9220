"""Text and tables in pictures: a line read by an OCR model, a table's structure as HTML tags.

The alphabets of these models are part of their image processors, which exist for torchvision only today: without it the
model's preprocessor does not load (`needs_torchvision`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.predict.batching import forward
from modelyard.weights.predict.media_results import TableStructure
from modelyard.weights.predict.results import Classification
from modelyard.weights.predict.vision_inputs import find_part, prepare_image, preparing, read_picture, to_plain_tensors

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["read_lines", "read_tables"]


def read_lines(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification]:
    """The text in each picture of one line, as `label`, and the mean probability of its characters.

    Raises:
        RequestError: An option, or a row that is no picture.
        ModelError: The processor has no alphabet.
    """
    options.take_none()
    decode = _find(model, "post_process_text_recognition")
    found = []
    for row, value in enumerate(rows):  # alone: processors pad lines to the longest of a batch
        item = prepare_image(model, read_picture(value, row), row)
        outputs = to_plain_tensors(forward(model, item.tensors))
        with preparing(model, row):
            made = decode(outputs)[0]
        found.append(Classification(str(made["text"]), float(made["score"])))
    return found


def read_tables(model: Model, rows: list[Any], options: PredictOptions) -> list[TableStructure]:
    """The structure of the table in each picture.

    Raises:
        RequestError: An option, or a row that is no picture.
        ModelError: The processor has no vocabulary of tags.
    """
    options.take_none()
    decode = _find(model, "post_process_table_recognition")
    found = []
    for row, value in enumerate(rows):  # alone: the processor decodes the first of a batch only
        item = prepare_image(model, read_picture(value, row), row)
        outputs = to_plain_tensors(forward(model, {"pixel_values": item.tensors["pixel_values"]}))
        with preparing(model, row):
            made = decode(outputs)
        found.append(TableStructure(tuple(made["structure"]), float(made["structure_score"])))
    return found


def _find(model: Model, name: str) -> Any:
    processor = find_part(model, "image_processor")
    found = getattr(processor, name, None)
    if found is None:
        raise ModelError(
            f"the image processor of `{model.folder}` ({type(processor).__name__}) does not know the model's alphabet",
            hint="keep the processor that the model came with; it needs torchvision",
            code="needs_torchvision",
        )
    return found
