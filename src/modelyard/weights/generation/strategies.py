"""What may be asked of an answer beyond `GenerationParams`, and which of two loops does it.

Our own loop (`decoder`) does greedy decoding, sampling and penalties. Everything else that transformers' `generate` does
(beams, assisted decoding, banned and forced tokens, n-gram and length rules, other samplers, guidance, watermarks, logits
processors given as objects) is done by transformers (`library_loop`). This module is the table of the names, and reads
a request by it; it decodes nothing. Strategies that transformers moved to code on a hub are refused by name: such code
is never run here.

>>> from modelyard.weights.generation.loop import GenerationDefaults
>>> read_request({"max_new_tokens": 8}, GenerationDefaults()).by
'modelyard'
>>> read_request({"num_beams": 4}, GenerationDefaults()).by
'transformers'
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import RequestError, near_match
from modelyard.weights.generation.loop import GenerationDefaults, GenerationParams, resolve_params

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Loop", "Request", "active_rules", "asked_by", "read_request"]

Loop = Literal["modelyard", "transformers"]
"""Which loop answered: ours, or transformers' own `generate`."""

_NONE: tuple[Any, ...] = (None,)

# Fields of transformers' GenerationConfig that only its own loop does, with the values that ask for nothing.
_RULES: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": _NONE,
    "forced_eos_token_id": _NONE,
    "sequence_bias": (None, {}, []),
    "exponential_decay_length_penalty": _NONE,
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "top_h": _NONE,
    "guidance_scale": (None, 1.0),
    "watermarking_config": _NONE,
    "renormalize_logits": (None, False),
    "remove_invalid_values": (None, False),
    "max_time": _NONE,
    "prompt_lookup_num_tokens": _NONE,
    "assistant_early_exit": _NONE,
    "use_mtp": (None, False),
    "cache_implementation": (None, "dynamic", "hybrid"),
    "prefill_chunk_size": _NONE,
}
_SAMPLERS = frozenset({"typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"})
"""Rules that say which tokens may be drawn, and hence nothing where none is."""

# Fields that say how a rule is done; each with the rules or objects that it belongs to.
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_WHOLE = {"num_beams": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "prompt_lookup_num_tokens": 1}
"""Rules that are whole numbers, and the least of each; transformers computes with whatever it is given."""

_SWITCHES = ("do_sample", "return_full_text", "renormalize_logits", "remove_invalid_values", "use_mtp")

_DETAILS: dict[str, tuple[str, ...]] = {
    "early_stopping": ("num_beams",),
    "length_penalty": ("num_beams",),
    "num_assistant_tokens": _ASSISTED,
    "num_assistant_tokens_schedule": _ASSISTED,
    "assistant_confidence_threshold": _ASSISTED,
    "assistant_lookbehind": _ASSISTED,
    "target_lookbehind": _ASSISTED,
    "assistant_ensemble_weight": _ASSISTED,
    "speculation_type": _ASSISTED,
    "max_matching_ngram_size": ("prompt_lookup_num_tokens",),
    "cache_config": ("cache_implementation",),
    "max_cache_len": ("cache_implementation",),
    "negative_prompt_ids": ("guidance_scale",),
    "negative_prompt_attention_mask": ("guidance_scale",),
    "assistant_tokenizer": ("assistant_model",),
}
_OBJECTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "assistant_model",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
"""Arguments of transformers' `generate` that are no fields of a configuration."""

_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
_OTHERS = ("do_sample", "max_length", "stop_strings", "num_return_sequences", "return_full_text", "generation_config")

# What transformers 5 has no code for any more: the field, the values that ask for nothing, what it is and what to do.
_ON_THE_HUB: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "penalty_alpha": (
        (None, 0, 0.0),
        "contrastive search",
        "`typical_p` or `repetition_penalty` work against repetition",
    ),
    "dola_layers": (_NONE, "DoLa decoding", "leave it out"),
    "num_beam_groups": (
        (None, 1),
        "group beam search",
        "`num_beams` with `num_return_sequences`, or sampling with seeds",
    ),
    "diversity_penalty": ((None, 0, 0.0), "group beam search", "`num_beams` with `num_return_sequences`"),
    "constraints": (
        (None, []),
        "constrained beam search",
        "`prefix_allowed_tokens_fn`, `sequence_bias` or `bad_words_ids`",
    ),
    "force_words_ids": ((None, []), "constrained beam search", "`prefix_allowed_tokens_fn` or `sequence_bias`"),
}
_REFUSED = {
    "custom_generate": ("code from a checkpoint or a hub is never run", "leave it out"),
    "trust_remote_code": ("code from a checkpoint or a hub is never run", "leave it out"),
    "token_healing": (
        "it changes the end of the prompt, so an answer would not be new text alone",
        "end the prompt before a word",
    ),
    "streamer": ("an answer in pieces is an iterator here", "use `model.stream(prompt)`"),
    "output_scores": ("`generate` gives text", "call `model.model.generate(...)` for tensors"),
    "output_logits": ("`generate` gives text", "call `model.model.generate(...)` for tensors"),
    "output_attentions": ("`generate` gives text", "call `model.model.generate(...)` for tensors"),
    "output_hidden_states": ("`generate` gives text", "call `model.model.generate(...)` for tensors"),
    "return_dict_in_generate": ("`generate` gives text", "use `model.complete([prompt])` for ids and reasons"),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the answers to one call's prompts.

    Attributes:
        params: How tokens are chosen, how many, and where an answer ends.
        rules: Fields of transformers' GenerationConfig beyond those, the checkpoint's own included.
        objects: Arguments of transformers' `generate` that are no such fields.
        answers: How many answers each prompt gets.
        full_text: Whether the text begins with the prompt.
        eos_ids: Ids that end an answer instead of the checkpoint's; None for those.
        max_length: Most tokens of prompt and answer together; None for no such bound.
        by: Which loop does it.
    """

    params: GenerationParams
    rules: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[str, Any] = field(default_factory=dict)
    answers: int = 1
    full_text: bool = False
    eos_ids: frozenset[int] | None = None
    max_length: int | None = None
    by: Loop = "modelyard"

    @property
    def stepwise(self) -> bool:
        """Whether one token follows another: no beams and no draft that is accepted by the piece."""
        drafted = any(self.rules.get(name) or name in self.objects for name in _ASSISTED)
        return self.rules.get("num_beams") in (None, 1) and not drafted


def asked_by(generation_config: Any) -> dict[str, Any]:
    """What a checkpoint's generation_config sets of what only transformers' own loop does."""
    known = (*_RULES, *(name for name in _DETAILS if name not in _OBJECTS), *_ON_THE_HUB)
    return {name: value for name in known if (value := getattr(generation_config, name, None)) is not None}


def active_rules(rules: Mapping[str, Any], *, greedy: bool) -> tuple[str, ...]:
    """The names in `rules` that change an answer."""
    return tuple(
        name
        for name, idle in (*_RULES.items(), *((hub, row[0]) for hub, row in _ON_THE_HUB.items()))
        if rules.get(name) not in idle and not (greedy and name in _SAMPLERS)
    )


def read_request(given: Mapping[str, Any], defaults: GenerationDefaults) -> Request:
    """What the caller gave over what the checkpoint says; None counts as not given.

    Args:
        given: Fields of `GenerationParams`, and what transformers' `generate` takes.
        defaults: What the checkpoint says.

    Raises:
        RequestError: An unknown name (with the near match), a value out of range, names that contradict one another or
            do nothing without another, or a strategy that transformers has no code for; `details["field"]` names it.
    """
    given = _expand({name: value for name, value in given.items() if value is not None})
    _check_names(given)
    own = {item.name for item in fields(GenerationParams)}
    params = resolve_params({name: given[name] for name in own & set(given)} | _sampling(given, defaults), defaults)
    _check_kinds(given)
    asked = {name: given[name] for name in (*_RULES, *_DETAILS) if name in given and name not in _OBJECTS}
    objects = {name: given[name] for name in _OBJECTS if name in given}
    rules = {**defaults.strategy, **asked}
    _refuse_hub({**rules, **{name: given[name] for name in _ON_THE_HUB if name in given}}, params)
    active = active_rules(rules, greedy=params.greedy)
    _check_useful(asked, objects, active, params)
    answers = _count("num_return_sequences", given.get("num_return_sequences", 1))
    tokens = {name: given[name] for name in _TOKENS if name in given}
    foreign = bool(active or set(objects) or set(tokens) & {"decoder_start_token_id"})
    beams = rules.get("num_beams") or 1
    if answers > 1 and params.greedy and beams < answers:
        raise RequestError(
            f"`num_return_sequences` is {answers}, and "
            + (f"{beams} beams have {beams} answers" if beams > 1 else "greedy decoding has one answer"),
            hint=f"set `temperature` above 0, or `num_beams={answers}`",
            field="num_return_sequences",
        )
    return Request(
        params=params,
        rules={**rules, **tokens},
        objects=objects,
        answers=answers,
        full_text=bool(given.get("return_full_text", False)),
        eos_ids=_read_ends(given),
        max_length=_count("max_length", given["max_length"]) if "max_length" in given else None,
        by="transformers" if foreign else "modelyard",
    )


def _expand(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with a GenerationConfig taken apart; what is given by name wins over it."""
    config = given.pop("generation_config", None)
    if config is None:
        return given
    if not hasattr(config, "to_dict"):
        raise RequestError(
            f"`generation_config` is a {type(config).__name__}",
            hint="pass a GenerationConfig of transformers, or its fields by name",
            field="generation_config",
        )
    known = {*(item.name for item in fields(GenerationParams)), *_RULES, *_DETAILS, *_TOKENS, *_OTHERS, *_ON_THE_HUB}
    set_there = {name: value for name in known if (value := getattr(config, name, None)) is not None}
    if not set_there.get("do_sample"):  # transformers' meaning: these are only read where tokens are drawn
        for name in ("temperature", "top_p", "top_k", "min_p", *_SAMPLERS):
            set_there.pop(name, None)
    return {**set_there, **given}


def _check_names(given: Mapping[str, Any]) -> None:
    own = [item.name for item in fields(GenerationParams)]
    known = [*own, *_RULES, *_DETAILS, *_OBJECTS, *_TOKENS, *_OTHERS, *_ON_THE_HUB]
    for name in given:
        if name in _REFUSED:
            why, hint = _REFUSED[name]
            raise RequestError(f"`{name}` is not taken: {why}", hint=hint, field=name)
        if name not in known:
            meant = near_match(name, known)
            hint = (
                f"did you mean `{meant}`?"
                if meant
                else f"known: {', '.join(own)}, and what `generate` of transformers takes"
            )
            raise RequestError(f"unknown parameter `{name}`", hint=hint, field=name)
    if "stop" in given and "stop_strings" in given:
        raise RequestError("`stop` and `stop_strings` are the same", hint="give one of them", field="stop_strings")


def _check_kinds(given: Mapping[str, Any]) -> None:
    for name, least in _WHOLE.items():
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"`{name}` is {value!r}", hint=f"a whole number from {least}", field=name)
    for name in _SWITCHES:
        if not isinstance(given.get(name, False), bool):
            raise RequestError(f"`{name}` is {given[name]!r}", hint="True or False", field=name)


def _sampling(given: Mapping[str, Any], defaults: GenerationDefaults) -> dict[str, Any]:
    """The fields of `GenerationParams` behind transformers' names for them."""
    found: dict[str, Any] = {"stop": given["stop_strings"]} if "stop_strings" in given else {}
    if "do_sample" not in given:
        return found
    sample, temperature = bool(given["do_sample"]), given.get("temperature")
    if sample and temperature == 0:
        raise RequestError("`do_sample` is true and `temperature` is 0, which is greedy", field="do_sample")
    if not sample and temperature:
        raise RequestError(
            f"`do_sample` is false and `temperature` is {temperature}", hint="leave one of them out", field="do_sample"
        )
    if not sample:
        return {**found, "temperature": 0.0}
    if temperature is None:
        found["temperature"] = defaults.params.temperature or 1.0
    return found


def _refuse_hub(rules: Mapping[str, Any], params: GenerationParams) -> None:
    for name, (idle, what, instead) in _ON_THE_HUB.items():
        if rules.get(name) in idle or (name == "penalty_alpha" and not params.greedy):
            continue
        raise RequestError(
            f"`{name}` asks for {what}, which transformers moved to code on a hub: such code is never run here",
            hint=f"instead: {instead}" + (f"; `{name}={idle[-1]!r}` overrides a checkpoint's" if len(idle) > 1 else ""),
            field=name,
        )


def _check_useful(
    asked: Mapping[str, Any], objects: Mapping[str, Any], active: tuple[str, ...], params: GenerationParams
) -> None:
    """Refuse what the caller gave and what would change nothing."""
    for name in (*asked, *objects):
        owners = _DETAILS.get(name)
        if owners and not set(owners) & {*active, *objects}:
            raise RequestError(f"`{name}` does nothing without `{owners[0]}`", hint="give both or none", field=name)
        if name in _SAMPLERS and params.greedy and asked[name] not in _RULES[name]:
            raise RequestError(
                f"`{name}` chooses among tokens to draw from, and `temperature` is 0, which draws none",
                hint="set `temperature` above 0",
                field=name,
            )


def _read_ends(given: Mapping[str, Any]) -> frozenset[int] | None:
    ends = given.get("eos_token_id")
    if ends is None:
        return None
    listed = list(ends) if isinstance(ends, list | tuple | set | frozenset) else [ends]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in listed):
        raise RequestError(f"`eos_token_id` is {ends!r}", hint="a token id, or a list of them", field="eos_token_id")
    return frozenset(listed)


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"`{name}` is {value!r}", hint="a whole number from 1", field=name)
    return value
