"""A strict reader of safetensors headers: nothing reaches a library before it passed here.

The format: 8 bytes, the header's length as a little-endian unsigned integer; the header, a JSON object that maps each
tensor's name to `dtype`, `shape` and `data_offsets` (relative to the end of the header), with an optional `__metadata__`
map of strings; then the tensors' bytes, which must cover the rest of the file without hole or overlap.

Everything is decided from the header and the file's size: no tensor byte is read, nothing is allocated by what a header
claims, and every refusal is a `ModelError` with a stable `code` (see `CODES`). This module does not know models.

>>> import tempfile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
>>> text = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
>>> _ = path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
>>> read_header(path).tensors
{'w': TensorInfo(dtype='BF16', shape=(2,), start=0, end=4)}
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from modelyard.errors import ModelError, NotFoundError
from modelyard.weights.content import identify_bytes, refuse_content
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "BITS",
    "CODES",
    "Header",
    "Limits",
    "TensorInfo",
    "open_regular",
    "parse_header",
    "parse_sized",
    "parse_stream",
    "read_header",
]

BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Every dtype of the format and the bits that one element takes."""

CODES = (
    "header_too_small", "header_too_large", "truncated", "trailing_bytes", "bad_header", "duplicate_key", "too_many_tensors",
    "bad_tensor", "bad_name", "bad_shape", "overflow", "unknown_dtype", "misaligned", "size_mismatch", "bad_offsets",
    "overlap", "hole", "bad_metadata",
)  # fmt: skip
"""Every `code` that a refused header can carry."""

_MOST = 1 << 63
_KEPT_FROM = 64 << 10  # bytes of a header's text
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a header may ask for; sizes in bytes."""

    header: int = 25_000_000
    tensors: int = 100_000
    name: int = 4096
    metadata: int = 1 << 20
    dimensions: int = 64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `start` and `end` are byte offsets from the file's `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        count = 0 if 0 in self.shape else 1
        for size in self.shape if count else ():
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header: tensors in the order of the header's text, metadata, and where tensor bytes begin."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int

    def in_file_order(self) -> list[tuple[str, TensorInfo]]:
        """The tensors by where their bytes lie."""
        return sorted(self.tensors.items(), key=lambda item: (item[1].start, item[1].end))


_last: tuple[bytes, int, Limits, Header | None] = (b"", 0, Limits(), None)
"""The long header that was read last: whoever checks weights, cuts them and names their tensors reads it three times.

What is compared is all that the answer follows from, so a file that changed meanwhile is never taken for what it was.
"""


def read_header(path: Path, *, limits: Limits | None = None) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        NotFoundError: There is no such file.
        ModelError: The file is not regular, or breaks a rule of the format; `code` is one of `CODES`. A git-lfs
            pointer, web page, archive or pickle under a false name is named as what it is.
    """
    with open_regular(path) as stream:
        return parse_stream(stream, str(path), limits=limits)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO or device is a `ModelError`, never a hang.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is not regular, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"no file `{path}`") from None
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"`{path}` is not a regular file", code="not_a_regular_file")
    return os.fdopen(descriptor, "rb")


def parse_stream(stream: BinaryIO, label: str, *, limits: Limits | None = None) -> Header:
    """Check the header of an open file that stands at its beginning, and leave it at the first tensor byte.

    Raises:
        PickleError, ModelError: As `read_header`.
    """
    return parse_sized(stream, os.fstat(stream.fileno()).st_size, label, limits=limits)


def parse_sized(stream: BinaryIO, size: int, label: str, *, limits: Limits | None = None) -> Header:
    """As `parse_stream`, for a stream of `size` bytes that is no open file.

    Raises:
        PickleError, ModelError: As `read_header`.
    """
    limits = limits or Limits()
    length = _header_length(stream.read(512), size, label, limits)
    stream.seek(8)
    return parse_header(stream.read(length), size - 8 - length, label, limits=limits)


def parse_header(text: bytes, data_size: int, label: str, *, limits: Limits | None = None) -> Header:
    """Check a header's text against the number of data bytes that follow it; `label` names the file in messages.

    Raises:
        ModelError: As `read_header`.
    """
    limits = limits or Limits()
    global _last  # noqa: PLW0603  one value, replaced as a whole: threads see the old one or the new one
    last_text, last_size, last_limits, header = _last
    if header is not None and (data_size, limits) == (last_size, last_limits) and text == last_text:
        return header
    header = _checked(text, data_size, label, limits)
    if len(text) >= _KEPT_FROM:
        _last = (text, data_size, limits, header)
    return header


def _checked(text: bytes, data_size: int, label: str, limits: Limits) -> Header:
    entries = _parse(text, label, limits)
    metadata = _check_metadata(entries.pop("__metadata__", {}), label, limits)
    if len(entries) > limits.tensors:
        _refuse(label, "too_many_tensors", f"its header names {len(entries)} tensors, more than {limits.tensors}")
    tensors = {
        name: _plain_tensor(name, entry, limits) or _check_tensor(name, entry, label, limits)
        for name, entry in entries.items()
    }
    _check_layout(tensors, data_size, label)
    return Header(tensors, metadata, 8 + len(text))


def _header_length(start: bytes, size: int, label: str, limits: Limits) -> int:
    if len(start) < 8:
        _refuse(label, "header_too_small", f"it has {size} bytes, too few for a header")
    length = int.from_bytes(start[:8], "little")
    # A failed download or a renamed pickle is said by its name, not by what its first bytes mean as a length.
    refuse_content(identify_bytes(start), label)
    if length > limits.header:
        _refuse(label, "header_too_large", f"it claims a header of {length} bytes, more than {limits.header}")
    if length > size - 8:
        _refuse(label, "truncated", f"it claims a header of {length} bytes, and only {size - 8} follow")
    if length < 2:
        _refuse(label, "header_too_small", f"it claims a header of {length} bytes")
    return length


def _parse(text: bytes, label: str, limits: Limits) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _refuse(label, "bad_header", "its header does not begin with `{`")
    # Counted before parsing, so that a million tensors cost a scan and not a million objects. In JSON the quotes of a
    # string's inside are escaped, so only a key (or a string of metadata, which is bounded) can match.
    if text.count(b'"data_offsets"') > limits.tensors:
        _refuse(label, "too_many_tensors", f"its header names more than {limits.tensors} tensors")
    body = text.rstrip(b" ")
    if not body.endswith(b"}"):
        _refuse(label, "bad_header", "its header does not end with `}`")
    try:
        parsed = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, label),
            parse_constant=lambda word: _refuse(label, "bad_header", f"its header holds {word}"),
        )
    except UnicodeDecodeError:
        _refuse(label, "bad_header", "its header is not UTF-8")
    except RecursionError:
        _refuse(label, "bad_header", "its header is nested too deeply")
    except ValueError as error:
        _refuse(label, "bad_header", f"its header is not JSON ({str(error)[:80]})")
    if not isinstance(parsed, dict):
        _refuse(label, "bad_header", "its header is not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]], label: str) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        _refuse(label, "duplicate_key", f"its header has the key `{show_name(twice)}` twice")
    return made


def _check_metadata(found: Any, label: str, limits: Limits) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        _refuse(label, "bad_metadata", "its `__metadata__` is not a map of strings")
    if sum(len(key) + len(value) for key, value in found.items()) > limits.metadata:
        _refuse(label, "bad_metadata", f"its `__metadata__` is larger than {limits.metadata} bytes")
    return found


def _plain_tensor(name: str, entry: Any, limits: Limits) -> TensorInfo | None:
    """A tensor that breaks no rule, as nearly all are, in a fraction of the time; None leaves it to `_check_tensor`."""
    if not (isinstance(entry, dict) and len(entry) == 3 and name.isascii() and name.isprintable()):
        return None
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    dtype = entry.get("dtype")
    if type(shape) is not list or type(offsets) is not list or type(dtype) is not str or len(offsets) != 2:
        return None
    bits = BITS.get(dtype, 0)
    total = bits
    for size in shape:
        if type(size) is not int or size <= 0:
            return None
        total *= size
    start, end = offsets
    sound = (
        0 < len(name) <= limits.name
        and len(shape) <= limits.dimensions
        and type(start) is int
        and type(end) is int
        and start >= 0
        and 0 < total < _MOST
        and total == (end - start) * 8
    )
    return TensorInfo(dtype, tuple(shape), start, end) if sound else None


def _check_tensor(name: str, entry: Any, label: str, limits: Limits) -> TensorInfo:
    _check_tensor_name(name, label, limits)
    who = f"tensor `{show_name(name)}`"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(label, "bad_tensor", f"{who} does not have exactly `dtype`, `shape` and `data_offsets`")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        shown = show_name(str(dtype)) if isinstance(dtype, str | int | float) else type(dtype).__name__
        _refuse(label, "unknown_dtype", f"{who} has the dtype `{shown}`; known are {', '.join(BITS)}")
    if not isinstance(shape, list) or len(shape) > limits.dimensions or not all(_is_count(size) for size in shape):
        _refuse(
            label, "bad_shape", f"{who} has a shape that is not a list of at most {limits.dimensions} whole numbers"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        _refuse(label, "bad_offsets", f"{who} has offsets that are not two whole numbers")
    info = TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])
    if info.end < info.start:
        _refuse(label, "bad_offsets", f"{who} ends at {info.end}, before it starts at {info.start}")
    total = info.elements * bits  # exact: Python integers do not wrap
    if total >= _MOST or max(shape, default=0) >= _MOST:
        _refuse(label, "overflow", f"{who} has a shape whose size does not fit 63 bits")
    if total % 8:
        _refuse(label, "misaligned", f"{who} of dtype {dtype} does not fill whole bytes")
    if total // 8 != info.end - info.start:
        _refuse(label, "size_mismatch", f"{who} needs {total // 8} bytes and has {info.end - info.start}")
    return info


def _check_tensor_name(name: str, label: str, limits: Limits) -> None:
    why = None
    if not name:
        why = "is empty"
    elif len(name) > limits.name:
        why = f"has {len(name)} characters, more than {limits.name}"
    elif not name.isprintable() and any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name):
        why = "holds a control character"
    elif not name.isascii() and any(char in _BIDI or 0xD800 <= ord(char) <= 0xDFFF for char in name):
        why = "holds a character that changes how text is read"
    if why:
        _refuse(label, "bad_name", f"the tensor name `{show_name(name)}` {why}")


def _check_layout(tensors: dict[str, TensorInfo], data_size: int, label: str) -> None:
    """The tensors must cover the data exactly: each begins where the one before it ends."""
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start < position:
            _refuse(label, "overlap", f"tensor `{show_name(name)}` starts at {info.start}, inside the one before it")
        if info.start > position:
            _refuse(label, "hole", f"bytes {position} to {info.start} belong to no tensor")
        position = info.end
    if position > data_size:
        _refuse(label, "truncated", f"its tensors need {position} bytes and {data_size} are there")
    if position < data_size:
        _refuse(label, "trailing_bytes", f"{data_size - position} bytes follow its last tensor")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _refuse(label: str, code: str, what: str) -> NoReturn:
    raise ModelError(f"`{label}` is not a sound safetensors file: {what}", code=code)
