"""Rotary embeddings in a GGUF file: the keys `rope.*` and the tensors of factors, from a configuration and back.

Llama 3's scaling is a tensor of one factor a frequency (`rope_freqs.weight`), Phi-3's two (`rope_factors_long.weight`, `..._short`).
Knows configurations of transformers 5 (`rope_parameters`) and keys; reads no file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from modelyard.weights.convert.gguf.families import Family

__all__ = ["FACTORS", "describe_rotation", "head_size", "rebuild_rotation"]

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that follow from the configuration."""

_WIDEST = 1 << 16  # elements of a head that are rotated: what a file says is held against it before factors are made

Keys = dict[str, tuple[str, Any]]


def head_size(config: Any) -> int:
    """Elements of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def describe_rotation(config: Any, family: Family) -> tuple[Keys, dict[str, NDArray[np.float32]]]:
    """The keys (without the architecture: key to type and value) and tensors that say how `config` rotates.

    Raises:
        ModelError: `unsupported_option`: a scaling that GGUF files of this architecture cannot state.
    """
    if not family.rotary:
        return {}, {}
    rope: dict[str, Any] = dict(config.rope_parameters)
    keys: Keys = {}
    if "full_attention" in rope:
        local = rope["sliding_attention"]
        _refuse_scaled(local, family)
        keys["rope.freq_base_swa"] = ("f32", float(local["rope_theta"]))
        rope = dict(rope["full_attention"])
    size = int(head_size(config) * float(rope.get("partial_rotary_factor") or 1.0))
    theta = float(rope["rope_theta"])
    if not (0 < size <= _WIDEST and 0 < theta < math.inf):
        raise ModelError(f"a rotation of {size} elements by the base {theta} is none", code="unsupported_option")
    keys["rope.freq_base"] = ("f32", theta)
    keys["rope.dimension_count"] = ("u32", size)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return keys, {}
    if kind == "linear":
        return keys | {
            "rope.scaling.type": ("str", "linear"),
            "rope.scaling.factor": ("f32", float(rope["factor"])),
        }, {}
    if kind == "yarn" and not rope.keys() & {"mscale", "mscale_all_dim", "attention_factor"}:
        return keys | _yarn(rope, config), {}
    if kind == "llama3" and family.arch in {"llama", "qwen2", "qwen3"}:
        return keys, {"rope_freqs.weight": _llama3_factors(rope, size)}
    if kind == "longrope" and family.arch == "phi3":
        return keys | _longrope(rope, config), {
            f"rope_factors_{each}.weight": np.asarray(rope[f"{each}_factor"], np.float32) for each in ("long", "short")
        }
    raise ModelError(
        f"rope_parameters of the type `{kind}` have no GGUF form in the architecture `{family.arch}`",
        code="unsupported_option",
        hint="linear, yarn (without mscale and attention_factor), llama3 (Llama, Qwen) and longrope (Phi-3) have one",
    )


def _refuse_scaled(rope: Mapping[str, Any], family: Family) -> None:
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"the rotation of `{family.arch}`'s sliding layers is scaled, which llama.cpp does not compute",
            code="unsupported_option",
        )


def _yarn(rope: Mapping[str, Any], config: Any) -> Keys:
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    return {
        "rope.scaling.type": ("str", "yarn"),
        "rope.scaling.factor": ("f32", float(rope["factor"])),
        "rope.scaling.original_context_length": ("u32", int(original)),
        "rope.scaling.yarn_beta_fast": ("f32", float(rope.get("beta_fast") or 32.0)),
        "rope.scaling.yarn_beta_slow": ("f32", float(rope.get("beta_slow") or 1.0)),
    }


def _longrope(rope: Mapping[str, Any], config: Any) -> Keys:
    original = int(_original(rope, config))
    factor = rope.get("factor") or config.max_position_embeddings / original
    given = rope.get("attention_factor")
    grown = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "rope.scaling.original_context_length": ("u32", original),
        "rope.scaling.attn_factor": ("f32", float(given if given is not None else grown)),
    }


def _original(rope: Mapping[str, Any], config: Any) -> int:
    return int(
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
    )


def _llama3_factors(rope: Mapping[str, Any], size: int) -> NDArray[np.float32]:
    """By what each frequency is divided: 1 for short waves, `factor` for long ones, between them a blend (Llama 3.1)."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def rebuild_rotation(
    said: Mapping[str, Any], factors: Mapping[str, NDArray[np.float32]], family: Family, head: int, context: int
) -> dict[str, Any]:
    """`rope_parameters` from a file's keys (without the architecture) and tensors.

    Raises:
        ModelError: `unsupported_option`: factors or a scaling that transformers has no name for.
    """
    theta = said.get("rope.freq_base", 10000.0)
    size = int(said.get("rope.dimension_count", head))
    if type(theta) not in {int, float} or not (0 < theta < math.inf and 0 < size <= _WIDEST):
        raise ModelError(f"a rotation of {size} elements by the base {str(theta)[:20]} is none", code="bad_metadata")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if size != head:
        rope["partial_rotary_factor"] = size / head
    kind = said.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in factors:
        rope |= _find_llama3(rope, factors["rope_freqs.weight"], size)
    elif "rope_factors_long.weight" in factors:
        rope |= {
            "rope_type": "longrope",
            "original_max_position_embeddings": int(said.get("rope.scaling.original_context_length", context)),
            "long_factor": [_short(value) for value in factors["rope_factors_long.weight"]],
            "short_factor": [_short(value) for value in factors["rope_factors_short.weight"]],
        }
        if "rope.scaling.attn_factor" in said:
            rope["attention_factor"] = said["rope.scaling.attn_factor"]
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": said["rope.scaling.factor"]}
    elif kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": said["rope.scaling.factor"],
            "original_max_position_embeddings": int(said.get("rope.scaling.original_context_length", context)),
        }
        rope |= {
            name: said[f"rope.scaling.yarn_{name}"]
            for name in ("beta_fast", "beta_slow")
            if f"rope.scaling.yarn_{name}" in said
        }
    elif kind not in {"none", "longrope"}:
        raise ModelError(
            f"the file scales rotation by `{kind}`, which transformers has no name for", code="unsupported_option"
        )
    if family.arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": said.get("rope.freq_base_swa", 10000.0)}
        return {"sliding_attention": local, "full_attention": rope}
    return rope


def _short(value: np.float32) -> float:
    """The shortest decimal that is this binary32."""
    return float(str(value))


def _find_llama3(rope: Mapping[str, Any], factors: NDArray[np.float32], size: int) -> dict[str, Any]:
    """The parameters that give these factors: only the factors are in a file of llama.cpp's own converter."""
    for power in range(5, 21):
        tried: dict[str, Any] = {
            "rope_type": "llama3",
            "factor": _short(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1 << power,
        }
        made = _llama3_factors({**rope, **tried}, size)
        # The last bits depend on the precision that the writer computed in.
        if made.shape == factors.shape and np.allclose(made, factors, rtol=1e-4):
            return tried
    raise ModelError(
        "the file's `rope_freqs` are not factors that transformers has parameters for",
        code="unsupported_option",
        hint="Llama 3's have low_freq_factor 1, high_freq_factor 4 and a power of two as original context",
    )
