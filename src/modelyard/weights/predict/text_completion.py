"""Text generation through `predict`: whole answers, with token ids and reasons. The decoding is `Model.complete`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import refuse_windows

if TYPE_CHECKING:
    from modelyard.weights.model import Completion, Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["complete", "is_single"]


def is_single(inputs: Any) -> bool:
    """Whether `inputs` is one prompt: a text, or one conversation (a list of messages)."""
    if not isinstance(inputs, list | tuple):
        return True
    return bool(inputs) and all(isinstance(item, Mapping) and "role" in item for item in inputs)


def complete(model: Model, rows: list[Any], options: PredictOptions) -> list[Completion]:
    """The answer to each prompt; the options are those of `Model.generate`.

    Raises:
        RequestError: A wrong option, a malformed prompt, or more tokens than the context holds; the message names the row.
    """
    refuse_windows(options)
    params = dict(options.extra)
    prompts = [_shorten(model, prompt, row, options) for row, prompt in enumerate(rows)]
    return model.complete(prompts, batch_size=options.batch_size, **params)


def _shorten(model: Model, prompt: Any, row: int, options: PredictOptions) -> Any:
    """The prompt itself, or the part of a text that leaves room for the answer.

    A prompt is cut as text, where its tokens begin and end, because the chat template is laid around it afterwards.
    """
    context = model.defaults.context
    room = None if context is None else context - int(options.extra.get("max_new_tokens") or 1)
    count = len(model.tokenize(prompt)) if room is not None else 0
    if room is None or count <= room:
        return prompt
    if options.truncation == "error" or not isinstance(prompt, str):
        raise RequestError(
            f"row {row} has {count} tokens, and the model's context of {context} has room for {room}",
            hint='shorten it, ask for fewer new tokens, or pass truncation="start" for a plain text',
            field="inputs",
            row=row,
            tokens=count,
            limit=room,
        )
    text = prompt
    while text and (count := len(model.tokenize(text))) > room:
        # A first guess by the average token; at least one character goes each time.
        drop = max(1, int(len(text) * (count - room) / count / 2))
        text = text[drop:] if options.truncation == "start" else text[:-drop]
    if not text:
        raise RequestError(f"row {row}: nothing of it fits into the context of {context}", field="inputs", row=row)
    return text
