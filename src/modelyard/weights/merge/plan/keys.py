"""The tensors of an adapter's file, by what they are to the module they belong to. Reads names; knows no base.

PEFT 0.21's names, measured: the adapter's own name is left out, embeddings and magnitudes have no `.weight`, several trained
parameters of one module nest as `base_layer`, innermost first, and an embedding's own weight lies beside its factors as
`base_layer.weight`.

>>> key = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
>>> _FACTOR.fullmatch(key.removeprefix(PREFIX)).group("module", "role")
('model.layers.0.mlp.experts.base_layer', 'A')
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.weights.files import show_name
from modelyard.weights.merge.names import is_head, is_input_embedding
from modelyard.weights.merge.plan.options import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.weights.merge.plan.options import Options

__all__ = ["PREFIX", "Factors", "Keys", "sort_keys"]

PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<role>[AB])\.weight|lora_embedding_(?P<embedding>[AB])(?:\.weight)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?|(?P<bias>lora_B\.bias))"
)
_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
_IDLE = re.compile(r".+\.(lora_velora_embed|lora_monteclora_sampler\..+)")
"""What VeLoRA and MonteCLoRA need to train; the trained function does without."""
_ATTENTION = ".base_layer.out_proj"


@dataclass
class Factors:
    """The tensors of one module, or of one of its parameters.

    Attributes:
        module: As the adapter calls it, `base_layer` left out; for the output projection of a
            `torch.nn.MultiheadAttention`, which PEFT trains with it, as it is.
        depth: How many `base_layer` stood at its end: which of several parameters it is, counted from the last.
        roles: `A`, `B`, `magnitude`, `bias` to key.
        embedding: Whether they are an embedding's.
    """

    module: str
    depth: int
    roles: dict[str, str] = field(default_factory=dict)
    embedding: bool = False

    @property
    def of_attention(self) -> bool:
        """Whether this is the output projection of a `torch.nn.MultiheadAttention`."""
        return self.module.endswith(_ATTENTION)


@dataclass
class Keys:
    """An adapter's tensors, sorted.

    Attributes:
        factors: Modules that take a low-rank change.
        whole: Tensor name to the key that replaces it.
        tokens: Module to the key of its trained tokens.
        base: Tensor name to the key under which the file repeats the base's own.
    """

    factors: list[Factors] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)


def sort_keys(keys: Iterable[str], options: Options) -> Keys:
    """Sort an adapter's keys by what they are.

    Raises:
        ModelError: `bad_adapter` for a key that has no place, and for half of a pair.
    """
    made = Keys()
    found: dict[str, Factors] = {}
    for key in keys:
        name = key.removeprefix(PREFIX)
        factor, tokens = _FACTOR.fullmatch(name), _TOKENS.fullmatch(name)
        if factor:
            _add_factor(found, factor, key, options)
        elif tokens:
            made.tokens[tokens["module"]] = key
        elif not _IDLE.fullmatch(name):
            _add_whole(made, name, key, options)
    for factors in found.values():
        sides = factors.roles.keys() & {"A", "B"}
        if len(sides) != 2:
            what = f"lora_{min(sides)} only" if sides else f"{', '.join(factors.roles)} and no factors"
            refuse(options.label, "bad_adapter", f"`{show_name(factors.module)}` has {what}")
        if options.values.get("use_dora") and "magnitude" not in factors.roles:
            what = f"`use_dora` is set and `{show_name(factors.module)}` has no magnitude, without which it is another function"
            refuse(options.label, "bad_adapter", what)
        made.factors.append(factors)
    if not made.factors and not made.whole and not made.tokens:
        refuse(options.label, "no_match", "it holds no tensor that changes a weight")
    return made


def _add_factor(found: dict[str, Factors], match: re.Match[str], key: str, options: Options) -> None:
    path = match["module"]
    module = path
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    depth = (len(path) - len(module)) // len(".base_layer")
    if ".base_layer." in module and not module.endswith(_ATTENTION):
        refuse(options.label, "bad_adapter", f"tensor `{show_name(key)}` lies inside another change of its module")
    factors = found.setdefault(path, Factors(module, depth))
    role = match["role"] or match["embedding"] or ("magnitude" if match["magnitude"] else "bias")
    if role in factors.roles or (match["role"] and factors.embedding):
        refuse(options.label, "bad_adapter", f"tensor `{show_name(key)}` is there under two names")
    factors.roles[role] = key
    factors.embedding |= bool(match["embedding"])


def _add_whole(made: Keys, name: str, key: str, options: Options) -> None:
    plain = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    if name.endswith(".base_layer.weight") and ".modules_to_save." not in name:
        made.base[plain] = key
        return
    is_bias = plain.endswith(".bias") and options.biases != "none"
    # An embedding that was resized is saved beside the factors without being named anywhere, and PEFT loads it.
    is_resized = (is_head(plain) or is_input_embedding(plain)) and options.values.get("peft_type") == "LORA"
    if not (is_bias or is_resized or _is_saved(plain, options.saved)):
        what = f"tensor `{show_name(key)}` is neither a factor nor in `modules_to_save`"
        refuse(options.label, "bad_adapter", what)
    made.whole[plain] = key


def _is_saved(tensor: str, saved: Iterable[str]) -> bool:
    """Whether a module that holds this tensor ends as one of `saved`: PEFT asks no more (`norm` is every `..._layernorm`, too)."""
    parts = tensor.split(".")[:-1]
    holders = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(holder.endswith(name) for holder in holders for name in saved)
