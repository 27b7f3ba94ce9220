"""Planning and writing safetensors shards: which tensor goes to which file, and the file itself, in one pass.

The format is the one that `headers` reads. Knows tensors as names, dtypes, shapes and bytes; no models, no folders' other files.

>>> specs = [TensorSpec(name, "F32", (2, 3)) for name in "abc"]
>>> {file: [spec.name for spec in held] for file, held in plan_shards(specs, 50).items()}
{'model-00001-of-00002.safetensors': ['a', 'b'], 'model-00002-of-00002.safetensors': ['c']}
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError, InternalError
from modelyard.weights.headers import BITS
from modelyard.weights.output import HashingWriter, format_json, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from modelyard.digest import Digest

__all__ = ["ShardWriter", "TensorSpec", "name_shards", "parse_size", "plan_shards", "write_index"]

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{middle}B": base**power
    for middle, base in (("", 1000), ("I", 1024))
    for power, letter in enumerate("KMGT", 1)
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SHARD = re.compile(r"(.+)-\d{5,}-of-\d{5,}(\.\w+)")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: its name, dtype as safetensors calls it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def parse_size(text: str | int) -> int:
    """Bytes from `"5GB"` (powers of 1000, as the Hub's libraries count), `"500MiB"` (of 1024), or a number.

    Raises:
        InputError: `bad_size`: no such unit, or not above zero.
    """
    found = _SIZE.fullmatch(str(text).strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if size < 1:
        raise InputError(f"`{text}` is not a size", code="bad_size", hint="give bytes, or a size as 5GB or 500MiB")
    return size


def plan_shards(
    specs: Iterable[TensorSpec], shard_size: int | None, stem: str = "model", suffix: str = ".safetensors"
) -> dict[str, list[TensorSpec]]:
    """Which file takes which tensors, in their order; a tensor is never cut, so one above `shard_size` has a file of its own.

    Args:
        specs: The tensors.
        shard_size: The most bytes of tensors in one file; None puts all into one.
        stem: `model` or `adapter_model`.
        suffix: The files' ending.
    """
    groups: list[list[TensorSpec]] = [[]]
    held = 0
    for spec in specs:
        if shard_size is not None and groups[-1] and held + spec.size > shard_size:
            groups.append([])
            held = 0
        groups[-1].append(spec)
        held += spec.size
    return dict(zip(name_shards(len(groups), stem, suffix), groups, strict=True))


def name_shards(count: int, stem: str = "model", suffix: str = ".safetensors") -> list[str]:
    """The names of `count` files of weights: one has no number.

    >>> name_shards(1), name_shards(2, "pytorch_model", ".bin")
    (['model.safetensors'], ['pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin'])
    """
    if count == 1:
        return [f"{stem}{suffix}"]
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


class ShardWriter:
    """One new safetensors file: its header, then the tensors' bytes in the order of `specs`; durable once the block ended.

    Args:
        path: The file, which must not exist.
        specs: The tensors in the order in which their bytes will come.
        metadata: The header's `__metadata__`; None is `{"format": "pt"}`, which transformers asks for.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._writer = HashingWriter(path)
        self._header = encode_header(specs, {"format": "pt"} if metadata is None else metadata)
        self._size = len(self._header) + sum(spec.size for spec in specs)

    def __enter__(self) -> ShardWriter:
        self._writer.__enter__()
        self._writer.write(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        if kind is None and self._writer.size != self._size:
            raise InternalError(f"`{self._path.name}` took {self._writer.size} bytes, and its header says {self._size}")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the next bytes; where one tensor ends and the next begins need not be said."""
        self._writer.write(data)

    def digest(self) -> Digest:
        """The digest of the file, header included."""
        return self._writer.digest()


def encode_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file before its first tensor: the header's length and the header, filled to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        end = position + spec.size
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_index(
    folder: Path, plan: Mapping[str, Sequence[TensorSpec]], metadata: Mapping[str, Any] | None = None
) -> Digest | None:
    """Write `<stem>.safetensors.index.json` for what `plan_shards` gave; None where one file needs none.

    Args:
        folder: Where the shards are.
        plan: File name to its tensors.
        metadata: What the index's `metadata` says beside `total_size`.
    """
    name = index_name(plan)
    if name is None:
        return None
    total = sum(spec.size for specs in plan.values() for spec in specs)
    weight_map = {spec.name: file for file, specs in plan.items() for spec in specs}
    index = {"metadata": dict(metadata or {}) | {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return write_file(folder / name, format_json(index))


def index_name(plan: Iterable[str]) -> str | None:
    """The name of the index that belongs to these files; None where they are one without a number."""
    found = _SHARD.fullmatch(next(iter(plan), ""))
    return f"{found[1]}{found[2]}.index.json" if found else None
