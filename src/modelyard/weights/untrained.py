"""Marks of weights that nobody trained: a random model, or the head that a task added to an encoder.

`config.json` of a saved model that holds such tensors has the key `modelyard_untrained` (docs/design/weights.md). It carries
a digest of those tensors as they are on disk, so the mark is true only while they are what it says: training makes it false
by itself, whoever trains, and nobody has to remember to remove it.

Knows files and tensors' bytes; knows no architectures, and never decides what to do about a mark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import blake3

from modelyard.errors import ModelError
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.checks import read_json
from modelyard.weights.files import FolderFiles
from modelyard.weights.output import Digested, hash_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.files import Files

__all__ = [
    "KEY",
    "Untrained",
    "UntrainedWarning",
    "digest_tensors",
    "find_untrained",
    "fingerprint",
    "is_untrained",
    "make_export_mark",
    "make_mark",
    "mark",
]

KEY = "modelyard_untrained"
"""The key of config.json that holds the mark."""

_BLOCK = 4 << 20


class UntrainedWarning(UserWarning):
    """What is computed comes from weights that nobody trained."""


@dataclass(frozen=True, slots=True)
class Untrained:
    """Weights that were drawn at random.

    Attributes:
        kind: `random` for a whole model, `head` for what a task added to one.
        seed: What they were drawn from.
        tensors: Their names, sorted by bytes; None for all. On disk (`find_untrained`) the names of the file, in memory
            (`Model.untrained`) those of the module.
        fingerprints: In memory: dtype to the digest of the tensors in it, by which `Model.save` sees whether they were
            trained since. Empty for what `find_untrained` gives.
    """

    kind: Literal["random", "head"]
    seed: int
    tensors: tuple[str, ...] | None
    fingerprints: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def describe(self) -> str:
        """What to call it in a sentence: `untrained head (classifier.bias, classifier.weight)`."""
        if self.tensors is None:
            return "random weights"
        more = f", and {len(self.tensors) - 4} more" if len(self.tensors) > 4 else ""
        return f"untrained head ({', '.join(self.tensors[:4])}{more})"


def find_untrained(files: Files) -> Untrained | None:
    """The mark of a model folder if it has one and it is still true; reads the tensors that the mark names.

    Raises:
        ModelError: `bad_mark`: the mark is not of the form that this module writes. Also as `read_json` and
            `open_checkpoint`.
    """
    if "config.json" not in files.names():
        return None
    value = read_json(files, "config.json").get(KEY)
    if value is None:
        return None
    found, digest = _parse(value, files.label)
    if isinstance(digest, dict):
        return found if all(_has_digest(files, name, each) for name, each in digest.items()) else None
    weights = open_checkpoint(files)
    names = weights.home if found.tensors is None else found.tensors
    if not set(names) <= set(weights.home) or digest_tensors(weights, names) != digest:
        return None
    return found


def make_mark(untrained: Untrained, files: Files) -> dict[str, Any]:
    """The value of `KEY` for these files: `untrained.tensors` are names on disk."""
    weights = open_checkpoint(files)
    names = weights.home if untrained.tensors is None else untrained.tensors
    return {
        "format": 1,
        "kind": untrained.kind,
        "seed": untrained.seed,
        "tensors": None if untrained.tensors is None else sorted(untrained.tensors, key=str.encode),
        "digest": digest_tensors(weights, names),
    }


def make_export_mark(untrained: Untrained, graphs: Mapping[str, str]) -> dict[str, Any]:
    """The value of `KEY` for an export, which has no tensors that could be digested: it holds while all these files are what they are.

    Args:
        untrained: Of the source.
        graphs: File name to digest, of the files that hold the graph and its weights.
    """
    return {
        "format": 1,
        "kind": untrained.kind,
        "seed": untrained.seed,
        "tensors": None if untrained.tensors is None else sorted(untrained.tensors, key=str.encode),
        "files": dict(sorted(graphs.items())),
    }


def mark(folder: Path, untrained: Untrained | None) -> None:
    """Write the mark into `folder/config.json`, for the weights that lie beside it; None removes it."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop(KEY, None)
    if untrained is not None:
        config[KEY] = make_mark(untrained, FolderFiles(folder))
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def digest_tensors(weights: Checkpoint, names: Iterable[str]) -> str:
    """The digest over tensors on disk, as docs/design/weights.md defines it: names, dtypes, shapes and bytes."""
    whole = blake3.blake3()
    for name in sorted(names, key=str.encode):
        info = weights.info(name)
        shape = ",".join(str(size) for size in info.shape)
        whole.update(f"{name}\0{info.dtype}\0{shape}\0{_digest_bytes(weights, name)}\n".encode())
    return whole.hexdigest()


def fingerprint(state: Mapping[str, Any], names: Iterable[str] | None) -> dict[str, str]:
    """Digests of tensors in memory, by the dtype that they may be cast to before they are saved.

    Quantized tensors are taken as they are packed.

    Args:
        state: A module's `state_dict`.
        names: Those to look at; None for all.
    """
    import torch

    chosen = _chosen(state, names)
    if any(state[name].is_meta for name in chosen):
        return {}
    kinds = {torch.float32, torch.bfloat16, torch.float16, *_dtypes(state, chosen)}
    return {str(kind): _digest_state(state, chosen, kind) for kind in kinds}


def is_untrained(untrained: Untrained, state: Mapping[str, Any]) -> bool:
    """Whether the tensors that a mark names in memory are still what they were when it was made, in their dtype of now.

    A mark without fingerprints is of tensors that a device map keeps out of memory, where nobody trains them: it holds.
    """
    import torch

    if not untrained.fingerprints:
        return True
    chosen = _chosen(state, untrained.tensors)
    kinds = _dtypes(state, chosen) or {torch.float32}
    if untrained.tensors is not None and len(chosen) < len(untrained.tensors):
        return False
    return any(untrained.fingerprints.get(str(kind)) == _digest_state(state, chosen, kind) for kind in kinds)


def _chosen(state: Mapping[str, Any], names: Iterable[str] | None) -> list[str]:
    import torch

    # What belongs to another name (`x.weight.absmax`, `x.SCB`) says how that is packed, and changes with the kernel that runs.
    held = [name for name in state if not _is_packing(name, state)] if names is None else names
    return sorted((name for name in held if isinstance(state.get(name), torch.Tensor)), key=str.encode)


def _is_packing(name: str, state: Mapping[str, Any]) -> bool:
    owner, dot, _ = name.partition(".weight.")
    return name.endswith((".SCB", ".weight_format")) or (bool(dot) and f"{owner}.weight" in state)


def _dtypes(state: Mapping[str, Any], names: Iterable[str]) -> set[Any]:
    return {state[name].dtype for name in names if _is_plain(state[name])}


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor can be cast: floating-point numbers that are not packed."""
    import torch

    kinds = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
    return tensor.dtype in kinds and not hasattr(tensor, "__tensor_flatten__")


def _digest_state(state: Mapping[str, Any], names: Iterable[str], dtype: Any) -> str:
    import torch

    whole = blake3.blake3()
    for name in names:
        tensor = state[name].detach()
        whole.update(name.encode() + b"\0")
        for part in [tensor.to(dtype)] if _is_plain(tensor) else _parts(tensor):
            whole.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _parts(tensor: Any) -> list[Any]:
    """The tensors that a packed one is made of; itself for any other."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [each for name in names for each in _parts(getattr(tensor, name))]


def _digest_bytes(weights: Checkpoint, name: str) -> str:
    info, hashed = weights.info(name), blake3.blake3()
    with weights.open(weights.home[name]) as shard:
        for start in range(info.start, info.end, _BLOCK):
            block = bytearray(min(_BLOCK, info.end - start))
            shard.read_into(memoryview(block), start)
            hashed.update(block)
    return hashed.hexdigest()


def _has_digest(files: Files, name: str, digest: str) -> bool:
    if name not in files.names():
        return False
    known = files.digest(name) if isinstance(files, Digested) else hash_file(files.path(name))
    return str(known) == digest


def _parse(value: Any, label: str) -> tuple[Untrained, str | dict[str, str]]:
    """The mark, and the digest of its tensors; or of an export's files, by name."""
    if isinstance(value, dict) and value.get("format") == 1:
        kind: Any = value.get("kind")
        seed, tensors, digest, named = (value.get(key) for key in ("seed", "tensors", "digest", "files"))
        if isinstance(named, dict) and named and all(isinstance(each, str) for each in named.values()):
            digest = named
        elif not isinstance(digest, str):
            digest = None
        listed = tensors is None or (isinstance(tensors, list) and all(isinstance(name, str) for name in tensors))
        known = isinstance(kind, str) and kind in {"random", "head"}  # a stranger's value may have no hash
        if known and listed and isinstance(seed, int) and not isinstance(seed, bool) and digest is not None:
            return Untrained(kind, seed, None if tensors is None else tuple(tensors)), digest
    raise ModelError(
        f"`{label}/config.json`: `{KEY}` is no mark that modelyard writes",
        code="bad_mark",
        hint=f"remove `{KEY}` if somebody trained this model",
    )
