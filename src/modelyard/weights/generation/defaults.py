"""What a checkpoint says about its own answers: sampling, length, ending tokens, context.

Reads a model's `generation_config`, its config and its tokenizer; decodes nothing and knows no caller's parameters.
"""

from __future__ import annotations

from typing import Any

from modelyard.weights.generation import chat
from modelyard.weights.generation.loop import DEFAULT_MAX_NEW_TOKENS, GenerationDefaults, GenerationParams
from modelyard.weights.generation.strategies import active_rules, asked_by

__all__ = ["read_context", "read_defaults"]

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def read_defaults(model: Any, tokenizer: Any) -> GenerationDefaults:
    """What a checkpoint says about its answers.

    Values are taken from its generation_config only where it sets them, and sampling only where `do_sample` is true.
    An ending token is what the generation_config lists, the tokenizer's EOS, and what the chat template writes behind
    an answer.

    Args:
        model: A model of transformers that generates.
        tokenizer: Its tokenizer, or None.
    """
    said: Any = getattr(model, "generation_config", None)
    values: dict[str, Any] = {}
    if getattr(said, "do_sample", None):
        values = {"temperature": 1.0}
        for name in ("temperature", "top_p", "top_k", "min_p"):
            if getattr(said, name, None) is not None:
                values[name] = getattr(said, name)
    if getattr(said, "repetition_penalty", None) is not None:
        values["repetition_penalty"] = said.repetition_penalty
    ends = getattr(said, "eos_token_id", None)
    listed = set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        listed.add(tokenizer.eos_token_id)
    turn_ends = chat.turn_end_ids(tokenizer) if tokenizer is not None else frozenset()
    params, strategy = GenerationParams(**values), asked_by(said)
    encoded = bool(model.config.is_encoder_decoder)
    new, whole = getattr(said, "max_new_tokens", None), getattr(said, "max_length", None)
    if new is None and whole is not None and encoded:
        new = max(1, whole - 1)  # the decoder's first token is no part of the answer
    source, context = _read_source(model.config) if encoded else (None, read_context(model.config))
    return GenerationDefaults(
        params=params,
        eos_ids=frozenset(int(item) for item in listed) | turn_ends,
        max_new_tokens=new or DEFAULT_MAX_NEW_TOKENS,
        context=context,
        ignored=active_rules(strategy, greedy=params.greedy),
        max_length=whole if new is None else None,
        strategy=strategy,
        encoded=encoded,
        source=source,
    )


def read_context(config: Any) -> int | None:
    """Most tokens that a model of this config takes at once; None where its architecture has no bound."""
    return _read_size(config.get_text_config(decoder=True), _POSITIONS)


def _read_source(config: Any) -> tuple[int | None, int | None]:
    """Most tokens of an encoder-decoder's prompt, and of its answer with the token that begins it.

    `n_positions` is no bound here: T5 and its kin carry it, and their positions are relative.
    """
    encoder, decoder = getattr(config, "encoder", config), getattr(config, "decoder", config)
    source = _read_size(encoder, ("max_encoder_position_embeddings", "max_position_embeddings"))
    return source, _read_size(decoder, ("max_decoder_position_embeddings", "max_position_embeddings"))


def _read_size(config: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
