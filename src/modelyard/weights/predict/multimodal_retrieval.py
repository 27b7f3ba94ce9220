"""Late interaction (ColPali): a vector for each token of a query and each patch of a page, and scores of pages for queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import read_image
from modelyard.weights.predict.batching import forward, to_numpy
from modelyard.weights.predict.encoding import check_text
from modelyard.weights.predict.media_results import Ranking, Vectors
from modelyard.weights.predict.vision_inputs import named_row, preparing, read_fields, tensors_of

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["embed", "score_pages"]


def embed(model: Model, rows: list[Any], options: PredictOptions) -> list[Vectors | Ranking]:
    """The vectors of each `{"text"}` (a query) or `{"image"}` (a page); of `{"text", "images"}` the scores of the pages.

    Raises:
        RequestError: An option, or a row that is none of these.
        ModelError: The model's processor knows no queries.
    """
    options.take_none()
    if not hasattr(model.processor, "process_queries"):
        raise ModelError(f"the preprocessor of `{model.folder}` ({type(model.processor).__name__}) knows no queries")
    return [_answer(model, value, row) for row, value in enumerate(rows)]


def score_pages(query: Vectors, pages: list[Vectors]) -> tuple[float, ...]:
    """For each page the sum over the query's vectors of the closest of the page's.

    >>> import numpy as np
    >>> one = Vectors(np.eye(2, dtype=np.float32))
    >>> score_pages(one, [one, Vectors(one.values[:1])])
    (2.0, 1.0)
    """
    return tuple(float((query.values @ page.values.T).max(axis=1).sum()) for page in pages)


def _answer(model: Model, value: Any, row: int) -> Vectors | Ranking:
    fields = read_fields({"text": value} if isinstance(value, str) else value, row, [], ["text", "image", "images"])
    given = sorted(name for name, held in fields.items() if held is not None)
    if given == ["text"]:
        return _embed_text(model, fields["text"], row)
    if given == ["image"]:
        return _embed_page(model, fields["image"], row)
    if given == ["images", "text"] and isinstance(fields["images"], list | tuple) and fields["images"]:
        query = _embed_text(model, fields["text"], row)
        scores = score_pages(query, [_embed_page(model, page, row) for page in fields["images"]])
        return Ranking(scores, tuple(sorted(range(len(scores)), key=lambda at: -scores[at])))
    raise RequestError(
        f"row {row} has {', '.join(given) or 'nothing'}",
        hint='{"text": query}, {"image": page}, or {"text": query, "images": [pages]}',
        field="inputs",
        row=row,
    )


# Texts and pages go through the model alone: it pads on the left without telling positions so, and padding has vectors too.
def _embed_text(model: Model, text: Any, row: int) -> Vectors:
    with preparing(model, row):
        made = model.processor.process_queries(text=[check_text(text, row)], return_tensors="pt")
    return _run(model, tensors_of(made))


def _embed_page(model: Model, page: Any, row: int) -> Vectors:
    with named_row(row):
        picture = read_image(page)
    with preparing(model, row):
        made = model.processor.process_images(images=[picture], return_tensors="pt")
    return _run(model, tensors_of(made))


def _run(model: Model, tensors: dict[str, Any]) -> Vectors:
    found = to_numpy(forward(model, tensors).embeddings[0])
    mask = tensors.get("attention_mask")
    return Vectors(found if mask is None else found[mask[0].bool().numpy()])
