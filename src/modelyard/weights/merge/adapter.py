"""What a LoRA adapter asks of a base: which tensors it changes, how, and why it is refused.

An adapter is read as PEFT 0.21 writes it. Whatever `lora/1` does not define is refused by name, never approximated: a key
nobody used, a module that is not there and an option that changes the arithmetic all stop the merge before it begins.
This module reads configurations and headers, no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from modelyard.derivations import STORAGE, lora_scale
from modelyard.errors import InputError, ModelError
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name
from modelyard.weights.merge.names import is_head, is_input_embedding, resolve_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["AdapterPlan", "Site", "plan_adapter"]

_PREFIX = "base_model.model."
_WHY_KEY = (
    ("lora_magnitude_vector", "dora", "DoRA scales each row by a norm, whose order of sums is not fixed yet"),
    ("lora_embedding_", "embedding", "LoRA on an embedding is not merged yet"),
    ("trainable_tokens_", "trainable_tokens", "single trained tokens are not merged yet"),
    ("lora_B.bias", "lora_bias", "a LoRA with a bias changes the layer's bias too"),
    ("lora_A.bias", "lora_bias", "a LoRA with a bias changes the layer's bias too"),
    ("lora_ga", "unsupported_adapter", "this LoRA variant has no exact operation"),
)
_WHY_OPTION: Mapping[str, str] = {
    "use_dora": "DoRA scales each row by a norm, whose order of sums is not fixed yet",
    "lora_bias": "a LoRA with a bias changes the layer's bias too",
    "trainable_token_indices": "single trained tokens are not merged yet",
    "target_parameters": "LoRA on bare parameters (mixture-of-experts) is not merged yet",
    "layer_replication": "replicated layers change which tensor a key means",
    "use_qalora": "QALoRA pools its input, which is no change of the weight",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only, which is no change of the weight",
    "arrow_config": "Arrow routes between adapters, which is no change of the weight",
    "kasa_config": "KaSA rewrites the base by an SVD",
    "use_bdlora": "block-diagonal LoRA is not merged yet",
    "monteclora_config": "MonteCLoRA has no exact operation",
    "velora_config": "VeLoRA has no exact operation",
    "lora_ga_config": "LoRA-GA rewrites the base when it starts",
    "corda_config": "CorDA rewrites the base when it starts",
}
_NEUTRAL_START = frozenset({"true", "false", "none", "gaussian", "orthogonal", "eva"})
_NEUTRAL = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora",
})  # fmt: skip
_PATTERN = re.compile(r"[\w.^$\\|()\[\]*+?-]{1,200}")


@dataclass(frozen=True)
class Site:
    """One weight that a LoRA changes: `tensor` on the base's disk, `module` as the adapter calls it."""

    tensor: str
    module: str
    a: str
    b: str
    rank: int
    alpha: float
    scale: np.float32
    transposed: bool


@dataclass(frozen=True)
class AdapterPlan:
    """Everything a merge does: LoRA sites and replaced tensors, both by the base's tensor name."""

    sites: dict[str, Site]
    replaced: dict[str, str] = field(default_factory=dict)


def plan_adapter(base: Checkpoint, adapter: Checkpoint) -> AdapterPlan:
    """Match an adapter with its base, completely or not at all.

    Raises:
        ModelError: `unsupported_adapter`, `dora`, `embedding`, `trainable_tokens`, `lora_bias`, `conv`,
            `tied_embeddings`, `quantized_base` or `unsupported_dtype` (not merged, and why); `no_match` (keys that have no
            tensor in the base); `bad_rank`, `rank_mismatch`, `bad_shape`, `bad_adapter` (the adapter contradicts itself).
    """
    config = read_json(adapter.files, "adapter_config.json")
    label = adapter.files.label
    _check_options(config, label)
    base_config = read_json(base.files, "config.json") if "config.json" in base.files.names() else {}
    if base_config.get("quantization_config"):
        _refuse(base.files.label, "quantized_base", "it is quantized; merge into the weights it was quantized from")
    factors, whole = _sort_keys(adapter, config)
    if not factors and not whole:
        _refuse(label, "no_match", "it has no LoRA factors")
    if _is_tied(base, base_config):
        whole = _check_tied(base, adapter, factors, whole)
    names = resolve_names([f"{module}.weight" for module in factors] + list(whole), list(base.home), label)
    sites = {}
    for module, (a, b) in factors.items():
        tensor = names[f"{module}.weight"]
        sites[tensor] = _site(base, adapter, config, base_config, module=module, tensor=tensor, a=a, b=b)
    replaced = _replacements(base, adapter, {names[name]: key for name, key in whole.items()})
    both = sites.keys() & replaced.keys()
    if both:
        _refuse(label, "bad_adapter", f"it both replaces and changes `{show_name(min(both))}`")
    return AdapterPlan(dict(sorted(sites.items())), dict(sorted(replaced.items())))


def _check_options(config: Mapping[str, Any], label: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        _refuse(label, "unsupported_adapter", f"its kind is {show_name(str(kind))}, and LORA is what is merged")
    for option, why in _WHY_OPTION.items():
        if config.get(option):
            _refuse(label, option.removeprefix("use_"), f"`{option}` is set: {why}")
    if config.get("bias", "none") != "none":
        _refuse(label, "lora_bias", "it trained biases (`bias` is set), which are not merged yet")
    start = str(config.get("init_lora_weights", True)).lower()
    if start not in _NEUTRAL_START:
        _refuse(
            label,
            "unsupported_adapter",
            f"`init_lora_weights` is {show_name(start)}, which rewrites the base when it starts",
        )
    for option, value in config.items():
        if value and option not in _NEUTRAL and option not in _WHY_OPTION:
            _refuse(label, "unsupported_adapter", f"its option `{show_name(option)}` is not known here")


def _sort_keys(adapter: Checkpoint, config: Mapping[str, Any]) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """The file's keys as module -> (A, B), and tensor name -> key for tensors saved whole."""
    label = adapter.files.label
    found: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    saved = [str(name) for name in config.get("modules_to_save") or ()]
    if config.get("task_type") in {"SEQ_CLS", "TOKEN_CLS"}:
        saved += ["classifier", "score"]  # PEFT adds these by itself
    for key in adapter.home:
        name = key.removeprefix(_PREFIX)
        for mark, code, why in _WHY_KEY:
            if mark in name:
                _refuse(label, code, f"tensor `{show_name(key)}`: {why}")
        module, dot, side = name.rpartition(".lora_")
        if dot and side in {"A.weight", "B.weight"}:
            found.setdefault(module, {})[side[0]] = key
            continue
        plain = name.replace(".modules_to_save.", ".")
        if ".base_layer." in name or not _is_saved(plain, saved):
            _refuse(
                label, "bad_adapter", f"tensor `{show_name(key)}` is neither a LoRA factor nor in `modules_to_save`"
            )
        whole[plain] = key
    for module, sides in found.items():
        if len(sides) != 2:
            _refuse(label, "bad_adapter", f"`{show_name(module)}` has lora_{next(iter(sides))} only")
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}, whole


def _is_saved(tensor: str, saved: list[str]) -> bool:
    parts = f".{tensor.rpartition('.')[0]}."
    return any(f".{name}." in parts for name in saved)


def _site(
    base: Checkpoint,
    adapter: Checkpoint,
    config: Mapping[str, Any],
    base_config: Mapping[str, Any],
    *,
    module: str,
    tensor: str,
    a: str,
    b: str,
) -> Site:
    label, weight = adapter.files.label, base.info(tensor)
    left, right = adapter.info(a), adapter.info(b)
    if len(left.shape) != 2 or len(right.shape) != 2 or len(weight.shape) != 2:
        _refuse(label, "conv", f"`{show_name(module)}` is not a linear layer (weight {weight.shape}): not merged yet")
    for key, info in ((a, left), (b, right)):
        if info.dtype not in STORAGE:
            _refuse(label, "unsupported_dtype", f"tensor `{show_name(key)}` is {info.dtype}, not F32, F16 or BF16")
    if weight.dtype not in STORAGE:
        _refuse(
            base.files.label,
            "unsupported_dtype",
            f"tensor `{show_name(tensor)}` is {weight.dtype}, not F32, F16 or BF16",
        )
    rank, alpha = _rank_and_alpha(config, module, label)
    if left.shape[0] != rank or right.shape[1] != rank:
        _refuse(
            label,
            "rank_mismatch",
            f"`{show_name(module)}` has the rank {rank} in its configuration, and factors of {left.shape} and {right.shape}",
        )
    if rank < 1 or rank > max(weight.shape):
        _refuse(label, "bad_rank", f"`{show_name(module)}` has rank {rank} for a weight of {weight.shape}")
    product = (right.shape[0], left.shape[1])
    transposed = _is_transposed(config, base_config, module=module, shape=weight.shape, product=product, label=label)
    try:
        scale = lora_scale(alpha, rank, rslora=bool(config.get("use_rslora")))
    except InputError as error:
        _refuse(label, error.code, f"`{show_name(module)}`: {error.message}")
    return Site(tensor, module, a, b, rank, alpha, scale, transposed)


def _rank_and_alpha(config: Mapping[str, Any], module: str, label: str) -> tuple[int, float]:
    rank = _pattern_value(config.get("rank_pattern"), module, config.get("r"), label)
    alpha = _pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha"), label)
    if type(rank) is not int or type(alpha) not in {int, float}:
        _refuse(label, "bad_adapter", f"`{show_name(module)}` has the rank {rank!r} and alpha {alpha!r}")
    return rank, alpha


def _pattern_value(patterns: Any, module: str, default: Any, label: str) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's path, at a dot."""
    for pattern, value in (patterns or {}).items():
        # A pattern is a regular expression out of a file: a short one without nested repetition cannot run away.
        if not _PATTERN.fullmatch(pattern) or re.search(r"\)[*+?]|[*+?].*[*+?].*[*+?].*[*+?]", pattern):
            _refuse(label, "bad_adapter", f"the pattern `{show_name(pattern)}` is not one that is evaluated")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            _refuse(label, "bad_adapter", f"the pattern `{show_name(pattern)}` is not a regular expression: {error}")
    return default


_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
_CONV1D_NAMES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})


def _is_transposed(
    config: Mapping[str, Any],
    base_config: Mapping[str, Any],
    *,
    module: str,
    shape: tuple[int, ...],
    product: tuple[int, int],
    label: str,
) -> bool:
    """Whether the weight is stored (in, out). The shape decides; for a square one, the architecture does.

    The adapter's `fan_in_fan_out` is one flag for layers of both kinds, and PEFT rewrites it as it goes, so it is used
    only where nothing else tells.
    """
    plain, turned = shape == product, shape == product[::-1]
    if not (plain or turned):
        _refuse(label, "bad_shape", f"`{show_name(module)}` makes {product}, and the base's weight is {shape}")
    if plain != turned:
        return turned
    named = module.rpartition(".")[2] in _CONV1D_NAMES
    if base_config.get("model_type") in _CONV1D_TYPES:
        return named
    return bool(config.get("fan_in_fan_out")) and (named or not base_config.get("model_type"))


def _is_tied(base: Checkpoint, base_config: Mapping[str, Any]) -> bool:
    """Whether the base's output layer is its input embedding."""
    tied = base_config.get("tie_word_embeddings")
    return bool(tied) if tied is not None else not any(is_head(name) for name in base.home)


def _check_tied(
    base: Checkpoint, adapter: Checkpoint, factors: Mapping[str, tuple[str, str]], whole: dict[str, str]
) -> dict[str, str]:
    """Refuse to change one side of a tied pair; of a pair that was trained as one, keep the side that is on disk."""
    label = adapter.files.label
    why = "the base's output layer and input embedding are one tensor (`tie_word_embeddings`), and a merge would change both"
    for module in factors:
        if is_head(f"{module}.weight"):
            _refuse(label, "tied_embeddings", f"it changes `{show_name(module)}` alone: {why}")
    heads = [name for name in whole if is_head(name)]
    inputs = [name for name in whole if is_input_embedding(name)]
    if not heads and not inputs:
        return whole
    if len(heads) != 1 or len(inputs) != 1:
        _refuse(label, "tied_embeddings", f"it replaces `{show_name((heads + inputs)[0])}` alone: {why}")
    head, embedding = whole[heads[0]], whole[inputs[0]]
    if adapter.info(head).shape != adapter.info(embedding).shape or not np.array_equal(
        adapter.read(head), adapter.read(embedding)
    ):
        _refuse(label, "tied_embeddings", f"`{show_name(head)}` and `{show_name(embedding)}` became different: {why}")
    return {name: key for name, key in whole.items() if name != heads[0] or any(is_head(name) for name in base.home)}


def _replacements(base: Checkpoint, adapter: Checkpoint, whole: dict[str, str]) -> dict[str, str]:
    for tensor, key in whole.items():
        there, given = base.info(tensor), adapter.info(key)
        if there.shape != given.shape:
            _refuse(
                adapter.files.label,
                "bad_shape",
                f"`{show_name(key)}` has the shape {given.shape}, and the base's tensor has {there.shape}",
            )
        if there.dtype not in STORAGE or given.dtype not in STORAGE:
            _refuse(
                adapter.files.label,
                "unsupported_dtype",
                f"`{show_name(key)}` is {given.dtype} for a tensor of {there.dtype}; F32, F16 and BF16 are supported",
            )
    return whole


def _refuse(label: str, code: str, what: str) -> NoReturn:
    raise ModelError(f"`{label}` cannot be merged: {what}", code=code)
