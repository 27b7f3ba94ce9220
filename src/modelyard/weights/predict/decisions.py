"""Typed questions about a state, answered by a decision model (`...ForDecision`) with a probability for every option.

Prompts, options and the form of the answers are transformers' own (`transformers.decision`). Images are given as they are,
never by address: nothing is fetched.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import refuse_windows, running
from modelyard.weights.predict.encoding import core, find_limit
from modelyard.weights.predict.results import Decision

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["decide"]


def decide(model: Model, rows: list[Any], options: PredictOptions) -> list[Decision]:
    """The answers to each `{"state": ..., "questions": {name: {"type", "instructions", "criteria"}}}`.

    One forward pass for each prompt, as transformers does: `batch_size` changes nothing.

    Raises:
        RequestError: An option, or a row that is no request; the message is transformers' own.
    """
    options.take_none()
    refuse_windows(options)
    # Reading a request adds two tokens to the tokenizer; the model's own one stays as it was loaded.
    processor = copy.deepcopy(model.processor)
    return [_answer(model, processor, value, row) for row, value in enumerate(rows)]


def _answer(model: Model, processor: Any, value: Any, row: int) -> Decision:
    inner = core(model.model)
    config, limit = inner.decision_config, find_limit(model)
    if not isinstance(value, Mapping):
        raise RequestError(
            f"row {row} is no request", hint='give {"state": ..., "questions": {name: ...}}', field="inputs", row=row
        )
    request = {**value, "assets": {name: _read_asset(asset) for name, asset in (value.get("assets") or {}).items()}}
    try:
        prompts = config.prepare_inputs(request, processor)
    except ValueError as error:
        raise RequestError(f"row {row}: {error}", field="inputs", row=row) from error
    answers: dict[str, dict[str, Any]] = {}
    for inputs, questions in prompts:
        tokens = inputs["input_ids"].shape[1]
        if limit is not None and tokens > limit:
            raise RequestError(
                f"row {row} has {tokens} tokens and the model takes {limit}",
                hint="shorten its state",
                field="inputs",
                row=row,
            )
        with running(model):
            scores = inner.decide(**inputs, decision_questions=questions, decision_config=config)
        for question, values in zip(questions, scores, strict=True):
            answers[question.name] = question.answer(values.float().softmax(-1).tolist())
    return Decision(answers)


def _read_asset(asset: Any) -> Any:
    """An image that is given with its bytes as it is; anything else is read as an image here, never fetched."""
    if isinstance(asset, Mapping) and "data_base64" in asset:
        return asset
    from modelyard.weights.media import read_image

    return read_image(asset)
