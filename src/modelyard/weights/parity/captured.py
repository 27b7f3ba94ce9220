"""Inputs of tasks whose tensors only their own prediction can make: documents, tables, prompts of masks, candidate labels.

The model predicts built-in samples once, and what its forward pass was given is kept. Knows samples; judges nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.parity.batches import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from modelyard.weights.model import Model

__all__ = ["CAPTURED", "capture_inputs"]

_QUESTION = "where is the card?"
_LABELS = ["a cat", "a card", "a lazy dog"]
_TABLE = {"name": ["anna", "brad", "carla"], "age": ["41", "56", "59"]}


def _trimap(random: np.random.Generator) -> NDArray[np.uint8]:
    return random.choice(np.array([0, 128, 255], np.uint8), (48, 64))


def _document(picture: NDArray[np.uint8]) -> dict[str, Any]:
    boxes = [(2, 2, 20, 8), (2, 10, 12, 16), (16, 10, 30, 16), (2, 20, 18, 26)]
    return {"image": picture, "question": _QUESTION, "words": ["card", "total", "42", "paid"], "boxes": boxes}


def _image(random: np.random.Generator) -> NDArray[np.uint8]:
    return random.integers(0, 256, (48, 64, 3), np.uint8)


_QUESTIONS = {
    "refund": {"type": "noul", "instructions": "is a refund wanted?"},
    "topic": {"type": "choice", "instructions": "about what?", "criteria": {"card": "a card", "dog": "a dog"}},
}

CAPTURED: dict[str, Callable[[np.random.Generator], Any]] = {
    "visual-question-answering": lambda random: {"image": _image(random), "question": _QUESTION},
    "document-question-answering": lambda random: _document(_image(random)),
    "zero-shot-image-classification": lambda random: {"image": _image(random), "candidate_labels": _LABELS},
    "zero-shot-object-detection": lambda random: {"image": _image(random), "candidate_labels": _LABELS},
    "table-question-answering": lambda _: {"table": _TABLE, "query": "how old is anna?"},
    "mask-generation": lambda random: {"image": _image(random), "points": [(12.0, 9.0)]},
    "pose-estimation": lambda random: {"image": _image(random), "boxes": [(2.0, 3.0, 40.0, 38.0)]},
    "image-matting": lambda random: {"image": _image(random), "trimap": _trimap(random)},
    "causal-image-modeling": _image,
    "retrieval": lambda _: {"text": _QUESTION},
    "decision": lambda _: {"state": "my card has not arrived", "questions": _QUESTIONS},
    "text-to-spectrogram": lambda _: _QUESTION,
    "text-to-audio": lambda _: _QUESTION,
}
"""Task to what makes an input of `predict` for it."""


def capture_inputs(model: Model, sample: Any, name: str) -> Batch:
    """What the forward pass of a model is given for a sample.

    Args:
        model: A loaded model.
        sample: An input of its `predict`.
        name: Of the batch.

    Raises:
        ModelError: `no_fixed_inputs`: its prediction does not run the model's own forward pass on tensors.
    """
    import torch

    seen: list[dict[str, Any]] = []

    def note(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not arguments:
            seen.append(keywords)

    handle = model.core.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of answers that nobody reads
            model.predict(sample)
    finally:
        handle.remove()
    found = {
        key: (value.float() if value.is_floating_point() else value).cpu().contiguous().numpy()
        for key, value in (seen[0] if seen else {}).items()
        if isinstance(value, torch.Tensor)
    }
    if not found:
        raise ModelError(
            f"the prediction of {model.task} does not run `{type(model.core).__name__}` on tensors of its inputs",
            code="no_fixed_inputs",
            hint="its results can be compared by `predict`",
            task=model.task,
        )
    return Batch(found, None, name)
