"""Giving memory back, and saying what would fit when there is not enough.

Knows devices and bytes; of a model it asks sizes and dtypes only.
"""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.loading.devices import present_devices
from modelyard.weights.loading.quantization import footprint

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fit", "empty_cache", "explain_oom", "free_bytes", "give_back", "is_out_of_memory", "trim_heap", "what_fits"]

_CPU_WORDS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "unable to allocate")
_SHORTEST = 64  # tokens; rows that had to be shorter are no way out
_ROOM = 0.9  # of what is free: the rest is for whoever else is on the machine


@dataclass(frozen=True, slots=True)
class Fit:
    """A way to need less: `change` as an option that can be passed, and the bytes that the weights would take."""

    change: str
    bytes: int
    fits: bool


def empty_cache(device: str) -> None:
    """Give back what torch keeps cached on `device`, if that device is here; on the CPU there is no such cache."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cpu" or not any(name.partition(":")[0] == kind for name in present_devices()):
        return
    module: Any = getattr(torch, kind)
    module.empty_cache()


def trim_heap() -> None:
    """Give freed pages back to the system: glibc keeps them otherwise, and an unloaded model would still fill memory."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def give_back(device: str = "cpu") -> None:
    """Collect garbage, empty the present device's cache and trim the heap, in this order."""
    gc.collect()
    empty_cache(device)
    trim_heap()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Glibc's `malloc_trim`; None on a system that has another allocator."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim  # type: ignore[no-any-return]


def free_bytes(device: str) -> int:
    """Bytes that can still be allocated on `device`: for an accelerator what is free, else what the system says is
    available, or what the control group of this process leaves, whichever is less.
    """
    import torch

    kind = device.partition(":")[0]
    if kind in {"cuda", "xpu"}:
        module: Any = getattr(torch, kind)
        return int(module.mem_get_info(device)[0])
    import psutil  # type: ignore[import-untyped]  # publishes no types

    free = int(psutil.virtual_memory().available)
    left = _group_left()
    return free if left is None else min(free, left)


def _group_left() -> int | None:
    """What the memory limit of this process's control group (version 2) leaves; None where there is no limit."""
    from pathlib import Path

    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text("ascii").strip()
        used = int((group / "memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return None  # no such file: version 1, or not Linux; the system's own figure stands
    return None if limit == "max" else max(0, int(limit) - used)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch's on an accelerator, its CPU allocator's, or Python's own.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("shapes do not match"))
    False
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CPU_WORDS)


def explain_oom(
    error: BaseException,
    model: Any = None,
    *,
    what: str = "the model",
    device: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    weights: int | None = None,
) -> ModelError:
    """An out-of-memory exception as an error with numbers: what was needed, what is free, and what would fit.

    Args:
        error: What torch or Python raised.
        model: The torch module that ran, where there is one.
        what: What messages call it: a folder or a reference.
        device: Where it ran; by default where the model is.
        batch: Rows that were computed together.
        length: Tokens of the longest row.
        weights: Bytes of the weights, where there is no model yet (a load).

    Returns:
        A `ModelError` with code `out_of_memory` and details `needed`, `free`, `weights`, `step` (bytes of the activations,
        keys and values by `weights.estimate`; None where it cannot tell), `options`; to be raised `from error`.
    """
    device = device or _device_of(model)
    needed, free = _asked(str(error)), free_bytes(device)
    held = footprint(model) if model is not None else weights
    row = _row_bytes(model, length, device)
    step = row * (batch or 1) if row is not None else None
    options = _smaller_runs(batch, length, row, int(free * _ROOM))
    if held is not None:
        left = free + (held if model is not None else 0) - (step or 0)
        options += [fit.change for fit in what_fits(held, _bits_of(model), left) if fit.fits]
    parts = [f"{_show(needed)} more were asked for" if needed is not None else "an allocation failed"]
    parts.append(f"{_show(free)} are free")
    if held is not None:
        parts.append(f"the weights take {_show(held)}")
    if step is not None:
        parts.append(f"{batch or 1} x {length} tokens about {_show(step)}")
    return ModelError(
        f"not enough memory on {device} for {what}: {', '.join(parts)}",
        code="out_of_memory",
        hint=f"what fits here: {'; '.join(options)}"
        if options
        else "use a device with more memory, or a smaller model",
        device=device,
        needed=needed,
        free=free,
        weights=held,
        step=step,
        options=options,
    )


def what_fits(weights: int, bits: int, free: int) -> list[Fit]:
    """Ways to load weights that take `weights` bytes at `bits` a number, with the bytes that each would take.

    Only the matrices shrink when a model is quantized, so a twentieth is counted as staying in 16 bits.

    >>> [(fit.change, fit.fits) for fit in what_fits(8_000, 32, 3_000)]
    [('dtype="bfloat16"', False), ('quantization="torchao-int8"', True), ('quantization="bnb-4bit"', True)]
    """
    room = int(free * _ROOM)
    count = weights * 8 // bits
    small = [('dtype="bfloat16"', 16.0), ('quantization="torchao-int8"', 0.95 * 8 + 0.05 * 16)]
    small.append(('quantization="bnb-4bit"', 0.95 * 4.5 + 0.05 * 16))
    sizes = [(change, int(count * wide / 8)) for change, wide in small if wide < bits]
    return [Fit(change, size, size <= room) for change, size in sizes]


def _row_bytes(model: Any, length: int | None, device: str) -> int | None:
    """What one row takes besides the weights, where that can be told."""
    if model is None or length is None:
        return None
    from modelyard.weights.estimate.loaded import step_bytes

    return step_bytes(model, length=length, device=device)


def _smaller_runs(batch: int | None, length: int | None, row: int | None, room: int) -> list[str]:
    """Fewer rows at a time, or shorter ones: half as much where a row's bytes are not known, else as much as has room.

    A row of half the length takes no more than half: nothing in a forward pass with fused attention grows faster.
    """
    made = []
    if batch is not None and batch > 1:
        most = batch // 2 if not row else min(batch // 2, room // row)
        made += [f"batch_size={most}"] if most else []
    if length is not None and length > 256:
        each = row / length * (batch or 1) if row else 0.0
        most = length // 2 if not row else min(length // 2, int(room / each))
        made += [f"rows of {most} tokens instead of {length}"] if most >= _SHORTEST else []
    return made


def _device_of(model: Any) -> str:
    tensor = next(iter(model.parameters()), None) if model is not None else None
    return str(tensor.device) if tensor is not None and tensor.device.type != "meta" else "cpu"


def _bits_of(model: Any) -> int:
    """Bits of the dtype that most numbers are in; 32 where there is no model."""
    if model is None:
        return 32
    found: dict[int, int] = {}
    for tensor in model.parameters():
        found[tensor.element_size() * 8] = found.get(tensor.element_size() * 8, 0) + tensor.numel()
    return max(found, key=lambda bits: found[bits], default=32)


def _asked(text: str) -> int | None:
    """The bytes that an allocation asked for, from torch's words; None where they do not say."""
    match = re.search(r"allocate (\d+(?:\.\d+)?) ?(bytes|[KMGT]iB)?", text, re.IGNORECASE)
    if match is None:
        return None
    scale = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}.get((match[2] or "bytes").lower(), 1)
    return int(float(match[1]) * scale)


def _show(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
