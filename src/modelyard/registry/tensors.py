"""Tensors of two versions side by side: by header, and by value in blocks when norms are asked for.

Memory stays at one block of each side, however large a tensor is. Knows bytes and dtypes, not architectures.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from modelyard.weights.headers import TensorInfo, parse_sized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelyard.registry.contents import StoredFiles

__all__ = ["TensorChange", "TensorDiff", "compare_tensors"]

_BLOCK = 1 << 20  # elements
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor in both versions: dtype and shape before and after.

    `relative_norm` is the Euclidean norm of the change over that of the tensor before: None when norms were not asked for,
    the shapes differ, the dtype has no plain numbers, or the tensor before is zero or not finite.
    """

    name: str
    dtype: tuple[str, str]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    relative_norm: float | None = None


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """Tensors by name. Without norms, `changed` has those whose dtype or shape differs; with norms, every one whose bytes do."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[TensorChange, ...] = ()
    same: int = 0
    by_value: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's bytes are: in a stream, from `start`; `file` is the digest of the file that holds them."""

    stream: BinaryIO
    file: str
    start: int
    info: TensorInfo

    def read(self, start: int, end: int) -> bytes:
        """These bytes of the tensor."""
        self.stream.seek(self.start + start)
        return self.stream.read(end - start)


def compare_tensors(old: StoredFiles, new: StoredFiles, *, norms: bool) -> TensorDiff:
    """Compare the tensors of every safetensors file of two versions, whole or not; a damaged one is an `IntegrityError`."""
    with ExitStack() as streams:
        before, after = _places(old, streams), _places(new, streams)
        changed, same = [], 0
        for name in sorted(before.keys() & after.keys()):
            a, b = before[name], after[name]
            described = (a.info.dtype, a.info.shape) == (b.info.dtype, b.info.shape)
            if described and (not norms or _same_bytes(a, b)):
                same += 1
                continue
            norm = _relative_norm(a, b) if norms and a.info.shape == b.info.shape else None
            changed.append(TensorChange(name, (a.info.dtype, b.info.dtype), (a.info.shape, b.info.shape), norm))
    return TensorDiff(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(changed),
        same=same,
        by_value=norms,
    )


def _places(files: StoredFiles, streams: ExitStack) -> dict[str, _Place]:
    """Every tensor; one in a folder is called `folder/name`."""
    found: dict[str, _Place] = {}
    for name in files.names():
        if not name.endswith(".safetensors"):
            continue
        stream, entry = streams.enter_context(files.open(name)), files.entry(name)
        header = parse_sized(stream, entry.size, f"{files.label}: {name}")
        folder = PurePosixPath(name).parent.as_posix()
        for tensor, info in header.tensors.items():
            key = tensor if folder == "." else f"{folder}/{tensor}"
            found[key] = _Place(stream, str(entry.blake3), header.data_start + info.start, info)
    return found


def _same_bytes(a: _Place, b: _Place) -> bool:
    if a.file == b.file and a.info == b.info:
        return True
    size = a.info.end - a.info.start
    blocks = ((start, min(start + 8 * _BLOCK, size)) for start in range(0, size, 8 * _BLOCK))
    return all(a.read(*block) == b.read(*block) for block in blocks)


def _relative_norm(a: _Place, b: _Place) -> float | None:
    """Norms in float64 from blocks of `_BLOCK` elements."""
    import numpy as np

    if not (_readable(a.info.dtype) and _readable(b.info.dtype)):
        return None
    change = size = 0.0
    for start in range(0, a.info.elements, _BLOCK):
        x, y = _block(a, start), _block(b, start)
        with np.errstate(invalid="ignore", over="ignore"):
            change += float(np.dot(y - x, y - x))
            size += float(np.dot(x, x))
    if size == 0 or not math.isfinite(change) or not math.isfinite(size):
        return None
    return math.sqrt(change / size)


def _readable(dtype: str) -> bool:
    return dtype in _NUMPY or dtype == "BF16"


def _block(place: _Place, start: int) -> NDArray[np.float64]:
    import numpy as np

    dtype = np.dtype("<u2" if place.info.dtype == "BF16" else _NUMPY[place.info.dtype])
    end = min(start + _BLOCK, place.info.elements)
    data = place.read(start * dtype.itemsize, end * dtype.itemsize)
    return _floats(np.frombuffer(data, dtype), place.info.dtype)


def _floats(block: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    import numpy as np

    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        return (block.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return block.astype(np.float64)
