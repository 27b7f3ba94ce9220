"""A model's weights in another dtype, by the exact operation `cast/1`, streamed from file to file.

Knows tensors as names, dtypes and bytes, and the files beside them; knows no architecture, and runs no model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import STORAGE, Workspace
from modelyard.derivations.cast import cast_block
from modelyard.errors import InputError, ModelError, near_match
from modelyard.weights.carry import is_carried
from modelyard.weights.checkpoint import Checkpoint, Shard, open_checkpoint
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.files import FolderFiles, show_name
from modelyard.weights.headers import BITS, TensorInfo
from modelyard.weights.output import HashingWriter, copy_file, fresh_folder, write_file
from modelyard.weights.untrained import KEY, find_untrained, make_mark
from modelyard.weights.values import read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.weights.files import Files

__all__ = ["DTYPES", "Casting", "cast"]

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What `cast` takes, and what safetensors calls it."""

_BLOCK = 1 << 16
_NO_OPERATION = frozenset(
    {"F64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"}
)


@dataclass
class Casting:
    """What `cast` did: tensors cast and kept (integers, or of that dtype before), and each file's digest."""

    dtype: str
    cast: int = 0
    kept: int = 0
    outputs: dict[str, Digest] = field(default_factory=dict)
    operation: str = "cast/1"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return dict(vars(self))


def cast(source: Files, out: Path, dtype: str, *, progress: Callable[[int, int], None] | None = None) -> Casting:
    """Write a model or adapter with every floating-point tensor in `dtype`, under the same names.

    Args:
        source: The model or adapter.
        out: A folder that does not exist yet.
        dtype: `bfloat16`, `float16` or `float32`.
        progress: Called with (bytes done, bytes in all) of the source's weights.

    Raises:
        InputError: `unknown_dtype`.
        ModelError: The source is unsafe or broken; `unsupported_dtype` (F64 and 8-bit formats have no exact operation
            yet), `nan_result` or `infinite_result`, each naming the tensor.
        ConflictError, NoSpaceError: As `fresh_folder`.
    """
    to = _safetensors_name(dtype)
    check_weights(source)
    adapter = "adapter_config.json" in source.names()
    weights = open_checkpoint(source, "adapter_model" if adapter else "model")
    _refuse_unsupported(weights)
    total = sum(info.end - info.start for header in weights.shards.values() for info in header.tensors.values())
    made, done = Casting(dtype), 0
    with fresh_folder(out) as folder:
        for name in weights.shards:
            with weights.open(name) as shard, HashingWriter(folder / name) as writer:
                writer.write(_header(shard, to))
                for tensor, info in shard.header.in_file_order():
                    _write_tensor(shard, tensor, info, to, writer)
                    changed = info.dtype in STORAGE and info.dtype != to
                    made.cast, made.kept = made.cast + changed, made.kept + (not changed)
                    done += info.end - info.start
                    if progress is not None:
                        progress(done, total)
            made.outputs[name] = writer.digest()
        _write_rest(weights, folder, dtype, made)
    return made


def _write_tensor(shard: Shard, tensor: str, info: TensorInfo, to: str, writer: HashingWriter) -> None:
    if info.dtype == to or info.dtype not in STORAGE:
        for block in read_blocks(shard, info):
            writer.write(block.data)
        return
    workspace = Workspace(_BLOCK)
    result = np.empty(_BLOCK, STORAGE[to])
    for block in read_blocks(shard, info):
        values = block.view(STORAGE[info.dtype])
        for start in range(0, values.size, _BLOCK):
            part = values[start : start + _BLOCK]
            cast_part = result[: part.size]
            try:
                infinite = cast_block(part, info.dtype, cast_part, to, workspace)
            except InputError as error:
                raise ModelError(f"`{show_name(tensor)}` cannot be cast: {error.message}", code=error.code) from error
            if infinite:
                raise ModelError(
                    f"`{show_name(tensor)}` cannot be cast: it holds numbers that {to} has not",
                    code="infinite_result",
                    hint="bfloat16 and float32 reach 3.4e38, float16 only 65504",
                )
            writer.write(cast_part.view(np.uint8).data)


def _header(shard: Shard, to: str) -> bytes:
    """The header with the new dtype and places, tensors in the order of their bytes."""
    entries: dict[str, Any] = {"__metadata__": shard.header.metadata} if shard.header.metadata else {}
    position = 0
    for name, info in shard.header.in_file_order():
        kind = to if info.dtype in STORAGE else info.dtype
        end = position + info.elements * BITS[kind] // 8
        entries[name] = {"dtype": kind, "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_rest(weights: Checkpoint, folder: Path, dtype: str, made: Casting) -> None:
    files = weights.files
    if weights.index is not None:
        index = read_json(files, weights.index)
        size = sum((folder / name).stat().st_size - _data_start(folder / name) for name in weights.shards)
        index["metadata"] = dict(index.get("metadata") or {}) | {"total_size": size}
        made.outputs[weights.index] = write_file(folder / weights.index, _json(index))
    for name in files.names():
        if name == "config.json":
            config = _remarked(files, folder, _retyped(read_json(files, name), dtype))
            made.outputs[name] = write_file(folder / name, _json(config))
        elif is_carried(name) or name == "adapter_config.json":
            made.outputs[name] = copy_file(files, name, folder)


def _retyped(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration with its dtype said anew, nested parts of a multi-modal model included."""
    old = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    nested = {
        key: value | {name: dtype for name in ("dtype", "torch_dtype") if name in value}
        for key, value in config.items()
        if isinstance(value, dict)
    }
    return config | nested | {old: dtype}


def _remarked(files: Files, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the mark of untrained tensors for the bytes that were written; without one that is untrue."""
    if KEY not in config:
        return config
    found = find_untrained(files)
    rest = {key: value for key, value in config.items() if key != KEY}
    return rest if found is None else rest | {KEY: make_mark(found, FolderFiles(folder))}


def _refuse_unsupported(weights: Checkpoint) -> None:
    for tensor in weights.home:
        kind = weights.info(tensor).dtype
        if kind in _NO_OPERATION:
            raise ModelError(
                f"`{show_name(tensor)}` is {kind}, and cast/1 takes F32, F16 and BF16", code="unsupported_dtype"
            )


def _safetensors_name(dtype: str) -> str:
    known: Mapping[str, str] = DTYPES
    if dtype not in known:
        meant = near_match(dtype, known)
        hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(known)}"
        raise InputError(f"no dtype `{dtype}`", code="unknown_dtype", hint=hint)
    return known[dtype]


def _data_start(path: Path) -> int:
    with path.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
