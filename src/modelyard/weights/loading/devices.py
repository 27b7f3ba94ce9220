"""Where a model's modules go: the device that is asked for must be here, and a device map must place every parameter.

Devices are named as torch names them (`cpu`, `cuda:0`, `mps`, `xpu:1`), and `disk` in a map. Knows modules and sizes, not
tasks, files or configurations.

>>> check_device("cpu")
'cpu'
>>> parse_bytes("1.5 GiB", "max_memory")
1610612736
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import InternalError, RequestError, near_match
from modelyard.weights.loading.places import (
    Place,
    check_coverage,
    check_names,
    holder_of,
    split_nested,
    with_buffers,
    with_ties,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "KINDS",
    "STRATEGIES",
    "Place",
    "check_device",
    "find_offload_folder",
    "keep_while",
    "main_device",
    "parse_bytes",
    "parse_memory",
    "place_of",
    "present_devices",
    "resolve_map",
]

KINDS = ("cpu", "cuda", "mps", "xpu")
"""What `device` may be; all but cpu and mps take an index."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that are worked out from sizes and free memory."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_UNITS |= {"TB": 10**12, "TIB": 1 << 40}


def present_devices() -> list[str]:
    """Every device that this process can use, `cpu` first."""
    import torch

    found = ["cpu"]
    for kind in ("cuda", "xpu"):
        module: Any = getattr(torch, kind, None)
        if module is not None and module.is_available():
            found += [f"{kind}:{index}" for index in range(module.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def check_device(device: Any, *, field: str = "device") -> str:
    """The name of `device` as torch has it, if it is here.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps`, `xpu` or `xpu:0`, or torch's own object for one; a kind without an index is its first device.
        field: The option that an error names.

    Raises:
        RequestError: It is no device, or it is not here; the message names what is.
    """
    device = str(device) if type(device).__name__ == "device" else device
    here = present_devices()
    known = f"here: {', '.join(here)}"
    match = re.fullmatch(r"(cpu|cuda|mps|xpu)(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        meant = near_match(str(device), KINDS)
        hint = f"did you mean `{meant}`? ({known})" if meant else known
        raise RequestError(f"`{field}` is {device!r}, which is no device", hint=hint, field=field)
    kind, index = match.groups()
    name = kind if kind in {"cpu", "mps"} else f"{kind}:{index or 0}"
    if name not in here:
        raise RequestError(
            f"`{field}` is {device!r}, and torch finds no such device here",
            code="no_device",
            hint=f"use one that is {known}",
            field=field,
            here=here,
        )
    return name


def parse_bytes(value: object, field: str) -> int:
    """A number of bytes, or text such as `"500MB"` or `"1.5 GiB"`.

    Raises:
        RequestError: It is neither, or negative.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?\s*", value.upper()) if isinstance(value, str) else None
    if match is None:
        raise RequestError(
            f"`{field}` has {value!r}, which is no amount of memory",
            hint='bytes, or text: "500MB", "2GiB"',
            field=field,
        )
    return int(float(match[1]) * _UNITS[match[2] or ""])


def parse_memory(max_memory: Mapping[Any, Any] | None) -> dict[Place, int] | None:
    """How much memory each device may take, in bytes; keys are `cpu`, a device's name or an accelerator's index.

    Raises:
        RequestError: A device is not here, or an amount is none.
    """
    if max_memory is None:
        return None
    found: dict[Place, int] = {}
    for key, value in max_memory.items():
        place = _check_place(key, "max_memory")
        found[place] = parse_bytes(value, "max_memory")
    return found


def resolve_map(
    device_map: object,
    meta_model: Any,
    *,
    max_memory: Mapping[Any, Any] | None = None,
    dtype: Any = None,
    quantizer: Any = None,
) -> dict[str, Place]:
    """The place of every module of `meta_model`: no parameter is left out, and none is named twice.

    Args:
        device_map: One of `STRATEGIES`, a device's name, an accelerator's index, or module -> device, index or `disk`.
        meta_model: The model on torch's meta device: sizes and names are all that is asked of it.
        max_memory: As `parse_memory`; for `STRATEGIES` only. What does not fit goes to `disk`.
        dtype: The torch dtype that the weights will be in, where it is not the meta model's own.
        quantizer: transformers' quantizer, when sizes will be smaller.

    Returns:
        Names of modules that do not contain one another; `""` is the whole model. Accelerators are indices, as
        accelerate wants them.

    Raises:
        RequestError: `uncovered_parameters` (details list them all) or `unknown_modules`; or a device is not here.
    """
    memory = parse_memory(max_memory)
    if isinstance(device_map, str) and device_map in STRATEGIES:
        return _infer(device_map, meta_model, memory, dtype, quantizer)
    if memory is not None:
        raise RequestError(
            "`max_memory` is for a device map that is worked out",
            hint=f"device_map={', '.join(STRATEGIES)}",
            field="max_memory",
        )
    if isinstance(device_map, str | int) and not isinstance(device_map, bool):
        if device_map == "disk":
            return {"": "disk"}
        if isinstance(device_map, str) and re.match(r"(cpu|cuda|mps|xpu)(:|$)", device_map) is None:
            meant = near_match(device_map, [*STRATEGIES, *KINDS])
            raise RequestError(
                f"`device_map` is {device_map!r}",
                hint=f"did you mean `{meant}`?" if meant else f"{', '.join(STRATEGIES)}, a device, or a dictionary",
                field="device_map",
            )
        return {"": _check_place(device_map, "device_map")}
    if not isinstance(device_map, dict) or not device_map:
        raise RequestError(
            f"`device_map` is {device_map!r}",
            hint=f"{', '.join(STRATEGIES)}, a device, or a dictionary of modules",
            field="device_map",
        )
    places = {str(name): _check_place(place, "device_map") for name, place in device_map.items()}
    check_names(places, meta_model)
    check_coverage(places, meta_model)
    return with_buffers(with_ties(split_nested(places, meta_model), meta_model), meta_model)


def main_device(places: Mapping[str, Place]) -> str:
    """The device that inputs go to: the first accelerator of a map, else the CPU."""
    for place in places.values():
        if place not in {"cpu", "disk"}:
            return _name(place)
    return "cpu"


def place_of(name: str, places: Mapping[str, Place]) -> Place:
    """Where the tensor `name` goes by a resolved map."""
    holder = holder_of(name, places)
    if holder is None:
        raise InternalError(f"the tensor `{name}` has no place in a resolved device map")
    return places[holder]


def find_offload_folder(folder: Path | str | None, places: Mapping[str, Place] | None) -> Path | None:
    """Where weights that a map puts on `disk` are written: `folder`, or a new temporary folder; None if none are.

    A temporary folder is the caller's to remove, or to hand to `keep_while`.

    Raises:
        RequestError: `folder` is a file.
    """
    if places is None or "disk" not in places.values():
        return None
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="modelyard-offload-"))
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise RequestError(f"`offload_folder` is `{path}`, which is a file", field="offload_folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def keep_while(model: Any, folder: Path) -> None:
    """Remove the temporary `folder` when `model` is garbage, or at the end of the process."""
    weakref.finalize(model, shutil.rmtree, str(folder), ignore_errors=True)


def _infer(
    strategy: str, meta_model: Any, memory: dict[Place, int] | None, dtype: Any, quantizer: Any
) -> dict[str, Place]:
    from transformers.integrations import accelerate as placement

    work_out: Any = placement._get_device_map  # noqa: SLF001  # what from_pretrained itself calls: the plan is what happens
    model = meta_model
    if dtype is not None and any(p.is_floating_point() and p.dtype != dtype for p in meta_model.parameters()):
        import copy

        model = copy.deepcopy(meta_model).to(dtype)  # on meta: names and sizes only
    limits = None if memory is None else _with_rest(memory)
    found: dict[str, Place] = dict(work_out(model, strategy, limits, quantizer))
    return {name: _plain(place) for name, place in found.items()}


def _with_rest(memory: dict[Place, int]) -> dict[Place, int]:
    """`max_memory` as accelerate means it: a device that is not named gets nothing."""
    return memory


def _check_place(place: object, field: str) -> Place:
    import torch

    if place == "disk" and field == "device_map":
        return "disk"
    if isinstance(place, torch.device):
        place = str(place)
    if isinstance(place, int) and not isinstance(place, bool):
        accelerators = [name for name in present_devices() if ":" in name]
        if not 0 <= place < len(accelerators):
            raise RequestError(
                f"`{field}` names the accelerator {place}, and there are {len(accelerators)} here",
                code="no_device",
                hint=f"here: {', '.join(present_devices())}",
                field=field,
                here=present_devices(),
            )
        return place
    return _plain(check_device(place if isinstance(place, str) else repr(place), field=field))


def _plain(place: Any) -> Place:
    """An accelerator as its index, which is what accelerate compares with; every other device by its name."""
    text = str(place)
    kind, _, index = text.partition(":")
    return int(index or 0) if kind in {"cuda", "xpu"} else int(text) if text.isdigit() else text


def _name(place: Place) -> str:
    if isinstance(place, str):
        return place
    return [name for name in present_devices() if ":" in name][place]
