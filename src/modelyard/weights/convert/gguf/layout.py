"""What becomes of each tensor of a model in its GGUF file: its name, its type, and what is done to it on the way.

Reads headers only, and what a tied head needs to be told from another one. Knows families as data; writes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.derivations import STORAGE
from modelyard.errors import ModelError, RequestError
from modelyard.weights.files import show_name
from modelyard.weights.gguf import GGUF_TYPES
from modelyard.weights.values import equal_tensors

if TYPE_CHECKING:
    from collections.abc import Collection

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.convert.gguf.families import Family

__all__ = ["BLOCKS", "TYPES", "Layout", "Placed", "base_name", "check_type", "missing_tensors", "plan_layout"]

TYPES = ("F16", "F32", "BF16", "Q8_0", "Q4_0")
"""What `to_gguf` writes."""

BLOCKS = {name: (elements, width) for name, elements, width in GGUF_TYPES.values()}
"""Type to the elements of a block and the bytes that it takes."""

# llama.cpp computes with these as they are, or looks rows up in them without a kernel for blocks.
_ALWAYS_F32 = frozenset({"position_embd.weight", "token_types.weight"})
_ENDS = frozenset({"token_embd.weight", "output.weight"})
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor on its way.

    Attributes:
        name: In the file.
        source: In the model.
        dtype: In the model, as safetensors calls it.
        shape: In the model.
        type: In the file.
        change: None, `queries`, `keys`, `plus one` or `transposed`.
        heads: Heads that the rows of queries or keys belong to.
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    type: str
    change: str | None = None
    heads: int = 0

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape in the file, slowest dimension first."""
        return self.shape[::-1] if self.change == "transposed" else self.shape

    @property
    def size(self) -> int:
        """Bytes in the file."""
        elements = 1
        for length in self.shape:
            elements *= length
        block, width = BLOCKS[self.type]
        return elements // block * width


@dataclass(frozen=True)
class Layout:
    """Every tensor in the order of the file, names that are left out, those among them of a head, and what a person should know."""

    tensors: tuple[Placed, ...]
    left_out: tuple[str, ...]
    head: tuple[str, ...]
    warnings: tuple[str, ...]


def check_type(kind: str) -> None:
    """Refuse a type that `to_gguf` does not write.

    Raises:
        RequestError: `unknown_type`.
    """
    if kind not in TYPES:
        raise RequestError(
            f"`{kind}` is no type of GGUF that is written here",
            code="unknown_type",
            hint=f"there are {', '.join(TYPES)}; llama.cpp's llama-quantize makes others from F16",
            field="type",
        )


def base_name(name: str, family: Family) -> str:
    """A name on disk as the family's table has it: base models saved alone lack their prefix, old BERTs call norms otherwise."""
    if family.arch == "bert":
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return name if family.gguf_name(name) is not None else family.prefix + name


def plan_layout(weights: Checkpoint, config: Any, family: Family, kind: str) -> Layout:
    """The tensors of `weights` in a file of type `kind`.

    Raises:
        ModelError: `unexpected_tensors`, `missing_tensors`, `unsupported_dtype`, `bad_shape`, each naming them.
    """
    left_out, unknown, dropped = [], [], []
    placed: dict[str, Placed] = {}
    for source in (name for header in weights.shards.values() for name, _ in header.in_file_order()):
        name = family.gguf_name(base_name(source, family))
        if any(re.search(pattern, source) for pattern in family.left_out):
            left_out.append(source)
        elif any(re.search(pattern, source) for pattern in family.dropped):
            dropped.append(source)
        elif name is None or (name.endswith(".bias") and not family.takes_bias(name)) or name in placed:
            unknown.append(source)
        elif name == "output.weight" and _is_tied(weights, source, config, family):
            left_out.append(source)
        else:
            placed[name] = _place(weights, source, name, config, family)
    _refuse(weights, "unexpected_tensors", f"have no place in the architecture `{family.arch}`", unknown)
    _refuse(weights, "missing_tensors", "are not there", missing_tensors(placed, config, family))
    alone = "output.weight" not in placed
    typed, odd = [], 0
    for each in placed.values():
        type_ = _pick_type(each, kind, alone)
        odd += type_ == "F16" != kind and len(each.shape) > 1
        typed.append(Placed(each.name, each.source, each.dtype, each.shape, type_, each.change, each.heads))
    warnings = []
    if odd:
        warnings.append(f"{odd} tensors are F16: their rows do not fill blocks of 32")
    if dropped:
        warnings.append(f"llama.cpp has no place for the head; left out: {', '.join(dropped[:_SHOWN])}")
    return Layout(tuple(typed), tuple(left_out + dropped), tuple(dropped), tuple(warnings))


def _is_tied(weights: Checkpoint, head: str, config: Any, family: Family) -> bool:
    if not config.tie_word_embeddings or family.tied == "never":
        return False
    embedding = next(
        (name for name in weights.home if family.gguf_name(base_name(name, family)) == "token_embd.weight"), None
    )
    if embedding is None or equal_tensors(weights, head, embedding):
        return embedding is not None
    raise ModelError(
        f"`{weights.files.label}` says that its head is its embedding, and holds another as `{show_name(head)}`",
        code="untied_head",
        hint="set `tie_word_embeddings` to false in its config.json if the head is meant, or remove the tensor",
    )


def _place(weights: Checkpoint, source: str, name: str, config: Any, family: Family) -> Placed:
    info = weights.info(source)
    if info.dtype not in STORAGE:
        raise ModelError(
            f"tensor `{show_name(source)}` is {info.dtype}; F32, F16 and BF16 have a GGUF form",
            code="unsupported_dtype",
        )
    change, heads = family.change(name), 0
    if change in {"queries", "keys"}:
        heads = int(config.num_attention_heads if change == "queries" else config.num_key_value_heads)
        if not heads or not info.shape or info.shape[0] % (2 * heads):
            raise ModelError(
                f"tensor `{show_name(source)}` has {info.shape[:1]} rows, which {heads} heads do not share",
                code="bad_shape",
            )
    if not 1 <= len(info.shape) <= 4 or 0 in info.shape:
        raise ModelError(
            f"tensor `{show_name(source)}` has the shape {info.shape}, which GGUF has not", code="bad_shape"
        )
    return Placed(name, source, info.dtype, info.shape, "F32", change, heads)


def missing_tensors(placed: Collection[str], config: Any, family: Family) -> list[str]:
    """Weights that every model of this architecture has and `placed` (names in the file) has not, by their names in transformers."""
    optional = {"output", "cls", "cls.output"}
    found = []
    for here, there in family.modules.items():
        if there in optional and not (there == "output" and family.tied == "never"):
            continue
        layers = range(config.num_hidden_layers) if "{}" in there else [0]
        found += [f"{here.format(layer)}.weight" for layer in layers if f"{there.format(layer)}.weight" not in placed]
    if family.tied == "optional" and not config.tie_word_embeddings and "output.weight" not in placed:
        found.append(f"{next(here for here, there in family.modules.items() if there == 'output')}.weight")
    return found


def _pick_type(tensor: Placed, kind: str, alone: bool) -> str:
    """Vectors stay F32; of Q4_0 the embedding that is also the head, or the head, is Q8_0, as its errors are the logits' own."""
    if len(tensor.shape) < 2 or tensor.name in _ALWAYS_F32 or tensor.name.endswith("_norm.weight"):
        return "F32"
    if kind == "Q4_0" and tensor.name in _ENDS and (alone or tensor.name == "output.weight"):
        kind = "Q8_0"
    return "F16" if tensor.out_shape[-1] % BLOCKS[kind][0] else kind


def _refuse(weights: Checkpoint, code: str, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        shown = ", ".join(f"`{show_name(name)}`" for name in names[:_SHOWN])
        raise ModelError(
            f"tensors of `{weights.files.label}` {what}: {shown}{more}",
            code=code,
            hint=f"look at it: yard doctor {weights.files.label}",
            tensors=names[:100],
        )
