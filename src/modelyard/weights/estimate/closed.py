"""Closed forms: the same sizes as a run on the meta device, from a configuration and headers alone, without any library.

For the families of `forms.FAMILIES` only, and only where a checkpoint is of the plain kind that the forms were derived from:
anything else (another activation, sliding windows shorter than a row, LoRA on chosen modules, quantized weights, no weights
at all) is left to the run. Knows headers and numbers; imports no library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.weights.estimate.forms import FAMILIES, FORMS
from modelyard.weights.estimate.machine import HEAP_BLOCK
from modelyard.weights.estimate.sizes import Profile
from modelyard.weights.estimate.workload import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.estimate.checkpoint import Described
from modelyard.weights.estimate.workload import Workload

__all__ = ["closed_profile"]

# Keys that change what a step holds, with the only values that the forms were derived for.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu"),
    "attention_dropout": (None, 0, 0.0),
    "use_sliding_window": (None, False),
    "layer_types": (None,),
    "pretraining_tp": (None, 1),
    "attn_implementation": (None, "sdpa"),
    "_attn_implementation": (None, "sdpa"),
    "num_labels": (None,),
}


@dataclass(frozen=True, slots=True)
class _Sizes:
    """A decoder's sizes, as its tensors have them."""

    layers: int
    hidden: int
    heads: int
    groups: int  # key-value heads
    width: int  # of a head
    inner: int
    vocabulary: int


def closed_profile(described: Described, workload: Workload, dtype: str) -> Profile | None:
    """The profile of one step; None where no closed form is known, and the step has to be run."""
    config = described.config
    family = str(config.get("model_type"))
    sizes = _sizes(described) if _is_plain(described, workload, family) else None
    if sizes is None:
        return None
    forms = FORMS[family]
    step = workload.mode if not workload.gradient_checkpointing else f"{workload.mode} again"
    form = forms.get((step, "float32" if dtype == "float32" else "bfloat16"))
    if form is None:
        return None
    width = DTYPES[dtype]
    found = [_moment(moment, sizes, workload, width) for moment in form]
    moments, heap = max(total for total, _ in found), max(small for _, small in found)
    tensors = {
        name: info
        for name, info in described.tensors.items()
        if not (name == "lm_head.weight" and config.get("tie_word_embeddings"))
    }
    linear = [info.shape for name, info in tensors.items() if len(info.shape) == 2 and ".layers." in name]
    parameters = sum(info.elements for info in tensors.values())
    pairs = workload.rank * sum(rows + columns for rows, columns in linear) if workload.mode == "lora" else 0
    trainable = {"inference": 0, "lora": pairs, "full": parameters}[workload.mode]
    trained_width = 4 if workload.mode == "lora" else width
    trained = trainable * trained_width
    states = 2 * trained if workload.optimizer == "adamw" else 0
    cache = 0
    if workload.mode == "inference":
        cache, last, small = _generation(sizes, workload, width)
        moments, heap = max(moments, last), max(heap, small)
    return Profile(
        parameters=parameters,
        trainable=trainable,
        weights=parameters * width,
        linear=(sum(rows * columns for rows, columns in linear), sum(rows for rows, _ in linear)),
        largest=max((rows * columns for rows, columns in linear), default=0),
        kv_cache=cache,
        gradients=trained,
        optimizer=states,
        adapter=pairs * trained_width,
        peak=moments + states,
        heap=heap,
        closed=True,
    )


def _generation(sizes: _Sizes, workload: Workload, width: int) -> tuple[int, int, int]:
    """(cache, most, of it from the heap) in bytes at the last new token: a layer's keys are still there when their
    successors are made.
    """
    each = workload.batch * sizes.groups * sizes.width * width
    length = workload.length + workload.new_tokens
    cache = 2 * sizes.layers * each * length
    row = workload.batch * (4 * sizes.hidden * width + max(2 * sizes.inner, sizes.vocabulary) * width)
    held = cache + (each * length if workload.new_tokens else 0)
    return cache, held + row, row + (held if each * length < HEAP_BLOCK else 0)


def _moment(moment: list[dict[str, int]], sizes: _Sizes, workload: Workload, width: int) -> tuple[int, int]:
    """(all, of it from the heap) that is held at one moment, in bytes; a term's blocks are as large as its symbols say."""
    rest, layer = moment
    values = {
        "B": workload.batch,
        "L": workload.length,
        "k": sizes.groups,
        "g": sizes.heads // sizes.groups,
        "d": sizes.width / 2,
        "h": sizes.hidden / sizes.heads / 2,
        "I": sizes.inner,
        "V": sizes.vocabulary,
        "r": workload.rank,
    }
    total = small = 0.0
    for polynomial, times in ((rest, 1), (layer, sizes.layers)):
        for symbols, coefficient in polynomial.items():
            product = float(coefficient * times)
            block = float(width)
            for symbol in symbols:
                product *= values[symbol]
                block *= values[symbol] * (2 if symbol in "dh" else 1)  # these two are halves
            total += product
            small += product if block < HEAP_BLOCK else 0
    return round(total), round(small)


def _is_plain(described: Described, workload: Workload, family: str) -> bool:
    config = described.config
    window = config.get("sliding_window")
    return (
        family in FAMILIES
        and described.architecture == FAMILIES[family]
        and described.quantization is None
        and all(config.get(key) in allowed for key, allowed in _PLAIN.items() if key != "layer_types")
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and (
            window is None
            or (family in {"qwen2", "qwen3"} and not config.get("use_sliding_window"))
            or workload.length + workload.new_tokens < window
        )
        and workload.device == "cpu"
        and workload.optimizer == "adamw"
        and workload.targets == "all-linear"
        and not config.get("num_experts")
        and not (workload.mode == "full" and config.get("tie_word_embeddings"))
    )


def _sizes(described: Described) -> _Sizes | None:
    """The sizes, where the tensors are the family's and agree with the configuration; else None."""
    config = described.config
    shapes = {name: info.shape for name, info in described.tensors.items()}
    first = "model.layers.0."
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    found = [shapes.get(f"{first}{name}.weight") for name in names]
    embedding, heads, layers = (
        shapes.get("model.embed_tokens.weight"),
        config.get("num_attention_heads"),
        config.get("num_hidden_layers"),
    )
    if embedding is None or any(shape is None or len(shape) != 2 for shape in found):
        return None
    if type(heads) is not int or type(layers) is not int or heads < 1 or layers < 2:
        return None
    query, key, gate = ((shape[0], shape[1]) for shape in found if shape is not None)
    width = query[0] // heads
    groups = key[0] // width if width else 0
    whole = all(f"model.layers.{layer}.mlp.down_proj.weight" in shapes for layer in range(layers))
    if not whole or groups < 1 or heads % groups or width % 2 or width * heads != query[0]:
        return None
    return _Sizes(layers, embedding[1], heads, groups, width, gate[0], embedding[0])
