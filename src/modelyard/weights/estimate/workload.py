"""What is to be done with a model, as one checked value, and the result types of an estimate. Knows no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from modelyard.errors import RequestError, near_match

__all__ = ["MODES", "OPTIMIZERS", "QUANTIZATIONS", "Estimate", "Machine", "Mode", "Option", "Workload"]

Mode = Literal["inference", "lora", "full"]
MODES: tuple[Mode, ...] = get_args(Mode)
OPTIMIZERS = ("adamw", "sgd")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""What weights may be loaded as, and the bytes of one number."""

QUANTIZATIONS = {
    "bnb-8bit": "one byte a number and a float32 for each row, in linear layers outside the output layer",
    "bnb-4bit": "half a byte a number and a float32 for each 64, in linear layers outside the output layer",
    "torchao-int8": "one byte a number and a scale for each row, in linear layers outside the output layer",
    "torchao-int4": "half a byte a number and a scale and a zero for each group, in linear layers outside the output layer",
    "int8-dynamic": "one byte a number and a scale for each tensor, in linear layers",
}
"""The short names of `load(quantization=...)` and how they keep a linear layer."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done.

    Attributes:
        mode: `inference`, or a training step of a LoRA adapter (`lora`) or of everything (`full`).
        batch: Rows at a time.
        length: Tokens of a row; for training, padding included.
        new_tokens: Inference: tokens that are generated after them.
        dtype: `auto` (the checkpoint's own; float32 for `full`), or a name of `DTYPES`.
        device: `cpu` or `cuda` (of any index): what the allocator and the attention kernels are those of.
        quantization: A name of `QUANTIZATIONS`, None for none.
        rank: LoRA's rank.
        targets: The modules that LoRA is put on: `all-linear`, or endings of their names.
        optimizer: `adamw` (two float32 states for a trained number of float32) or `sgd` (none).
        gradient_checkpointing: Keep a layer's input only and compute it again in the backward pass.
    """

    mode: Mode = "inference"
    batch: int = 1
    length: int = 2048
    new_tokens: int = 256
    dtype: str = "auto"
    device: str = "cpu"
    quantization: str | None = None
    rank: int = 16
    targets: str | tuple[str, ...] = "all-linear"
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("dtype", self.dtype, ("auto", *DTYPES))
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        if self.quantization is not None:
            _one_of("quantization", self.quantization, tuple(QUANTIZATIONS))
        for name, least in (("batch", 1), ("length", 1), ("new_tokens", 0), ("rank", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= 1 << 32:
                raise RequestError(f"`{name}` is {value!r}, not a whole number of at least {least}", field=name)
        if self.device.partition(":")[0] not in {"cpu", "cuda", "mps", "xpu"}:
            raise RequestError(f"`device` is {self.device!r}", hint="cpu, cuda, mps or xpu", field="device")
        if self.mode == "full" and self.quantization is not None:
            raise RequestError(
                "quantized weights cannot be trained themselves", hint="--mode lora trains an adapter", field="mode"
            )
        if not self.targets:
            raise RequestError("`targets` names no module", hint="all-linear, or q_proj,v_proj", field="targets")

    @property
    def training(self) -> bool:
        """Whether there is a backward pass."""
        return self.mode != "inference"

    def changed(self, **values: Any) -> Workload:
        """The same with other values."""
        return replace(self, **values)


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory of the device: bytes in all, and bytes that may still be taken now."""

    device: str
    total: int
    available: int


@dataclass(frozen=True, slots=True)
class Option:
    """Another way to do it: what changes, in words and as options, and what it would take."""

    what: str
    changes: dict[str, Any]
    peak: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory in bytes of one device. `peak` is the sum of the parts: each part is what it takes at the moment of the peak.

    Attributes:
        weights: The model's own tensors, as loaded.
        kv_cache: Keys, values and states of all tokens at the end.
        activations: What a forward (and backward) pass holds besides: the most there is at once.
        gradients: Of the trained parameters.
        optimizer: The optimizer's states.
        adapter: LoRA's matrices.
        allocator: On a CPU, memory that was freed and that the C library keeps for later (`machine.KEPT`).
        overhead: The process before any model: interpreter, libraries, the device's context.
        peak: All of it.
        fits: Whether the machine has `peak` bytes now; None where it is not known.
        parameters: Of the model, quantized ones counted as what they stand for.
        trainable: Parameters that are trained.
        dtype: What weights are loaded as.
        architecture: The model's class.
        method: `closed-form` (proven equal to a run on the meta device) or `meta` (that run).
        workload: What it is an estimate of.
        machine: Where; None where it is not known.
        options: What else would do, the least change first; given where it does not fit, or when asked for.
        notes: What this leaves out or assumes.
    """

    weights: int
    kv_cache: int
    activations: int
    gradients: int
    optimizer: int
    adapter: int
    allocator: int
    overhead: int
    parameters: int
    trainable: int
    dtype: str
    architecture: str
    method: Literal["closed-form", "meta"]
    workload: Workload
    machine: Machine | None = None
    options: tuple[Option, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> int:
        """The sum of the parts."""
        parts = (self.weights, self.kv_cache, self.activations, self.gradients, self.optimizer, self.adapter)
        return sum(parts) + self.allocator + self.overhead

    @property
    def fits(self) -> bool | None:
        """Whether the machine has as much now."""
        return None if self.machine is None else self.peak <= self.machine.available

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self) | {"peak": self.peak, "fits": self.fits}


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        meant = near_match(str(value), known)
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(known)}"
        raise RequestError(f"`{name}` is {value!r}", hint=hint, field=name)
