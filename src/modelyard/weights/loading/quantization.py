"""Weights in fewer bits while they are loaded: by a short name, or a configuration object of transformers.

======================  =========================================================  ==================
name                    what is done to every linear layer                          runs on
======================  =========================================================  ==================
``bnb-8bit``            LLM.int8 of bitsandbytes                                    CPU, cuda, xpu
``bnb-4bit``            NF4 of bitsandbytes, computing in the dtype of the load     CPU, cuda, xpu
``torchao-int8``        int8 weights, one scale a row                               CPU, cuda, xpu, mps
``torchao-int4``        int4 weights in groups of 32 (128 on a GPU)                 CPU, cuda
``int8-dynamic``        torch's own: int8 weights, activations quantized as they    CPU only
                        come; the fastest on a CPU (weights stay float32 elsewhere)
======================  =========================================================  ==================

Each is checked for its package and for the device before anything is read. Knows modules, not tasks or folders.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, near_match

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "METHODS",
    "Quantized",
    "apply_after",
    "check",
    "describe",
    "footprint",
    "group_size",
    "make_config",
    "method_name",
    "quiet_imports",
    "unquantized_experts",
]


@dataclass(frozen=True, slots=True)
class _Method:
    package: str
    devices: tuple[str, ...]
    bits: float


METHODS = {
    "bnb-8bit": _Method("bitsandbytes", ("cpu", "cuda", "xpu"), 8.0),
    "bnb-4bit": _Method("bitsandbytes", ("cpu", "cuda", "xpu"), 4.5),
    "torchao-int8": _Method("torchao", ("cpu", "cuda", "xpu", "mps"), 8.0),
    "torchao-int4": _Method("torchao", ("cpu", "cuda"), 5.0),
    "int8-dynamic": _Method("torch", ("cpu",), 8.0),
}
"""The short names, with the package, the kinds of device, and about how many bits a quantized number takes."""

# What the packages log at import and at every call, with nothing in it that a user could act on.
_NOISE = (
    ("accelerate.big_modeling", "Some parameters are on the meta device"),
    ("torchao", "Failed to load"),
    ("torch.utils._pytree", "is an Enum subclass"),
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
    ("bitsandbytes.autograd._functions", "inputs will be cast from"),
)


@dataclass(frozen=True, slots=True)
class Quantized:
    """What quantization did to a model.

    Attributes:
        method: The short name, or the one of the configuration object.
        tensors: How many matrices are quantized.
        bytes: What the whole model takes now.
        kept: Matrices that stay as they were, with their bytes: embeddings, the output layer, what a method leaves out.
        experts: Those of `kept` that are fused experts of a mixture; no method for linear layers reaches them.
    """

    method: str
    tensors: int
    bytes: int
    kept: dict[str, int]
    experts: tuple[str, ...]


class _NoiseFilter(logging.Filter):
    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return self._words not in str(record.msg) and self._words not in record.getMessage()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NoiseFilter) and other._words == self._words

    def __hash__(self) -> int:
        return hash(self._words)


def quiet_imports() -> None:
    """Keep torchao, bitsandbytes and torch from logging what nobody can act on; every other record passes.

    transformers and PEFT import torchao wherever it is installed, so this comes before the first import of either.
    """
    for name, words in _NOISE:
        logging.getLogger(name).addFilter(_NoiseFilter(words))  # a filter that is there already is not added again


def check(quantization: object, *, device: str = "cpu") -> None:
    """Refuse a quantization that cannot be done here: no such name, its package is absent, or not for this device.

    Raises:
        RequestError: No such name or kind of object (`bad_request`), or not on this device (`no_quantization`).
        ModelError: `missing_package`: the package is not installed; the hint installs it.
    """
    if quantization is None:
        return
    if not isinstance(quantization, str):
        _check_object(quantization)
        return
    method = METHODS.get(quantization)
    if method is None:
        meant = near_match(quantization, METHODS)
        hint = (
            f"did you mean `{meant}`?" if meant else f"one of {', '.join(METHODS)}, or a config object of transformers"
        )
        raise RequestError(f"no quantization `{quantization}`", hint=hint, field="quantization")
    kind = device.partition(":")[0]
    if kind not in method.devices:
        able = [name for name, other in METHODS.items() if kind in other.devices]
        raise RequestError(
            f"the quantization `{quantization}` does not run on {device}",
            code="no_quantization",
            hint=f"on {kind}: {', '.join(able)}" if able else f"use one of {', '.join(method.devices)}",
            field="quantization",
            available=able,
        )
    _check_package(method.package, quantization)


def make_config(quantization: object, *, device: str = "cpu", dtype: Any = None) -> Any | None:
    """The configuration object that `from_pretrained` takes; None where nothing is quantized while loading.

    Args:
        quantization: A short name, a configuration object of transformers, or None.
        device: Where the model will be.
        dtype: The torch dtype of the load, in which 4-bit weights compute.

    Raises:
        RequestError, ModelError: As `check`.
    """
    check(quantization, device=device)
    if quantization is None or quantization == "int8-dynamic":
        return None
    if not isinstance(quantization, str):
        return quantization
    quiet_imports()
    import transformers

    make_bnb: Any = transformers.BitsAndBytesConfig
    if quantization == "bnb-8bit":
        return make_bnb(load_in_8bit=True)
    if quantization == "bnb-4bit":
        return make_bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    make_ao: Any = transformers.TorchAoConfig
    return make_ao(_torchao_type(quantization, device))


def apply_after(model: Any, quantization: object) -> Any:
    """Quantize a loaded model, for a method that works on one (`int8-dynamic`); of any other, make sure that it runs.

    Raises:
        ModelError: `no_linear_layers`: there is nothing in it that the method could quantize.
    """
    if quantization != "int8-dynamic":
        _avoid_packed_kernel(model)
        return model
    import torch
    from torch.ao import quantization as library

    # The factors of an adapter stay as they are: PEFT asks them for their dtype.
    names = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear and "lora_" not in name]
    if not names:
        raise ModelError("the model has no linear layer that `int8-dynamic` could quantize", code="no_linear_layers")
    quantize: Any = library.quantize_dynamic
    with warnings.catch_warnings():
        # Deprecated in torch 2.10 for torchao, which on a CPU is slower without a compiler; a test pins that it works.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*deprecated.*", category=UserWarning)
        spec = dict.fromkeys(names, library.default_dynamic_qconfig)
        quantized = quantize(model.float(), spec, dtype=torch.qint8, inplace=True)
    return quantized.eval()


def _avoid_packed_kernel(model: Any) -> None:
    """Keep 4-bit layers of bitsandbytes from a kernel that their shapes do not fit.

    On a CPU with AVX512-BF16 it packs 32 rows of whole groups at the first call, and fails where a matrix has no such shape.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        rows, width = state.shape[-2], state.shape[-1]
        if rows % 32 or width % state.blocksize:
            module.support_avx512bf16_for_cpu = False


def footprint(model: Any) -> int:
    """Bytes that a model's tensors take in memory: quantized ones as they are stored, shared memory once, `meta` nothing.

    transformers' `get_memory_footprint` gives the unquantized size for torchao and quanto tensors, leaves out the scales
    of bitsandbytes, and gives nothing for the layers of `int8-dynamic`, whose weights are no parameters.
    """
    seen: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for part in _parts(tensor):
            if part.device.type != "meta":
                storage = part.untyped_storage()
                seen[str(part.device), storage.data_ptr()] = storage.nbytes()
    return sum(seen.values()) + sum(_packed_bytes(module) for module in model.modules())


def describe(model: Any, quantization: object) -> Quantized:
    """What was quantized in `model`, and what was not."""
    kept, count = {}, sum(1 for module in model.modules() if _packed_bytes(module))
    for name, parameter in model.named_parameters():
        if _is_quantized(parameter):
            count += 1
        elif parameter.dim() >= 2:
            kept[name] = parameter.numel() * parameter.element_size()
    experts = tuple(name for name in unquantized_experts(model))
    return Quantized(method_name(quantization), count, footprint(model), kept, experts)


def unquantized_experts(model: Any) -> list[str]:
    """Names of fused experts (one tensor of three axes for all experts of a layer) that are in full precision."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and "expert" in name and not _is_quantized(parameter)
    ]


def group_size(quantizer: Any) -> int:
    """How many numbers of a row a quantizer of transformers packs together; 1 where any width will do.

    torchao leaves a matrix whose width is no multiple of it as it is, and only logs so.
    """
    kind = getattr(getattr(quantizer, "quantization_config", None), "quant_type", None)
    return int(getattr(kind, "group_size", None) or 1)


def method_name(quantization: object) -> str:
    """What reports call a quantization: its short name, or the method and class of a configuration object."""
    if isinstance(quantization, str):
        return quantization
    method = getattr(quantization, "quant_method", None)
    return str(getattr(method, "value", method) or type(quantization).__name__)


def _torchao_type(quantization: str, device: str) -> Any:
    if quantization == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig()
    if device.partition(":")[0] == "cpu":
        # Int4WeightOnlyConfig has no layout that a CPU can run in torchao 0.18; this one has its own kernel.
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=32)
    from torchao.quantization import Int4WeightOnlyConfig

    # The other layouts need the package `mslk`; this one torch's own kernel, which computes in bfloat16.
    return Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d")


def _check_object(quantization: object) -> None:
    quiet_imports()
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if not isinstance(quantization, QuantizationConfigMixin):
        raise RequestError(
            f"`quantization` is a {type(quantization).__name__}",
            hint=f"one of {', '.join(METHODS)}, or a config object of transformers",
            field="quantization",
        )
    package = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum-quanto", "hqq": "hqq"}.get(
        method_name(quantization).partition("_")[0]
    )
    if package is not None:
        _check_package(package, method_name(quantization))


def _check_package(package: str, method: str) -> None:
    import importlib.metadata  # tens of milliseconds, which `quiet_imports` alone need not cost

    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        extra = package in {"bitsandbytes", "torchao"}
        raise ModelError(
            f"the quantization `{method}` needs the package `{package}`, which is not installed",
            code="missing_package",
            hint="pip install 'modelyard[quantize]'" if extra else f"pip install {package}",
            package=package,
        ) from None


def _parts(tensor: Any) -> Iterator[Any]:
    """The plain tensors that a tensor is made of: itself, or what its subclass or its quantization keeps."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
    else:
        for name in flatten()[0]:
            yield from _parts(getattr(tensor, name))
    # bitsandbytes keeps scales beside the packed parameter: absmax, the code book, and both again when nested.
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (part for part in (state.absmax, state.code, state.offset) if part is not None)
        state = state.state2
    for name in ("SCB", "CB"):
        part = getattr(tensor, name, None)
        if part is not None:
            yield part


def _is_quantized(parameter: Any) -> bool:
    inner = getattr(parameter, "data", parameter)
    flatten = hasattr(inner, "__tensor_flatten__") or hasattr(parameter, "__tensor_flatten__")
    return flatten or not parameter.dtype.is_floating_point or hasattr(parameter, "quant_state")


def _packed_bytes(module: Any) -> int:
    """Bytes of a linear layer of torch.ao, whose weights are no parameter: int8 numbers, and a scale and zero point."""
    if not type(module).__module__.startswith("torch.ao.nn.quantized"):
        return 0
    return sum(_stored_bytes(tensor) for tensor in _unpacked(module))


def _unpacked(module: Any) -> Iterator[Any]:
    for name in ("weight", "bias"):
        found = getattr(module, name, None)
        tensor = found() if callable(found) else None
        if tensor is not None:
            yield tensor


def _stored_bytes(tensor: Any) -> int:
    scales = 0
    if tensor.is_quantized:
        import torch

        rows = tensor.shape[0] if tensor.qscheme() == torch.per_channel_affine else 1
        scales = rows * 12  # a double and a 32-bit zero point
    return int(tensor.numel() * tensor.element_size()) + scales
