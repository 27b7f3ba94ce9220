"""Which tensors of which models make each tensor of a merged model, and with which parameters: a plan from headers and configurations alone.

Models belong together when they are of one architecture and every tensor has one shape; all that differs is refused by name before
anything is written. A tensor's layer is the first number in its name. Reads no weights, but to see whether an output layer that only
one model has on disk is its embedding all the same.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.derivations import STORAGE
from modelyard.errors import InputError, ModelError
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name
from modelyard.weights.headers import BITS
from modelyard.weights.merge.names import is_head, is_input_embedding
from modelyard.weights.merge.settings import METHODS, MergeConfig, Parameters, Slice, resolve
from modelyard.weights.values import equal_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.merge.settings import Value

__all__ = ["Mix", "Part", "check_numbers", "describe_differences", "layer_of", "merged_config", "pair_tensors"]

_LAYER = re.compile(r"^((?:[^.\d][^.]*\.)*?)(\d+)\.(.+)$")
_FLOATS = frozenset(kind for kind in BITS if kind.startswith(("F", "BF"))) - STORAGE.keys()
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_MUST_AGREE = (
    "model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "activation_function",
    "n_head", "num_experts_per_tok",
)  # fmt: skip
_SHOULD_AGREE = ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "rms_norm_eps", "layer_norm_eps")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Part:
    """One model's tensor in a mix.

    Attributes:
        model: The model's name in the configuration.
        tensor: Its name there.
        parameters: The method's parameters for it, empty for the base.
    """

    model: str
    tensor: str
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Mix:
    """One tensor of the result.

    Attributes:
        name, dtype, shape: What it is there.
        parts: What it is made of, in the order of the configuration; the base is not among them where the method has one.
        base: The base's part, where the method has one.
        shared: The method's parameters for the whole tensor.
        method: The configuration's, or `copy` for a tensor of integers, which all models have alike.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    base: Part | None
    shared: Mapping[str, Value]
    method: str

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)


def layer_of(tensor: str) -> tuple[str, int, str] | None:
    """A tensor's stack of layers, its layer there, and the rest of its name; None for one outside of layers.

    >>> layer_of("model.layers.10.mlp.experts.3.w1.weight")
    ('model.layers.', 10, 'mlp.experts.3.w1.weight')
    >>> layer_of("lm_head.weight") is None
    True
    """
    found = _LAYER.match(tensor)
    return (found[1], int(found[2]), found[3]) if found else None


def pair_tensors(config: MergeConfig, models: Mapping[str, Checkpoint]) -> dict[str, Mix]:
    """Every tensor of the result, by name, in the order of the donor's files.

    Args:
        config: What to do.
        models: Each model that takes part, by its name in the configuration.

    Raises:
        ModelError: `different_models` (architecture, tensors or shapes differ, named), `quantized_base`, `unsupported_dtype`,
            `untied`, or `layers` (a slice that cannot be cut).
        InputError: `missing_parameter` or `bad_number`.
    """
    return _Pairing(config, models).run()


def merged_config(config: MergeConfig, models: Mapping[str, Checkpoint], mixes: Mapping[str, Mix]) -> dict[str, Any]:
    """The result's config.json: the donor's, with the dtype and the number of layers that the result has."""
    plain = read_json(models[config.donor].files, "config.json")
    dtypes = {mix.dtype for mix in mixes.values() if mix.dtype in STORAGE}
    names = {kind: name for name, kind in _DTYPES.items()}
    if len(dtypes) == 1:
        plain = _retyped(plain, names[dtypes.pop()])
    if _is_cut(config, models):
        count = sum(
            part.inputs[0].layers[1] - part.inputs[0].layers[0] for part in config.slices if part.inputs[0].layers
        )
        plain = plain | {key: count for key in _LAYER_COUNTS if key in plain}
        if isinstance(plain.get("layer_types"), list):
            plain["layer_types"] = [kind for part in config.slices for kind in _kinds(part, models)]
    return plain


def _kinds(part: Slice, models: Mapping[str, Checkpoint]) -> list[Any]:
    first = part.inputs[0]
    start, end = first.layers or (0, 0)
    found = read_json(models[first.model].files, "config.json").get("layer_types")
    return list(found)[start:end] if isinstance(found, list) else []


def _retyped(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    old = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    nested = {
        key: value | {name: dtype for name in ("dtype", "torch_dtype") if name in value}
        for key, value in config.items()
        if isinstance(value, dict)
    }
    return config | nested | {old: dtype}


def _is_cut(config: MergeConfig, models: Mapping[str, Checkpoint]) -> bool:
    """Whether some slice leaves layers out, repeats them or moves them."""
    ranges = [{each.layers for each in part.inputs} for part in config.slices]
    if ranges == [{None}]:
        return False
    at = 0
    for found in ranges:
        if len(found) != 1:
            return True
        start, end = next(iter(found)) or (0, 0)
        if start != at:
            return True
        at = end
    return at != _layer_count(models[config.donor])


def _layer_count(model: Checkpoint) -> int:
    return max((found[1] + 1 for found in map(layer_of, model.home) if found), default=0)


class _Pairing:
    """The models side by side."""

    def __init__(self, config: MergeConfig, models: Mapping[str, Checkpoint]) -> None:
        self.config, self.models = config, models
        self.donor = models[config.donor]
        self.tied = {name: _is_tied(model) for name, model in models.items()}
        self.method = METHODS[config.method]

    def run(self) -> dict[str, Mix]:
        parts = {each.model for part in self.config.slices for each in part.inputs} | {self.config.donor}
        for name in self.models:
            if name in parts:
                self.check_config(name)
        if _is_cut(self.config, self.models):
            return {mix.name: mix for mix in self.cut()}
        counts: dict[str, int] = {}
        for found in map(layer_of, self.donor.home):
            if found:
                counts[found[0]] = max(counts.get(found[0], 0), found[1] + 1)
        for name in parts - {self.config.donor}:
            self.check_names(name)
        return {name: self.mix(name, counts) for name in _in_file_order(self.donor)}

    def mix(self, name: str, counts: Mapping[str, int]) -> Mix:
        """A tensor of a merge that moves no layer."""
        found = layer_of(name)
        first, start, end = self.config.slices[0], 0, 0
        if found is None:
            part = first if is_input_embedding(name) else self.config.slices[-1]
            return self.made(name, part, {each.model: name for each in part.inputs}, 0.0)
        part, end = first, counts[found[0]]
        for each in self.config.slices:
            layers = each.inputs[0].layers
            if layers is not None and layers[0] <= found[1] < layers[1]:
                part, (start, end) = each, layers
        return self.made(name, part, {each.model: name for each in part.inputs}, _place(found[1] - start, end - start))

    def cut(self) -> Iterator[Mix]:
        """The tensors of a merge that takes layers from here and there."""
        stacks = {found[0] for found in map(layer_of, self.donor.home) if found}
        if len(stacks) != 1:
            self.refuse("layers", f"`{self.donor.files.label}` has {len(stacks)} stacks of layers, and slices cut one")
        prefix = stacks.pop()
        for name in _in_file_order(self.donor):
            if layer_of(name) is None:
                part = self.config.slices[0 if is_input_embedding(name) else -1]
                yield self.made(name, part, {each.model: name for each in part.inputs}, 0.0)
        layer = 0
        for part in self.config.slices:
            ranges = [(each.model, *(each.layers or (0, 0))) for each in part.inputs]
            length = ranges[0][2] - ranges[0][1]
            for offset in range(length):
                model, start, _ = ranges[0]
                rests = [
                    found[2] for found in map(layer_of, self.models[model].home) if found and found[1] == start + offset
                ]
                if not rests:
                    self.refuse("layers", f"`{model}` has no layer {start + offset}")
                for rest in rests:
                    names = {model: f"{prefix}{start + offset}.{rest}" for model, start, _ in ranges}
                    yield self.made(f"{prefix}{layer}.{rest}", part, names, _place(offset, length))
                layer += 1

    def made(self, name: str, part: Slice, names: Mapping[str, str], place: float) -> Mix:
        """One mix, checked and with its parameters."""
        config = self.config
        shared_scopes: tuple[Parameters, ...] = (part.parameters, config.parameters)
        base, found = None, []
        for each in part.inputs:
            tensor = self.find(each.model, names[each.model], name)
            if self.method.base and each.model == config.base:
                base = Part(each.model, tensor)
                continue
            scopes = (each.parameters, *shared_scopes)
            found.append(
                Part(each.model, tensor, self.resolved(self.method.per_model, scopes, names[each.model], place))
            )
        every = [self.info(each) for each in [*found, *([base] if base else [])]]
        shapes, dtypes = {info.shape for info in every}, {info.dtype for info in every}
        if len(shapes) > 1:
            self.refuse_shapes(name, [*found, *([base] if base else [])])
        dtype, method = self.result_dtype(name, dtypes), config.method
        if dtype not in STORAGE:
            method = "copy"
            found = ([base] if base else []) + found
        shared = self.resolved(self.method.shared, shared_scopes, name, place)
        return Mix(name, dtype, shapes.pop(), tuple(found), base, shared, method)

    def resolved(
        self, wanted: Mapping[str, Any], scopes: tuple[Parameters, ...], tensor: str, place: float
    ) -> dict[str, Value]:
        return {name: resolve(name, default, scopes, tensor, place) for name, default in wanted.items()}

    def find(self, model: str, tensor: str, name: str) -> str:
        """The name on the model's disk; a tied model's embedding stands for an output layer that is not there."""
        home = self.models[model].home
        if tensor in home:
            return tensor
        embedding = next((each for each in home if is_input_embedding(each)), None)
        if embedding is None or not (is_head(tensor) and self.tied[model]):
            what = f"`{model}` has no tensor `{show_name(tensor)}`, which `{show_name(name)}` is made of"
            self.refuse("different_models", what)
        return embedding

    def info(self, part: Part) -> Any:
        return self.models[part.model].info(part.tensor)

    def result_dtype(self, name: str, dtypes: set[str]) -> str:
        odd = dtypes - STORAGE.keys()
        if odd & _FLOATS or (odd and len(dtypes) > 1):
            self.refuse(
                "unsupported_dtype", f"`{show_name(name)}` is {', '.join(sorted(dtypes))}; F32, F16 and BF16 are merged"
            )
        if odd:
            return odd.pop()
        wanted = self.config.out_dtype or self.config.dtype
        if wanted is not None:
            return _DTYPES[wanted]
        return dtypes.pop() if len(dtypes) == 1 else "F32"  # what two of them promote to

    def check_config(self, name: str) -> None:
        here, donor = (read_json(self.models[each].files, "config.json") for each in (name, self.config.donor))
        if here.get("quantization_config"):
            self.refuse("quantized_base", f"`{name}` is quantized; merge the weights that it was quantized from")
        for key in _MUST_AGREE:
            if here.get(key) != donor.get(key):
                self.refuse(
                    "different_models",
                    f"`{name}` has `{key}` {here.get(key)!r}, and `{self.config.donor}` has {donor.get(key)!r}",
                )

    def check_names(self, name: str) -> None:
        """Refuse a tensor that the donor has not; an output layer that equals the embedding is none."""
        model = self.models[name]
        extra = [tensor for tensor in model.home if tensor not in self.donor.home]
        for head in [tensor for tensor in extra if is_head(tensor) and self.tied[self.config.donor]]:
            embedding = next((each for each in model.home if is_input_embedding(each)), None)
            if embedding is None or not equal_tensors(model, head, embedding):
                self.refuse("untied", f"`{name}` has an output layer of its own, and `{self.config.donor}` has it tied")
            extra.remove(head)
        if extra:
            shown = ", ".join(f"`{show_name(tensor)}`" for tensor in sorted(extra)[:3])
            self.refuse(
                "different_models", f"`{name}` has {len(extra)} tensors that `{self.config.donor}` has not: {shown}"
            )

    def refuse_shapes(self, name: str, parts: list[Part]) -> NoReturn:
        shown = " and ".join(f"{list(self.info(part).shape)} in `{part.model}`" for part in parts)
        what = "vocabularies of different sizes: " if is_input_embedding(name) or is_head(name) else ""
        self.refuse("different_models", f"{what}`{show_name(name)}` is {shown}")

    def refuse(self, code: str, what: str) -> NoReturn:
        raise ModelError(f"these models cannot be merged: {what}", code=code)


def describe_differences(config: MergeConfig, models: Mapping[str, Checkpoint]) -> list[str]:
    """Sentences on what lets models merge and perhaps not work: other positions, other vocabularies."""
    made, donor = [], models[config.donor].files
    plain = read_json(donor, "config.json")
    for name in config.models:
        files = models[name].files
        here = read_json(files, "config.json")
        made += [
            f"`{name}` has `{key}` {here.get(key)!r}, and the result has {plain.get(key)!r} of `{config.donor}`"
            for key in _SHOULD_AGREE
            if here.get(key) != plain.get(key)
        ]
        both = "tokenizer.json" in files.names() and "tokenizer.json" in donor.names()
        if both and files.read("tokenizer.json") != donor.read("tokenizer.json"):
            made.append(
                f"the tokenizer of `{name}` is not that of `{config.donor}`: a token's number may mean another word"
            )
    return made


def check_numbers(mix: Mix) -> None:
    """Refuse parameters that give no merge.

    Raises:
        InputError: `bad_number`, naming the tensor.
    """
    weights = [float(part.parameters["weight"]) for part in mix.parts if "weight" in part.parameters]
    if mix.method == "linear" and mix.shared["normalize"] and math.fsum(weights) == 0:
        raise InputError(f"the weights for `{mix.name}` sum to 0, so they cannot be normalized", code="bad_number")
    for part in mix.parts:
        density = part.parameters.get("density", 1.0)
        if mix.method.startswith("dare") and density <= 0:
            raise InputError(f"a density for `{mix.name}` is {density}, and must be above 0", code="bad_number")


def _place(layer: int, count: int) -> float:
    return layer / (count - 1) if count > 1 else 1.0


def _in_file_order(model: Checkpoint) -> list[str]:
    return [name for header in model.shards.values() for name, _ in header.in_file_order()]


def _is_tied(model: Checkpoint) -> bool:
    config = read_json(model.files, "config.json")
    tied = config.get("tie_word_embeddings")
    return bool(tied) if tied is not None else not any(is_head(name) for name in model.home)
