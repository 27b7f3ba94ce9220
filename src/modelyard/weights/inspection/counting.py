"""What tensors stand for: parameters, as many as the model has, however they are packed.

Quantized formats keep several numbers in one element, and scales, zeros and tables beside them. How, follows from the tensor's
name and the configuration's `quantization_config`; where it does not, the tensor counts as it is stored and is named as not
known. Knows names, shapes and configurations; reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Counted", "Stored", "count_tensors"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file: its dtype, elements, bytes; for GGUF elements are what blocks stand for."""

    dtype: str
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Counted:
    """A tensor as a part of the model.

    Attributes:
        name: The parameter's name; of scales and tables that of the tensor they belong to.
        parameters: Numbers that it stands for; 0 for what belongs to another.
        bytes: As stored.
        trainable: How many of them can be trained as they are: numbers of a floating type that nothing packs.
        unknown: Whether it is packed in a way that is not known here.
    """

    name: str
    parameters: int
    bytes: int
    trainable: int
    unknown: bool = False


_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# 32-bit words of gptq and awq, words of compressed-tensors, bytes of torchao.
_PACKED = frozenset({"qweight", "weight_packed", "_weight_qdata"})
_BESIDE = (
    "qzeros", "scales", "g_idx", "SCB", "weight_format", "absmax", "quant_map", "nested_absmax", "nested_quant_map",
    "weight_scale", "weight_scale_inv", "input_scale", "weight_zero_point", "input_zero_point", "weight_shape",
    "weight_g_idx", "weight_global_scale", "input_global_scale", "activation_scale", "_weight_scale",
    "_weight_zero_point", "_weight_scale_and_zero", "_weight_act_pre_scale", "k_scale", "v_scale",
)  # fmt: skip


def count_tensors(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> list[Counted]:
    """Every tensor as a part of the model that `config` describes, in the order given."""
    said = config.get("quantization_config")
    quantization: Mapping[str, Any] = said if isinstance(said, dict) else {}
    return [_count(name, stored, tensors, quantization) for name, stored in tensors.items()]


def _count(name: str, stored: Stored, tensors: Mapping[str, Stored], quantization: Mapping[str, Any]) -> Counted:
    last = name.rpartition(".")[2]
    if not quantization and not _looks_packed(name, tensors):
        trainable = stored.elements if stored.dtype in _FLOATS else 0
        return Counted(name, stored.elements, stored.bytes, trainable)
    if last in _BESIDE or ".quant_state." in name or name.endswith(("_scales", ":scale")):
        return Counted(_owner(name), 0, stored.bytes, 0)
    if stored.dtype in _FLOATS:
        return Counted(name, stored.elements, stored.bytes, stored.elements)
    packed = _packed_as(name, stored, tensors, quantization)
    if packed is not None:
        return packed
    whole = stored.dtype.startswith(("F8", "F6", "F4")) or stored.dtype in {"I8", "BOOL", "I64"}
    return Counted(name, stored.elements, stored.bytes, 0, unknown=not whole)


def _packed_as(
    name: str, stored: Stored, tensors: Mapping[str, Stored], quantization: Mapping[str, Any]
) -> Counted | None:
    """A tensor with several numbers in an element, under the name of the parameter that it is; None for another one."""
    module, _, last = name.rpartition(".")
    if last in _PACKED:
        return _packed(f"{module}.weight", stored, _bits(quantization, stored.dtype))
    if name.endswith("_blocks") and stored.dtype == "U8":  # mxfp4: two numbers a byte
        return _packed(name.removesuffix("_blocks"), stored, 4)
    if stored.dtype == "U8" and any(f"{name}.{part}" in tensors for part in ("absmax", "quant_map")):
        return _packed(name, stored, 4)  # bitsandbytes: two numbers a byte
    return None


def _packed(name: str, stored: Stored, bits: int | None) -> Counted:
    """A tensor of numbers of `bits` each; None for not known."""
    if bits is None:
        return Counted(name, stored.elements, stored.bytes, 0, unknown=True)
    return Counted(name, stored.bytes * 8 // bits, stored.bytes, 0)


def _looks_packed(name: str, tensors: Mapping[str, Stored]) -> bool:
    """Whether a tensor is packed although no configuration says so (a file whose config.json was lost)."""
    return name.rpartition(".")[2] in _PACKED or f"{name}.absmax" in tensors or ".quant_state." in name


def _owner(name: str) -> str:
    """The parameter that a scale, zero or table belongs to."""
    for word in (".quant_state.", ".absmax", ".quant_map", ".nested_"):
        if word in name:
            return name.partition(word)[0]
    if name.endswith("_scales"):
        return name.removesuffix("_scales")
    return f"{name.rpartition('.')[0]}.weight"


def _bits(quantization: Mapping[str, Any], dtype: str) -> int | None:
    """Bits of one number in words of `dtype`, as the configuration says."""
    if dtype in {"I8", "F8_E4M3", "F8_E5M2"}:
        return 8
    for place in (quantization, *_groups(quantization)):
        for key in ("bits", "w_bit", "num_bits", "wbits"):
            if type(place.get(key)) is int and 1 <= place[key] <= 32:
                return int(place[key])
    kind = quantization.get("quant_type")
    text = str(kind).lower()
    for word, bits in (("int4", 4), ("intx", None), ("int8", 8), ("float8", 8)):
        if word in text:
            return bits
    return 4 if dtype == "U8" else None  # nvfp4: two numbers a byte


def _groups(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The weights' arguments of each group of compressed-tensors."""
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict):
        return []
    return [
        group["weights"]
        for group in groups.values()
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
