"""A strict reader of GGUF headers: where each tensor lies, and nothing that the file only claims.

The format, little-endian: the magic ``GGUF``, the version (2 or 3) as u32, how many tensors and how many metadata keys there
are as u64 each; the keys, each a string, a type and a value; then for each tensor its name, dimensions, type and offset; then,
from the next multiple of the alignment on, the tensors' bytes, each tensor beginning at a multiple of the alignment.

Every count is held against the bytes that are left before anything is read or looped over, sizes are exact integers, and
every refusal is a `ModelError` with a stable `code` (see `GGUF_CODES`). Of values, numbers and texts are kept and arrays counted; with
`full=True` arrays and long texts are kept too, within the same bounds.
Knows no model and no quantization beyond how many bytes a block takes.

>>> import struct, tempfile
>>> from pathlib import Path
>>> text = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
>>> text += struct.pack("<Q1sIQIQ", 1, b"w", 1, 8, 0, 0)
>>> path = Path(tempfile.mkdtemp()) / "x.gguf"
>>> _ = path.write_bytes(text + bytes(-len(text) % 32) + bytes(32))
>>> header = read_gguf(path)
>>> header.data_start, header.tensors
(64, (GgufTensor(name='w', type='F32', shape=(8,), start=0, end=32),))
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from modelyard.errors import ModelError
from modelyard.weights.files import show_name
from modelyard.weights.headers import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["GGUF_CODES", "GGUF_TYPES", "GgufHeader", "GgufLimits", "GgufTensor", "parse_gguf", "read_gguf"]

GGUF_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Every tensor type that is known: its name, the elements of a block, and the bytes that a block takes."""

GGUF_CODES = (
    "not_gguf", "unknown_version", "truncated", "header_too_large", "too_many_tensors", "too_many_keys", "too_many_items",
    "unknown_type", "bad_name", "bad_shape", "overflow", "bad_alignment", "bad_offsets", "duplicate_key",
)  # fmt: skip
"""Every `code` that a refused header can carry."""

_WIDTHS: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_NUMBERS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_BYTE, _U32, _STRING, _ARRAY = 0, 4, 8, 9
_TEXT = 1 << 20  # bytes of a text that is kept
_ALIGNMENT_KEY = b"general.alignment"
_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class GgufLimits:
    """How much a header may ask for; `header` and `name` in bytes, `items` counts the strings of all arrays together."""

    header: int = 256 << 20
    tensors: int = 100_000
    keys: int = 100_000
    items: int = 4_000_000
    name: int = 4096
    nesting: int = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `start` and `end` are byte offsets from the file's `data_start`; `shape` has the fastest dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A file's header: tensors in the order of their bytes, and where these begin."""

    version: int
    alignment: int
    tensors: tuple[GgufTensor, ...]
    data_start: int
    metadata: dict[str, Any] = field(default_factory=dict)
    """Its keys: numbers and texts up to 1 MiB as they are, arrays as their lengths; what is longer is left out.

    Of a header that was read `full`, texts of any length, and arrays as lists (of bytes as `bytes`)."""


def read_gguf(path: Path, *, limits: GgufLimits | None = None, full: bool = False) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Args:
        path: The file.
        limits: How much the header may ask for.
        full: Keep arrays and long texts of the metadata too: vocabularies, merges, a whole tokenizer.json.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is not regular, not GGUF of version 2 or 3, or claims what cannot be; `code` is one of `GGUF_CODES`.
    """
    with open_regular(path) as stream:
        return parse_gguf(stream, os.fstat(stream.fileno()).st_size, str(path), limits=limits, full=full)


def parse_gguf(
    stream: BinaryIO, size: int, label: str, *, limits: GgufLimits | None = None, full: bool = False
) -> GgufHeader:
    """As `read_gguf`, for a stream of `size` bytes that stands at its beginning and may be no file on this machine.

    Raises:
        ModelError: As `read_gguf`.
    """
    return _Reader(stream, size, label, limits or GgufLimits(), full=full).header()


class _Reader:
    """Walks one header; `left` is how many bytes it may still take, whatever it claims."""

    def __init__(self, stream: BinaryIO, size: int, label: str, limits: GgufLimits, *, full: bool) -> None:
        self._stream, self._label, self._limits = stream, label, limits
        self._size = size
        self._full = full
        self._kept: dict[str, Any] = {}
        self._position = 0
        self._end = min(self._size, limits.header)
        self._items = 0

    def header(self) -> GgufHeader:
        if self._size < 4 or self._take(4) != b"GGUF":
            self._refuse("not_gguf", "it does not begin with `GGUF`")
        version = self._number("<I")
        if version not in {2, 3}:
            self._refuse("unknown_version", f"it has version {version}; known are 2 and 3, little-endian")
        tensors, keys = self._number("<Q"), self._number("<Q")
        # A tensor takes 24 bytes at least, a key 13: a count that cannot fit is refused before the first of them is read.
        if tensors > self._limits.tensors or tensors * 24 > self._left():
            self._refuse("too_many_tensors", f"it claims {tensors} tensors")
        if keys > self._limits.keys or keys * 13 > self._left():
            self._refuse("too_many_keys", f"it claims {keys} keys of metadata")
        alignment = self._metadata(keys)
        described = [self._tensor(alignment) for _ in range(tensors)]
        if len({tensor.name for tensor in described}) != len(described):
            self._refuse("duplicate_key", "two of its tensors have one name")
        data_start = _aligned(self._position, alignment)
        placed = self._placed(described, alignment, data_start)
        return GgufHeader(version, alignment, placed, data_start, self._kept)

    def _metadata(self, keys: int) -> int:
        """Skip the keys; the alignment that they state, or 32."""
        alignment, seen = 32, False
        for _ in range(keys):
            length = self._length(self._limits.name, "bad_name", "a key")
            key = self._take(length)
            kind = self._number("<I")
            if key != _ALIGNMENT_KEY:
                self._keep_value(key.decode("utf-8", "backslashreplace"), kind)
                continue
            if kind != _U32 or seen:
                self._refuse("bad_alignment", "its alignment is not one 32-bit number")
            alignment, seen = self._number("<I"), True
            if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
                self._refuse("bad_alignment", f"its alignment is {alignment}, not a power of two from 8 to 2^20")
        return alignment

    def _keep_value(self, key: str, kind: int) -> None:
        """Keep a number or a text, and of an array its length."""
        if kind in _NUMBERS:
            self._kept[key] = struct.unpack(_NUMBERS[kind], self._take(_WIDTHS[kind]))[0]
        elif kind == _STRING:
            length = self._number("<Q")
            if length > _TEXT and not self._full:
                self._skip(length)
                return
            self._kept[key] = self._take(length).decode("utf-8", "replace")
        elif kind == _ARRAY:
            self._kept[key] = self._take_array(0) if self._full else self._skip_array(0)
        else:
            self._skip_value(kind, 0)

    def _take_array(self, depth: int) -> list[Any] | bytes:
        """An array's items; every one was claimed against the bytes that are left, so that none is made of a number alone."""
        kind, count = self._array(depth)
        if kind == _BYTE:
            return self._take(count)
        if kind in _WIDTHS:
            return list(struct.unpack(f"<{count}{_NUMBERS[kind][1]}", self._take(_WIDTHS[kind] * count)))
        if kind == _STRING:
            return [self._take(self._number("<Q")).decode("utf-8", "replace") for _ in range(count)]
        if kind != _ARRAY:
            self._refuse("unknown_type", f"a value has the type {kind}")
        return [self._take_array(depth + 1) for _ in range(count)]

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind in _WIDTHS:
            self._skip(_WIDTHS[kind])
        elif kind == _STRING:
            self._skip(self._number("<Q"))
        elif kind == _ARRAY:
            self._skip_array(depth)
        else:
            self._refuse("unknown_type", f"a value has the type {kind}")

    def _skip_array(self, depth: int) -> int:
        """Skip an array, and say how many items it has."""
        kind, count = self._array(depth)
        if kind in _WIDTHS:
            self._skip(_WIDTHS[kind] * count)
            return count
        for _ in range(count):
            self._skip_value(kind, depth + 1)
        return count

    def _array(self, depth: int) -> tuple[int, int]:
        """What an array's items are and how many; of items that have no fixed width, no more than can be there."""
        kind, count = self._number("<I"), self._number("<Q")
        if depth >= self._limits.nesting:
            self._refuse("too_many_items", "its arrays are nested too deeply")
        if kind not in _WIDTHS:
            self._items += count
            if self._items > self._limits.items or count * 8 > self._left():
                self._refuse("too_many_items", f"it claims an array of {count} items")
        return kind, count

    def _tensor(self, alignment: int) -> GgufTensor:
        raw = self._take(self._length(self._limits.name, "bad_name", "a tensor's name"))
        name = self._name(raw)
        who = f"tensor `{show_name(name)}`"
        dimensions = self._number("<I")
        if not 1 <= dimensions <= 4:
            self._refuse("bad_shape", f"{who} has {dimensions} dimensions, not 1 to 4")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        number, offset = self._number("<I"), self._number("<Q")
        if number not in GGUF_TYPES:
            self._refuse("unknown_type", f"{who} has the type {number}")
        kind, block, width = GGUF_TYPES[number]
        if 0 in shape or shape[0] % block:
            self._refuse("bad_shape", f"{who} has a shape that does not fill blocks of {block}")
        elements = 1
        for length in shape:
            elements *= length
        size = elements // block * width  # exact: Python integers do not wrap
        if size >= _MOST or offset >= _MOST:
            self._refuse("overflow", f"{who} has a size or offset that does not fit 63 bits")
        if offset % alignment:
            self._refuse("bad_offsets", f"{who} begins at {offset}, no multiple of {alignment}")
        return GgufTensor(name, kind, shape, offset, offset + size)

    def _placed(self, described: list[GgufTensor], alignment: int, data_start: int) -> tuple[GgufTensor, ...]:
        """The tensors by offset: one after another, with no more between them than the alignment asks for."""
        ordered = sorted(described, key=lambda tensor: tensor.start)
        expected = 0
        for tensor in ordered:
            if tensor.start != expected:
                self._refuse(
                    "bad_offsets", f"tensor `{show_name(tensor.name)}` begins at {tensor.start}, not {expected}"
                )
            if data_start + tensor.end > self._size:
                self._refuse(
                    "truncated", f"tensor `{show_name(tensor.name)}` ends beyond the file's {self._size} bytes"
                )
            expected = _aligned(tensor.end, alignment)
        return tuple(ordered)

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self._refuse("bad_name", "a tensor's name is not UTF-8")
        if not name or not name.isprintable():
            self._refuse("bad_name", f"the tensor name `{show_name(name)}` is empty or cannot be printed")
        return name

    def _left(self) -> int:
        return self._end - self._position

    def _length(self, most: int, code: str, what: str) -> int:
        length = self._number("<Q")
        if length > most:
            self._refuse(code, f"{what} has {length} bytes, more than {most}")
        return length

    def _number(self, form: str) -> int:
        found: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return found

    def _take(self, count: int) -> bytes:
        self._claim(count)
        data = self._stream.read(count)
        if len(data) != count:
            self._refuse("truncated", "it became shorter while it was read")
        return data

    def _skip(self, count: int) -> None:
        self._claim(count)
        self._stream.seek(count, os.SEEK_CUR)

    def _claim(self, count: int) -> None:
        if count > self._left():
            if self._end < self._size and self._position + count <= self._size:
                self._refuse("header_too_large", f"its header is longer than {self._limits.header} bytes")
            self._refuse("truncated", f"it claims {count} bytes at {self._position}, and it has {self._size}")
        self._position += count

    def _refuse(self, code: str, what: str) -> NoReturn:
        raise ModelError(f"`{self._label}` is not a sound GGUF file: {what}", code=code)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
