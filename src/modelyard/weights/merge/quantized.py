"""Quantized bases: their weights as plain numbers, tensor by tensor, as if the folder held them so.

`open_dequantized` gives a `Checkpoint` whose tensors are what the quantizer's own dequantize function makes of the stored ones; plans and merges read it
like any other, one tensor in memory at a time. Knows bitsandbytes' 4-bit and 8-bit forms and torchao's, as transformers saves them. Which answer a merge
gives, this one (`dequantized`) or the weights before quantization (`original`), is asked here and measured; merging itself is not done here.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.checkpoint import Checkpoint, Shard
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name
from modelyard.weights.headers import Header, TensorInfo
from modelyard.weights.shards import TensorSpec, encode_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from modelyard.weights.files import Files

__all__ = ["CHOICES", "check_choice", "check_original", "open_dequantized", "plain_config", "quantization_of"]

CHOICES = ("dequantized", "original")

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PARTS_4BIT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_STATES = ("bitsandbytes__nf4", "bitsandbytes__fp4")


def quantization_of(files: Files) -> str | None:
    """How a base is quantized (`bitsandbytes`, `torchao`, `gptq`, ...) by its configuration; None where it is not."""
    config = read_json(files, "config.json") if "config.json" in files.names() else {}
    settings = config.get("quantization_config")
    return str(settings.get("quant_method") or "unknown") if isinstance(settings, dict) else None


def check_choice(base: Files, quantized: str | None, original: Files | None) -> None:
    """Refuse a merge into a quantized base that does not say which answer is wanted, and a choice that makes no sense.

    Raises:
        ModelError: `quantized_base`: a choice is needed, or this form cannot be dequantized here.
        RequestError: An unknown choice, a choice for a base that is not quantized, `original` without its weights.
    """
    method = quantization_of(base)
    if quantized is not None and quantized not in CHOICES:
        raise RequestError(f"no answer `{quantized}`", hint=f"one of {', '.join(CHOICES)}", field="quantized")
    if method is None:
        if quantized is not None or original is not None:
            raise RequestError(f"`{base.label}` is not quantized", hint="leave out --quantized", field="quantized")
        return
    if quantized is None:
        raise ModelError(
            f"`{base.label}` is quantized ({show_name(method)}): merged weights can be its own as numbers plus the adapter, or those it was"
            " quantized from plus the adapter, and the two differ",
            code="quantized_base",
            hint="--quantized dequantized, or --quantized original --original REF; the certificate shows how far each is from the"
            " adapter on the quantized base",
        )
    if quantized == "original":
        if original is None:
            hint = "--quantized original --original REF"
            raise RequestError("the weights before quantization are not given", hint=hint, field="original")
        if quantization_of(original) is not None:
            raise RequestError(
                f"`{original.label}` is quantized too", hint="give the base as it was before", field="original"
            )
    elif method not in {"bitsandbytes", "torchao"}:
        raise ModelError(
            f"`{base.label}` is quantized by {show_name(method)}, which is not turned back into numbers here",
            code="quantized_base",
            hint="merge into the weights it was quantized from: --quantized original --original REF",
        )


def check_original(base: Files, original: Checkpoint) -> None:
    """Refuse an original that is another model: each tensor of the quantized base must be there, in its shape.

    Raises:
        ModelError: `bad_shape` or `no_match`, naming the first tensor.
    """
    shapes = {
        name: info.shape for head in open_dequantized(base).shards.values() for name, info in head.tensors.items()
    }
    for name, shape in shapes.items():
        if name not in original.home:
            what, code = f"it has no `{show_name(name)}`", "no_match"
        elif original.info(name).shape != shape:
            what, code = (
                f"`{show_name(name)}` is {original.info(name).shape} in it and {shape} in the other",
                "bad_shape",
            )
        else:
            continue
        raise ModelError(f"`{original.files.label}` is not what `{base.label}` was quantized from: {what}", code=code)


def plain_config(files: Files) -> dict[str, Any]:
    """The base's config.json as the dequantized model has it: without `quantization_config`."""
    return {key: value for key, value in read_json(files, "config.json").items() if key != "quantization_config"}


def open_dequantized(files: Files) -> Checkpoint:
    """A quantized base's tensors as plain numbers, in the base's own dtype, in files of the same names.

    Each is dequantized when it is read, by bitsandbytes' or torchao's own function, and rounded once to the dtype of the base's config.json.
    The bits are this machine's: the libraries decide the order of their operations.

    Raises:
        ModelError: `quantized_base` where a tensor's form is not known; as `open_checkpoint`.
    """
    from modelyard.weights.checkpoint import open_checkpoint
    from modelyard.weights.loading.quantization import quiet_imports

    quiet_imports()
    stored = open_checkpoint(files)
    dtype = _base_dtype(files, stored)
    made = _bnb_tensors(stored, dtype) if quantization_of(files) == "bitsandbytes" else _torchao_tensors(stored, dtype)
    parts = {part for tensor in made.values() for part in tensor.parts}
    shards: dict[str, Header] = {}
    for shard, header in stored.shards.items():
        specs = []
        for name, info in header.in_file_order():
            specs += [tensor.spec for tensor in made.values() if tensor.anchor == name]
            if name not in parts:
                specs.append(TensorSpec(name, info.dtype, info.shape))
        if specs:
            shards[shard] = _header(specs)
    home = {name: shard for shard, header in shards.items() for name in header.tensors}
    return _Dequantized(files, stored.index, shards, home, stored, made)


@dataclass(frozen=True)
class _Tensor:
    """A tensor that is put together: what it becomes, which stored tensors it takes, and how.

    `anchor` is the stored one in whose place it comes.
    """

    spec: TensorSpec
    anchor: str
    parts: tuple[str, ...]
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class _Dequantized(Checkpoint):
    """A checkpoint whose quantized tensors are dequantized as they are read."""

    stored: Checkpoint
    made: Mapping[str, _Tensor]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, shard: str) -> Shard:
        """Open one of the files, as it would be."""
        return _DequantizedShard(self, shard)


class _DequantizedShard(Shard):
    """One file as it would be. The last tensor that was put together is kept, since merges read in the order of the bytes."""

    def __init__(self, base: _Dequantized, name: str) -> None:
        self.label = f"{base.files.label}/{show_name(name)}"
        self.header = base.shards[name]
        specs = [TensorSpec(each, info.dtype, info.shape) for each, info in self.header.in_file_order()]
        self.header_bytes = bytearray(encode_header(specs, self.header.metadata))
        self._base = base
        self._order = self.header.in_file_order()
        self._last: tuple[str, NDArray[np.uint8]] | None = None

    def __exit__(self, *_: object) -> None:
        self._last = None

    def _fill(self, target: memoryview, position: int) -> None:
        position -= self.header.data_start
        done = 0
        while done < len(target):
            name, info = next(item for item in self._order if item[1].start <= position + done < item[1].end)
            first = position + done - info.start
            count = min(info.end - info.start - first, len(target) - done)
            if name in self._base.made:
                target[done : done + count] = self._bytes(name)[first : first + count].data
            else:
                there = self._base.stored.info(name)
                with self._base.stored.open(self._base.stored.home[name]) as shard:
                    shard.read_into(target[done : done + count], there.start + first)
            done += count

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        with self._base.lock:
            if self._last is None or self._last[0] != name:
                self._last = name, _as_bytes(self._base.made[name].make())
            return self._last[1]


def _header(specs: list[TensorSpec]) -> Header:
    tensors, position = {}, 0
    for spec in specs:
        tensors[spec.name] = TensorInfo(spec.dtype, spec.shape, position, position + spec.size)
        position += spec.size
    metadata = {"format": "pt"}
    return Header(tensors, metadata, len(encode_header(specs, metadata)))


def _base_dtype(files: Files, stored: Checkpoint) -> str:
    """The dtype of the model as it was before: its configuration's, else that of what was not quantized."""
    config = read_json(files, "config.json")
    named = str(config.get("dtype") or config.get("torch_dtype") or "")
    found = next((short for short, name in _FLOATS.items() if name == named), None)
    kept = (info.dtype for header in stored.shards.values() for info in header.tensors.values())
    return found or next((dtype for dtype in kept if dtype in {"F16", "BF16"}), "F32")


def _bnb_tensors(stored: Checkpoint, dtype: str) -> dict[str, _Tensor]:
    made = {}
    for name in stored.home:
        state = next(
            (f"{name}.quant_state.{kind}" for kind in _STATES if f"{name}.quant_state.{kind}" in stored.home), None
        )
        scales = f"{name.removesuffix('weight')}SCB"
        if state is not None:
            parts = (state, *(f"{name}.{part}" for part in _PARTS_4BIT if f"{name}.{part}" in stored.home))
            packed = json.loads(bytes(_tensor(stored, state).tolist()))
            spec = TensorSpec(name, dtype, tuple(int(size) for size in packed["shape"]))
            made[name] = _Tensor(spec, name, (name, *parts), _nf4(stored, name, parts, dtype))
        elif name.endswith(".weight") and scales in stored.home and stored.info(name).dtype == "I8":
            parts = (name, scales, *(part for part in (f"{name}_format",) if part in stored.home))
            made[name] = _Tensor(
                TensorSpec(name, dtype, stored.info(name).shape), name, parts, _int8(stored, name, scales, dtype)
            )
    return made


def _nf4(stored: Checkpoint, name: str, parts: tuple[str, ...], dtype: str) -> Callable[[], Tensor]:
    def make() -> Tensor:
        import torch
        from bitsandbytes.functional import QuantState, dequantize_4bit

        taken: dict[str, Any] = {part.removeprefix(f"{name}."): _tensor(stored, part) for part in parts}
        state: Any = QuantState.from_dict(taken, torch.device("cpu"))
        return _cast(dequantize_4bit(_tensor(stored, name), state), dtype)

    return make


def _int8(stored: Checkpoint, name: str, scales: str, dtype: str) -> Callable[[], Tensor]:
    def make() -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant

        dequantize: Any = int8_vectorwise_dequant
        return _cast(dequantize(_tensor(stored, name), _tensor(stored, scales)), dtype)

    return make


def _torchao_tensors(stored: Checkpoint, dtype: str) -> dict[str, _Tensor]:
    made = {}
    for header in stored.shards.values():
        for name, text in header.metadata.items():
            described = _described(text)
            if described is None:
                continue
            module, _, weight = name.rpartition(".")
            parts = {each: f"{module}._{weight}_{each}" for each in described["_tensor_data_names"]}
            missing = [part for part in parts.values() if part not in stored.home]
            if missing:
                _refuse_form(stored, name, f"`{show_name(missing[0])}` is missing")
            anchor = parts.get("qdata") or next(iter(parts.values()))
            make = _torchao(stored, name, described, parts, dtype)
            shape = tuple(stored.info(anchor).shape) if described["_type"] == "Int8Tensor" else tuple(make().shape)
            made[name] = _Tensor(TensorSpec(name, dtype, shape), anchor, tuple(parts.values()), make)
    if not made:
        _refuse_form(stored, "its header", "says of no tensor how torchao stored it")
    return made


def _described(text: str) -> dict[str, Any] | None:
    """What torchao wrote of a tensor; None for plain ones and for other metadata."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("_tensor_data_names") and "_data" in found else None


def _torchao(
    stored: Checkpoint, name: str, described: Mapping[str, Any], parts: Mapping[str, str], dtype: str
) -> Callable[[], Tensor]:
    def make() -> Tensor:
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        tensors = {part: _tensor(stored, part) for part in parts.values()}
        metadata = {"tensor_names": json.dumps([name]), name: json.dumps(described)}
        made, _ = unflatten_tensor_state_dict(tensors, metadata)
        if name not in made:
            _refuse_form(stored, name, f"torchao does not know the form {show_name(str(described.get('_type')))}")
        return _cast(made[name].dequantize(), dtype)

    return make


def _refuse_form(stored: Checkpoint, name: str, what: str) -> Any:
    raise ModelError(
        f"`{show_name(name)}` of `{stored.files.label}` cannot be dequantized: {what}",
        code="quantized_base",
        hint="merge into the weights it was quantized from: --quantized original --original REF",
    )


def _tensor(stored: Checkpoint, name: str) -> Tensor:
    """A stored tensor of any dtype that the quantizers use."""
    import torch

    types = {
        "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8, "I8": torch.int8,
        "I32": torch.int32, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn, "BOOL": torch.bool,
    }  # fmt: skip
    info = stored.info(name)
    if info.dtype not in types:
        _refuse_form(stored, name, f"it has parts of {info.dtype}")
    raw = torch.empty(info.end - info.start, dtype=torch.uint8)
    with stored.open(stored.home[name]) as shard:
        shard.read_into(raw.numpy().data, info.start)
    return raw.view(types[info.dtype]).reshape(info.shape)


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    import torch

    kept: Tensor = tensor.detach().to(getattr(torch, _FLOATS[dtype])).contiguous()
    return kept


def _as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    import torch

    made: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return made
