"""What an adapter's configuration asks for, option by option, and which options make it no change of a base's weights.

Written for what PEFT 0.21 writes; an option nobody here knows is refused, since it could change the arithmetic. Reads one
configuration; knows no tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.derivations import lora_scale
from modelyard.errors import InputError, ModelError
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from modelyard.weights.files import Files

__all__ = ["REFUSED", "Options", "read_options", "refuse"]

REFUSED: Mapping[str, str] = {
    "layer_replication": "replicated layers share one tensor, which would have to change differently in each of them",
    "use_qalora": "QALoRA pools its input, which is no change of the weight",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only, which is no change of the weight",
    "arrow_config": "Arrow routes between adapters token by token, which is no change of the weight",
    "kasa_config": "KaSA cuts singular values off the base, and no SVD gives the same bits everywhere",
    "use_bdlora": "its factors are stored as blocks of a diagonal, which nothing here puts together",
}
"""Options that are refused wherever they are set, and why."""

_STARTS: Mapping[str, str] = {
    "corda_config": "corda",
    "lora_ga_config": "lora_ga",
}
_NEUTRAL_START = frozenset({"true", "false", "none", "gaussian", "orthogonal", "eva", "mica"})
_USED = frozenset({
    "alpha_pattern", "auto_mapping", "bias", "ensure_weight_tying", "fan_in_fan_out", "init_lora_weights", "lora_alpha",
    "lora_bias", "modules_to_save", "peft_type", "r", "rank_pattern", "target_parameters", "task_type", "token_indices",
    "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip
_NEUTRAL = frozenset({
    "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "init_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "megatron_config", "megatron_core", "monteclora_config",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "velora_config",
})  # fmt: skip
_PATTERN = re.compile(r"[\w.^$\\|()\[\]*+?-]{1,200}")
_WAYS = 1 << 23
_MOST = 1 << 53
_TRAINED_ON = "merge into the base it was trained on, which `yard show ADAPTER` names where it is known"
_COPY_AGAIN = "get the adapter again, or save it again where it was trained: `model.save_pretrained(OUT)`"
_HINTS = {"bad_shape": _TRAINED_ON, "rank_mismatch": _COPY_AGAIN, "bad_adapter": _COPY_AGAIN, "bad_rank": _COPY_AGAIN}
_HEADS = {"SEQ_CLS": ["classifier", "score"], "TOKEN_CLS": ["classifier", "score"], "QUESTION_ANS": ["qa_outputs"]}


@dataclass(frozen=True)
class Options:
    """An adapter's configuration.

    Attributes:
        label: What messages call the adapter.
        values: The configuration as it is.
        saved: `modules_to_save`, and what PEFT adds to it for a task.
        tokens: Module to the ids of its trained tokens.
        parameters: `target_parameters`.
        start: A start that rewrote the base (`pissa`, `olora`, `loftq`, ...), None for one that did not.
        biases: `bias`: `none`, `all` or `lora_only`.
        task: `task_type`, None where it has none.
        base_class: The class it was trained on, where it says so.
    """

    label: str
    values: Mapping[str, Any]
    saved: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    start: str | None = None
    biases: str = "none"
    task: str | None = None
    base_class: str | None = None

    def rank_and_alpha(self, module: str) -> tuple[int, float]:
        """The rank and alpha of a module, by the first pattern that fits it, as PEFT decides.

        Raises:
            ModelError: `bad_adapter`: they are no numbers, or a pattern is not one that is evaluated.
        """
        rank = self._pattern_value("rank_pattern", module, self.values.get("r"))
        alpha = self._pattern_value("alpha_pattern", module, self.values.get("lora_alpha"))
        if type(rank) is not int or type(alpha) not in {int, float}:
            refuse(self.label, "bad_adapter", f"`{show_name(module)}` has the rank {rank!r} and alpha {alpha!r}")
        if max(abs(rank), abs(alpha)) > _MOST and type(alpha) is int:
            refuse(self.label, "bad_adapter", f"`{show_name(module)}` has a rank or an alpha beyond 2**53")
        return rank, alpha

    def scale(self, module: str, rank: int, alpha: float) -> np.float32:
        """What B is multiplied by: alpha / rank, or alpha / sqrt(rank), as a binary32.

        Raises:
            ModelError: `bad_rank` or `bad_alpha`.
        """
        try:
            return lora_scale(alpha, rank, rslora=bool(self.values.get("use_rslora")))
        except InputError as error:
            refuse(self.label, error.code, f"`{show_name(module)}`: {error.message}")

    def _pattern_value(self, option: str, module: str, default: Any) -> Any:
        patterns = self.values.get(option) or {}
        if not isinstance(patterns, dict):
            refuse(self.label, "bad_adapter", f"`{option}` is not a map of patterns")
        for pattern, value in patterns.items():
            # A pattern is a regular expression out of a file: a short one without nested repetition and with few ways cannot run away.
            if (
                not _PATTERN.fullmatch(pattern)
                or re.search(r"\)[*+?]|[*+?].*[*+?].*[*+?].*[*+?]", pattern)
                or _count_ways(pattern, module) > _WAYS
            ):
                refuse(self.label, "bad_adapter", f"the pattern `{show_name(pattern)}` is not one that is evaluated")
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                what = f"the pattern `{show_name(pattern)}` is not a regular expression: {error}"
                refuse(self.label, "bad_adapter", what)
        return default


def _count_ways(pattern: str, module: str) -> int:
    """At most how many ways a matcher that goes back tries: places of each repetition times alternatives of each group."""
    repetitions = len(re.findall(r"[*+?]", pattern))
    alternatives = prod(part.count("|") + 1 for part in re.split(r"[()]", pattern))
    return (module.count(".") + 1) * alternatives * int(len(module) ** repetitions)


def read_options(files: Files) -> Options:
    """An adapter's configuration, checked.

    Raises:
        ModelError: `unsupported_adapter` or the option's name, with the reason, for what is no change of weights.
    """
    values, label = read_json(files, "adapter_config.json"), files.label
    kind = str(values.get("peft_type"))
    if kind not in {"LORA", "TRAINABLE_TOKENS"}:
        what = f"its kind is {show_name(kind)}, and LORA and TRAINABLE_TOKENS are what is merged"
        refuse(label, "unsupported_adapter", what, hint="merge it with PEFT's own merge_and_unload, where that can")
    for option, why in REFUSED.items():
        if values.get(option):
            refuse(label, option.removeprefix("use_"), f"`{option}` is set: {why}")
    for option, value in values.items():
        if value and option not in _USED | _NEUTRAL | _STARTS.keys():
            refuse(label, "unsupported_adapter", f"its option `{show_name(option)}` is not known here")
    mapping = values.get("auto_mapping")
    return Options(
        label,
        values,
        _names(values, "modules_to_save", label) + tuple(_HEADS.get(str(values.get("task_type")), ())),
        _tokens(values, label),
        _names(values, "target_parameters", label),
        _start(values),
        str(values.get("bias") or "none"),
        str(values["task_type"]) if values.get("task_type") else None,
        str(mapping.get("base_model_class")) if isinstance(mapping, dict) else None,
    )


def _start(values: Mapping[str, Any]) -> str | None:
    named = next((name for option, name in _STARTS.items() if values.get(option)), None)
    start = str(values.get("init_lora_weights", True)).lower()
    return named or (None if start in _NEUTRAL_START else start)


def _names(values: Mapping[str, Any], option: str, label: str) -> tuple[str, ...]:
    found = values.get(option) or []
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        refuse(label, "bad_adapter", f"`{option}` is not a list of names")
    return tuple(found)


def _tokens(values: Mapping[str, Any], label: str) -> dict[str, tuple[int, ...]]:
    """Which tokens were trained, by module; one list without a module is of the input embedding, whatever it is called."""
    if values.get("peft_type") == "TRAINABLE_TOKENS":
        targets = values.get("target_modules") or ["embed_tokens"]
        names = targets if isinstance(targets, list) else [targets]
        found: Any = {str(name): values.get("token_indices") for name in names}
    else:
        found = values.get("trainable_token_indices") or {}
        found = found if isinstance(found, dict) else {"": found}
    for name, rows in found.items():
        if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
            refuse(label, "bad_adapter", f"the trained tokens of `{show_name(str(name))}` are not a list of ids")
    return {name: tuple(rows) for name, rows in found.items()}


def refuse(label: str, code: str, what: str, hint: str | None = None) -> NoReturn:
    """Raise `ModelError`: what `label` is, cannot be merged, and why; without a `hint`, what helps against most errors of that code."""
    raise ModelError(f"`{label}` cannot be merged: {what}", code=code, hint=hint or _HINTS.get(code))
