"""What a checkpoint says about its own answers: sampling, length, ending tokens, context.

Reads a model's `generation_config`, its config and its tokenizer; decodes nothing and knows no caller's parameters.
"""

from __future__ import annotations

from typing import Any

from modelyard.weights import chat
from modelyard.weights.generation import DEFAULT_MAX_NEW_TOKENS, GenerationDefaults, GenerationParams

__all__ = ["read_context", "read_defaults"]

# Fields of a generation_config that change what is generated and that the decoding loop does not do.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
}


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
    ignored = tuple(name for name, idle in _NOT_DONE.items() if getattr(said, name, None) not in idle)
    return GenerationDefaults(
        params=GenerationParams(**values),
        eos_ids=frozenset(int(item) for item in listed) | turn_ends,
        max_new_tokens=getattr(said, "max_new_tokens", None) or DEFAULT_MAX_NEW_TOKENS,
        context=read_context(model.config),
        ignored=ignored,
    )


def read_context(config: Any) -> int | None:
    """Most tokens that a model of this config takes at once; None where its architecture has no bound."""
    text = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
