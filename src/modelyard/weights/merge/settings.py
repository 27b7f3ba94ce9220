"""What a merge of whole models is asked for: models, a method, and parameters that may differ by tensor and by layer.

`MergeConfig` is what mergekit's YAML says (`mergekit.read_mergekit`) and what `merge_models` builds from its arguments. A
parameter is a number; a list of numbers, which are points of a line over the layers; or a list of `Conditional`, of which the
first whose filter is part of the tensor's name counts. Holds values; opens no model and computes nothing but parameters.

>>> evaluate([0.0, 0.5, 1.0], "model.layers.1.mlp.up_proj.weight", 0.25)
0.25
>>> evaluate((Conditional(0.9, "mlp"), Conditional(0.1)), "model.layers.1.self_attn.q_proj.weight", 0.0)
0.1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from modelyard.errors import InputError

__all__ = [
    "METHODS",
    "Conditional",
    "MergeConfig",
    "MergeInput",
    "Method",
    "Parameters",
    "Setting",
    "Slice",
    "evaluate",
    "resolve",
]

Value: TypeAlias = "float | bool"


@dataclass(frozen=True)
class Conditional:
    """A value, or a line of values over the layers, for tensors whose name has `filter` in it; None is for every tensor."""

    value: Value | list[float] | list[bool]
    filter: str | None = None


Setting: TypeAlias = "Value | list[float] | list[bool] | tuple[Conditional, ...]"
Parameters = Mapping[str, Setting]


@dataclass(frozen=True)
class Method:
    """What a method takes.

    Attributes:
        per_model: Parameters that each model has one of, with the default; None is required.
        shared: Parameters of the whole merge, likewise.
        base: It counts from a base model, which has no parameters of its own.
        most: The most models in one merge, base included; None is any number.
        least: The fewest.
    """

    per_model: Mapping[str, float | None] = field(default_factory=dict)
    shared: Mapping[str, Value | None] = field(default_factory=dict)
    base: bool = False
    most: int | None = None
    least: int = 1


_CHANGES: dict[str, float | None] = {"weight": None, "density": 1.0}

METHODS: Mapping[str, Method] = {
    "linear": Method({"weight": None}, {"normalize": True}),
    "slerp": Method({}, {"t": None}, base=True, most=2, least=2),
    "ties": Method(_CHANGES, {"normalize": True, "lambda": 1.0}, base=True),
    "dare_ties": Method(_CHANGES, {"normalize": False, "lambda": 1.0, "rescale": True}, base=True),
    "dare_linear": Method(_CHANGES, {"normalize": False, "lambda": 1.0, "rescale": True}, base=True),
    "task_arithmetic": Method({"weight": None}, {"normalize": False, "lambda": 1.0}, base=True),
    "passthrough": Method({"scale": 1.0}, {}, most=1),
}
"""The methods, under mergekit's names, with mergekit's parameters and defaults."""


@dataclass(frozen=True)
class MergeInput:
    """One model of a merge.

    Attributes:
        model: What the configuration calls it: a folder, or whatever the caller resolves.
        parameters: Its own.
        layers: First layer and the one after the last; None is all of them.
    """

    model: str
    parameters: Parameters = field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the result, and the models that they are merged from."""

    inputs: tuple[MergeInput, ...]
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class MergeConfig:
    """A merge of whole models.

    Attributes:
        method: One of `METHODS`.
        slices: What the layers are made from; one slice of whole models where nothing is cut.
        base: The model that the others are compared with, and that files beside the weights come from.
        parameters: Those of the whole merge.
        dtype, out_dtype: `float32`, `float16` or `bfloat16`: what the result is stored as; `out_dtype` counts first. None:
            each tensor's dtype is what the models' dtypes promote to.
        tokenizer: The model whose tokenizer is taken; None is the base's, or the first model's without a base.
        chat_template: Its text, or `auto` for the one that most of the models have; None is the tokenizer's own.
        warnings: What reading the configuration had to say.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named, each once: the base first, then in the order of the slices."""
        named = [self.base] if self.base is not None else []
        named += [each.model for part in self.slices for each in part.inputs]
        named += [self.tokenizer] if self.tokenizer is not None else []
        return tuple(dict.fromkeys(named))

    @property
    def donor(self) -> str:
        """The model that the configuration, the layout and the other files come from."""
        return self.base if self.base is not None else self.slices[0].inputs[0].model

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON."""
        plain: dict[str, Any] = {
            "method": self.method,
            "slices": [
                {
                    "inputs": [
                        {"model": each.model, "parameters": _plain(each.parameters)}
                        | ({"layers": list(each.layers)} if each.layers else {})
                        for each in part.inputs
                    ],
                    "parameters": _plain(part.parameters),
                }
                for part in self.slices
            ],
            "parameters": _plain(self.parameters),
        }
        rest = {name: getattr(self, name) for name in ("base", "dtype", "out_dtype", "tokenizer", "chat_template")}
        return plain | {name: value for name, value in rest.items() if value is not None}


def evaluate(setting: Setting, tensor: str, place: float) -> Value | None:
    """A parameter's value for one tensor; None where no filter fits.

    Args:
        setting: The parameter as the configuration has it.
        tensor: The tensor's name in the model that the parameter is of.
        place: Where its layer lies, from 0 (the first) to 1 (the last).
    """
    if isinstance(setting, tuple):
        for each in setting:
            if each.filter is None or each.filter == "*" or each.filter in tensor:
                return evaluate(each.value, tensor, place)
        return None
    if not isinstance(setting, list):
        return setting
    if any(isinstance(value, bool) for value in setting):
        return setting[int(place * (len(setting) - 1))]
    scaled = place * (len(setting) - 1)
    first = int(scaled)
    after = min(first + 1, len(setting) - 1)
    share = scaled - first
    return (1 - share) * setting[first] + share * setting[after]


def resolve(name: str, default: Value | None, scopes: tuple[Parameters, ...], tensor: str, place: float) -> Value:
    """A parameter's value for one tensor: of the first scope that has one for it, else the default.

    Raises:
        InputError: `missing_parameter`: there is neither.
    """
    for scope in scopes:
        if name in scope:
            value = evaluate(scope[name], tensor, place)
            if value is not None:
                return value
    if default is None:
        raise InputError(
            f"the merge has no `{name}` for `{tensor}`",
            code="missing_parameter",
            hint=f"give `{name}` under `parameters` of each model, or of the whole merge",
        )
    return default


def _plain(parameters: Parameters) -> dict[str, Any]:
    def value(setting: Setting) -> Any:
        if isinstance(setting, tuple):
            return [{"filter": each.filter, "value": each.value} for each in setting]
        return setting

    return {name: value(setting) for name, setting in parameters.items()}
