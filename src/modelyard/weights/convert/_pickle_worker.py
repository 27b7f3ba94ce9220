"""Turns pickled checkpoints into safetensors files, or compares the two, in a process of its own.

Started by `pickles` and `bins` as `python -I _pickle_worker.py REQUEST`, and not imported by it: it stands alone, so that an unpickling
gone wrong meets nothing but this file, torch and safetensors. It limits itself before it opens anything: memory, processor time,
file size, and no network where the kernel lets it. Only tensors are unpickled (`weights_only`).

REQUEST is a JSON file with `task` (`convert` or `compare`), `jobs` (pairs of a pickle's path and its target's, or for `compare` a map from
safetensors file to tensors), `result` (a path), `tied`, `memory`, `seconds` and `file_size`; the outcome is written to `result` as JSON: `isolated`, and `made`, an object with `tensors`, `dropped` and `copied`
for each job that was done (for `compare`, `dropped` are the tensors that differ). Where one fails, `error` and `message` are there too, and the rest are not tried.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_HEADS = ("lm_head.weight", "embed_out.weight")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def main(request_path: str) -> int:
    """Do what the request says; 0 when all jobs were done, 1 when `result` holds an error."""
    request = json.loads(Path(request_path).read_text("utf-8"))
    outcome: dict[str, Any] = {"isolated": False, "made": []}
    try:
        outcome["isolated"] = isolate(request)
        for source, target in request["jobs"]:
            compared = request["task"] == "compare"
            outcome["made"].append(
                compare(source, target) if compared else convert(source, target, tied=request["tied"])
            )
    except Exception as error:  # noqa: BLE001  # the parent tells the kinds apart
        outcome |= {"error": type(error).__name__, "message": str(error)[:2000]}
    Path(request["result"]).write_text(json.dumps(outcome), "utf-8")
    return 1 if "error" in outcome else 0


def isolate(request: dict[str, Any]) -> bool:
    """Set the limits; whether the network could be taken away too (it takes a privilege or user namespaces)."""
    for limit, value in (
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_CPU, request["seconds"]),
        (resource.RLIMIT_FSIZE, request["file_size"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "prctl"):
        library.prctl(
            _DEATH_SIGNAL, signal.SIGKILL
        )  # who asked for it is gone: nobody may go on writing into its folder
    unshare = getattr(library, "unshare", None)
    return unshare is not None and (unshare(_NEW_NET) == 0 or unshare(_NEW_USER | _NEW_NET) == 0)


def convert(source: str, target: str, *, tied: bool) -> dict[str, Any]:
    """Unpickle the tensors, give each memory of its own, and write them."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    tensors, dropped = select(read(source))
    if not tensors:
        raise ValueError("it holds no tensors")
    heads = tied_heads(tensors) if tied else []
    for name in heads:
        del tensors[name]
    owned, copied = separate(tensors)
    save_file(owned, target, metadata={"format": "pt"})
    with Path(target).open("rb") as written:
        os.fsync(written.fileno())
    return {"tensors": sorted(owned), "dropped": sorted(dropped + heads), "copied": copied}


def compare(pickled: str, wanted: dict[str, list[str]]) -> dict[str, Any]:
    """Unpickle the tensors, and name those that have other dtypes, shapes or bits than those of the same names in safetensors files."""
    import torch
    from safetensors import safe_open

    found, others = select(read(pickled))
    differing = list(others)
    for path, names in wanted.items():
        with safe_open(path, "pt") as stored:
            for name in names:
                here, there = found.get(name), stored.get_tensor(name)
                same = here is not None and (here.dtype, here.shape) == (there.dtype, there.shape)
                if not same or not torch.equal(as_bytes(here), as_bytes(there)):
                    differing.append(name)
    return {"tensors": sorted(found), "dropped": sorted(differing), "copied": []}


def as_bytes(tensor: Any) -> Any:
    """A tensor's memory as unsigned bytes: equal bits, not equal numbers, which NaN and -0 would blur."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def read(source: str) -> Any:
    """Unpickle tensors only; mapped where the format allows, so that memory is what is touched."""
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(source, map_location="cpu", weights_only=True)  # the format from before torch 1.6


def select(loaded: Any) -> tuple[dict[str, Any], list[str]]:
    """The tensors by name, and the names of what is none. Wrappers around a state dict, one in another, are taken off."""
    import torch

    for _ in _WRAPPERS:
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)]
        loaded = inner[0] if inner else loaded
    if not isinstance(loaded, dict):
        raise TypeError(f"it holds a {type(loaded).__name__}, not tensors by name")
    tensors = {}
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized:
                raise TypeError(f"tensor {name!r} is sparse or quantized")
            tensors[name] = value.detach()
    return tensors, [str(name) for name in loaded if name not in tensors]


def tied_heads(tensors: dict[str, Any]) -> list[str]:
    """Output layers that are the very memory of another tensor: with tied embeddings they are not stored."""
    places: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in tensors.items():
        places.setdefault((tensor.data_ptr(), *tensor.shape, *tensor.stride()), []).append(name)
    return [
        name
        for names in places.values()
        for name in names
        if len(names) > 1 and name.endswith(_HEADS) and not all(other.endswith(_HEADS) for other in names)
    ]


def separate(tensors: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Contiguous tensors that share no memory: safetensors has no aliases. Second, the names that were copied for it."""
    seen: set[int] = set()
    owned, copied = {}, []
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            copied.append(name)
            owned[name] = tensor.clone().contiguous()
        else:
            owned[name] = tensor.contiguous()
        seen.add(storage)
    return owned, sorted(copied)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
