"""Everything that a pretraining model says of a text, by name: such heads have no common meaning to give a type to."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.predict.batching import batches, forward, refuse_windows, to_numpy
from modelyard.weights.predict.encoding import (
    check_text,
    collate,
    core,
    encode,
    find_limit,
    find_tokenizer,
    hold,
)
from modelyard.weights.predict.results import RawOutput
from modelyard.weights.predict.seq2seq import decoder_start

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["run"]


def run(model: Model, rows: list[Any], options: PredictOptions) -> list[RawOutput]:
    """The tensors that the model gives for each text; rows of one length run together, so that nothing is padded.

    Raises:
        RequestError: An option, a row that is no text, or one that is too long.
        ModelError: The model reads no texts.
    """
    options.take_none()
    refuse_windows(options)
    if model.tokenizer is None:
        raise ModelError(
            f"`{model.folder}` was pretrained on pictures or sounds: only texts are read here for this task",
            hint="give `model.model` what `model.processor` makes of them, or load it with another task",
        )
    tokenizer = find_tokenizer(model)
    texts = [(check_text(value, row), None) for row, value in enumerate(rows)]
    items = hold(encode(tokenizer, texts), find_limit(model), options)
    groups: dict[int, list[int]] = defaultdict(list)
    for at, item in enumerate(items):
        groups[len(item.ids)].append(at)
    found: dict[int, RawOutput] = {}
    for group in groups.values():
        for places in batches(group, options.batch_size):
            batch = collate(model, [items[at] for at in places])
            outputs = forward(model, {**batch, **_decoder_inputs(model, len(places))})
            for place, at in enumerate(places):
                tokens = tuple(tokenizer.convert_ids_to_tokens(list(items[at].ids)))
                found[at] = RawOutput(_values(outputs, place, len(places)), tokens)
    return [found[at] for at in range(len(rows))]


def _decoder_inputs(model: Model, count: int) -> dict[str, Any]:
    """For a model with a decoder: the token that it starts from."""
    import torch

    if not core(model.model).config.is_encoder_decoder:
        return {}
    return {"decoder_input_ids": torch.full((count, 1), decoder_start(model), dtype=torch.long)}


def _values(outputs: Any, place: int, count: int) -> dict[str, Any]:
    import torch

    return {
        name: to_numpy(value[place]).copy()
        for name, value in outputs.items()
        if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == count
    }
