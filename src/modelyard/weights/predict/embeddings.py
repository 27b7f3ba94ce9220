"""Vectors of texts: the raw hidden states, or one vector for each text.

A model of an encoder and a decoder that wants to be told what to decode (T5) gives its encoder's states; every other gives
the first tensor that it returns, as transformers' own pipeline does. Padding takes no part in any of them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.batching import forward, refuse_windows, running, to_device, to_numpy
from modelyard.weights.predict.encoding import (
    check_text,
    collate,
    core,
    encode,
    find_limit,
    find_tokenizer,
    hold,
    plan_batches,
)
from modelyard.weights.predict.results import Embedding, Features

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["POOLINGS", "ExtractOptions", "extract"]

POOLINGS = ("mean", "cls", "last", "model")
"""One vector of a text: the mean over its tokens, its first token, its last token, or what the model itself pools."""


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What `feature-extraction` and `text-encoding` take.

    Attributes:
        pooling: One of `POOLINGS`; None gives the hidden states of every token.
        normalize: Scale each vector to length 1.
    """

    pooling: str | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise RequestError(f"`pooling` is {self.pooling!r}", hint=f"one of {', '.join(POOLINGS)}", field="pooling")
        if self.normalize and self.pooling is None:
            raise RequestError(
                "`normalize` without `pooling`",
                hint='it scales one vector of a text: pass pooling="mean"',
                field="normalize",
            )


def extract(model: Model, rows: list[Any], options: PredictOptions) -> list[Features | Embedding]:
    """The hidden states of each text, or with `pooling` one vector of it.

    Raises:
        RequestError: A wrong option, a row that is no text, or one that is too long.
        ModelError: `pooling="model"` with a model that pools nothing.
    """
    chosen = options.take(ExtractOptions)
    refuse_windows(options)
    tokenizer = find_tokenizer(model)
    texts = [(check_text(value, row), None) for row, value in enumerate(rows)]
    items = hold(encode(tokenizer, texts), find_limit(model), options)
    found: dict[int, Features | Embedding] = {}
    for places in plan_batches(model, items, options.batch_size):
        outputs = run_encoder(model, collate(model, [items[at] for at in places]))
        if chosen.pooling == "model":
            pooled = to_numpy(_pooled(model, outputs))
            found.update((at, Embedding(_scale(pooled[i], chosen.normalize))) for i, at in enumerate(places))
            continue
        states = to_numpy(outputs[0])
        for at, values in zip(places, states, strict=True):
            own = values[: len(items[at].ids)]
            if chosen.pooling is None:
                found[at] = Features(own.copy(), tuple(tokenizer.convert_ids_to_tokens(list(items[at].ids))))
            else:
                found[at] = Embedding(_scale(_pool(own, chosen.pooling), chosen.normalize))
    return [found[at] for at in range(len(rows))]


def run_encoder(model: Model, batch: dict[str, Any]) -> Any:
    """The outputs of the model; of its encoder where it wants decoder inputs that nobody gave."""
    inner = core(model.model)
    if inner.config.is_encoder_decoder and _wants_decoder_inputs(inner):
        taken = inspect.signature(inner.get_encoder().forward).parameters
        with running(model):
            return inner.get_encoder()(**to_device(model, {k: v for k, v in batch.items() if k in taken}))
    return forward(model, batch)


def _wants_decoder_inputs(inner: Any) -> bool:
    """BART and its kin shift the inputs themselves; T5 and its kin raise without decoder inputs."""
    return inner.config.model_type not in {"bart", "mbart", "mvp", "plbart", "led", "bigbird_pegasus", "fsmt"}


def _pooled(model: Model, outputs: Any) -> Any:
    for name in ("text_embeds", "sentence_embedding", "pooler_output"):
        if getattr(outputs, name, None) is not None:
            return getattr(outputs, name)
    raise ModelError(
        f"`{model.folder}` ({type(core(model.model)).__name__}) pools nothing itself", hint='pass pooling="mean"'
    )


def _pool(values: Any, pooling: str) -> Any:
    if pooling == "cls":
        return values[0]
    return values[-1] if pooling == "last" else values.mean(axis=0)


def _scale(vector: Any, normalize: bool) -> Any:
    vector = np.array(vector, dtype=np.float32)
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if normalize and length > 0 else vector
