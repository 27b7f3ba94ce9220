"""Greedy decoding with exported graphs: one graph with a cache for a decoder, three for an encoder-decoder.

The loops that somebody with onnxruntime alone would write. Rows of different lengths are padded on the left, and counted from
their own first token. Knows graphs and arrays; knows no runtime and no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from modelyard.weights.export.graphs import Graph

__all__ = ["decode_with_cache", "decode_with_encoder", "run_decoder", "run_encoder_decoder"]

Arrays = dict[str, "NDArray[Any]"]

_CACHE = "past_key_values."


def run_decoder(
    graph: Graph, ids: NDArray[np.int64], mask: NDArray[np.int64], past: Arrays | None = None
) -> tuple[NDArray[np.float32], Arrays]:
    """One pass of a decoder's graph.

    Args:
        graph: With a cache as inputs and outputs, or inside.
        ids: int64, (rows, new tokens).
        mask: int64, (rows, tokens so far and new).
        past: What the last pass gave; None before the first.

    Returns:
        Logits, float32, (rows, new tokens, vocabulary); and the cache for the next pass.
    """
    if past is None:
        graph.reset()
        past = empty_cache(graph, len(ids))
    made: Arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask, ids.shape[1])}
    if "attention_mask" not in graph.inputs and not mask.all():
        raise ModelError(
            "the graph has no attention_mask, so it cannot compute rows of different lengths together",
            code="graph_inputs",
            hint="compute the rows one by one",
        )
    given = {name: made[name] if name in made else past[name] for name in graph.inputs if name in made or name in past}
    found = graph.run(given)
    return found["logits"].astype(np.float32, copy=False), next_cache(found)


def decode_with_cache(graph: Graph, ids: NDArray[np.int64], mask: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """The next `tokens` greedy tokens of each row; no token ends a row before that."""
    logits, past = run_decoder(graph, ids, mask)
    found: list[NDArray[np.int64]] = []
    while True:
        found.append(logits[:, -1].argmax(-1).astype(np.int64))
        if len(found) == tokens:
            break
        mask = np.concatenate((mask, np.ones((len(mask), 1), np.int64)), axis=1)
        logits, past = run_decoder(graph, found[-1][:, None], mask, past)
    return np.stack(found, 1).tolist()  # type: ignore[no-any-return]


def run_encoder_decoder(
    graphs: Mapping[str, Graph], inputs: Mapping[str, NDArray[Any]], start: NDArray[np.int64]
) -> tuple[NDArray[np.float32], Arrays, Arrays]:
    """The encoder, and the first pass of the decoder.

    Args:
        graphs: `encoder` and `prefill`.
        inputs: Of the encoder, with its mask if it has one.
        start: int64, (rows, tokens): what the decoder begins with.

    Returns:
        Logits; the cache for `decode`; and what every pass of it takes again.
    """
    encoder, prefill = graphs["encoder"], graphs["prefill"]
    states = encoder.run({name: inputs[name] for name in encoder.inputs if name in inputs})["last_hidden_state"]
    kept = {"encoder_outputs.last_hidden_state": states, **{n: v for n, v in inputs.items() if "mask" in n}}
    given = {**kept, "decoder_input_ids": start}
    found = prefill.run({name: given[name] for name in prefill.inputs if name in given})
    return found["logits"].astype(np.float32, copy=False), next_cache(found), kept


def decode_with_encoder(
    graphs: Mapping[str, Graph], inputs: Mapping[str, NDArray[Any]], start: NDArray[np.int64], tokens: int
) -> list[list[int]]:
    """The first `tokens` greedy tokens of an encoder-decoder behind `start`; no token ends a row before that."""
    logits, past, kept = run_encoder_decoder(graphs, inputs, start)
    decode, found = graphs["decode"], [logits[:, -1].argmax(-1).astype(np.int64)]
    while len(found) < tokens:
        given = {**kept, **past, "decoder_input_ids": found[-1][:, None]}
        made = decode.run({name: given[name] for name in decode.inputs if name in given})
        past = {**past, **next_cache(made)}
        found.append(made["logits"][:, -1].argmax(-1).astype(np.int64))
    return np.stack(found, 1).tolist()  # type: ignore[no-any-return]


def empty_cache(graph: Graph, rows: int) -> Arrays:
    """The cache before the first token: no positions, states of zeros."""
    made: Arrays = {}
    for name, (shape, dtype) in graph.inputs.items():
        if _CACHE not in name and "cache_params" not in name:
            continue
        sizes = [rows if at == 0 else 0 if size is None else size for at, size in enumerate(shape)]
        made[name] = np.zeros(sizes, dtype)
    return made


def next_cache(found: Mapping[str, NDArray[Any]]) -> Arrays:
    """Of a graph's outputs what the next pass takes, by the names of its inputs."""
    made: Arrays = {}
    for name, values in found.items():
        plain = name.removeprefix("output.")
        if plain.startswith((_CACHE, "cache_params")):
            made[plain] = made[f"input.{plain}"] = values
    return made


def _positions(mask: NDArray[np.int64], new: int) -> NDArray[np.int64]:
    """Where each new token stands in its own row: what is padded in front of it does not count."""
    positions: NDArray[np.int64] = np.maximum(np.cumsum(mask, axis=1, dtype=np.int64) - 1, 0)[:, -new:]
    return positions
