"""GGUF headers: sound ones are read, and what only claims is refused before anything is read or allocated."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import ModelError, NotFoundError
from modelyard.weights.gguf import GGUF_CODES, GgufLimits, read_gguf
from weights.gguf_files import gguf, text

if TYPE_CHECKING:
    from pathlib import Path

SOUND = gguf({"a": (0, [8]), "b": (2, [64, 2])})
ARRAY = text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"one") + text(b"two")
ALIGNED = text(b"general.alignment") + struct.pack("<II", 4, 64)


def info(name: bytes = b"a", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


def head(tensors: int, keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest + bytes(256)


def test_a_sound_header(tmp_path: Path) -> None:
    """Tensors with their types, shapes and places; metadata of every kind is passed over."""
    scalars = [
        text(b"k%d" % kind) + struct.pack("<I", kind) + bytes(width)
        for kind, width in {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items()
    ]
    nested = text(b"nested") + struct.pack("<IIQIQ", 9, 9, 1, 4, 3) + bytes(12)
    name = text(b"name") + struct.pack("<I", 8) + text(b"llama")
    path = tmp_path / "x.gguf"
    path.write_bytes(
        gguf({"a": (0, [8]), "b": (2, [64, 2])}, keys=[*scalars, name, ARRAY, nested, ALIGNED], alignment=64)
    )
    header = read_gguf(path)
    assert (header.version, header.alignment) == (3, 64)
    assert [(t.name, t.type, t.shape, t.start, t.end) for t in header.tensors] == [
        ("a", "F32", (8,), 0, 32),
        ("b", "Q4_0", (64, 2), 64, 136),
    ]
    assert header.data_start % 64 == 0
    assert header.data_start + 136 == path.stat().st_size


def test_version_two_is_read(tmp_path: Path) -> None:
    """Versions 2 and 3 differ in nothing that is read here."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf({"a": (0, [8])}, version=2))
    assert read_gguf(path).version == 2


@pytest.mark.row(24)
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_gguf"),
        (b"GGU", "not_gguf"),
        (b"GGML" + bytes(100), "not_gguf"),
        (b"GGUF\x03", "truncated"),
        (head(0, 0, version=1), "unknown_version"),
        (b"GGUF\0\0\0\x03" + bytes(100), "unknown_version"),  # big-endian
        (head(1 << 62, 0), "too_many_tensors"),
        (head(100, 0), "too_many_tensors"),  # would fit the limit, and not the file
        (head(0, 1 << 62), "too_many_keys"),
        (head(0, 1, text(b"k") + struct.pack("<I", 999)), "unknown_type"),
        (head(0, 1, text(b"k") + struct.pack("<IQ", 8, 1 << 63)), "truncated"),  # a string longer than the file
        (head(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 62)), "too_many_items"),
        (head(0, 1, text(b"k") + struct.pack("<IIQ", 9, 10, 1 << 62)), "truncated"),  # numbers: their bytes are claimed
        (head(0, 1, text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6), "too_many_items"),
        (head(0, 1, struct.pack("<Q", 1 << 62)), "bad_name"),
        (head(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 3)), "bad_alignment"),
        (head(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)), "bad_alignment"),
        (head(0, 1, text(b"general.alignment") + struct.pack("<IQ", 10, 32)), "bad_alignment"),
        (head(0, 2, ALIGNED + ALIGNED), "bad_alignment"),
        (head(1, 0, info(kind=999)), "unknown_type"),
        (head(1, 0, info(kind=4)), "unknown_type"),  # one that was taken out of the format
        (head(1, 0, info(dims=())), "bad_shape"),
        (head(1, 0, info(dims=(1, 1, 1, 1, 1))), "bad_shape"),
        (head(1, 0, info(dims=(0,))), "bad_shape"),
        (head(1, 0, info(kind=2, dims=(33,))), "bad_shape"),
        (head(1, 0, info(dims=(1 << 32, 1 << 32))), "overflow"),
        (head(1, 0, info(dims=(1 << 63, 2, 2))), "overflow"),
        (head(1, 0, info(offset=1 << 63)), "overflow"),
        (head(1, 0, info(dims=(1 << 40,))), "truncated"),  # a declared size beyond the file
        (head(1, 0, info(offset=1)), "bad_offsets"),
        (head(1, 0, info(offset=32)), "bad_offsets"),
        (head(2, 0, info() + info(b"b")), "bad_offsets"),  # one over the other
        (head(2, 0, info() + info(offset=32)), "duplicate_key"),
        (head(1, 0, info(name=b"")), "bad_name"),
        (head(1, 0, info(name=b"a\x1b[31m")), "bad_name"),
        (head(1, 0, info(name=b"\xff")), "bad_name"),
        (head(1, 0, info(name="a\u202eb".encode())), "bad_name"),
    ],
)
def test_hostile_headers(tmp_path: Path, data: bytes, code: str) -> None:
    """Every claim that cannot be is refused by name, quickly, and with no memory to speak of."""
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as error:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert error.value.code == code
    assert code in GGUF_CODES


def test_every_code_is_tried() -> None:
    """A code that no hostile header has would be one that nobody has seen work; `header_too_large` has a test of its own."""
    marks = test_hostile_headers.pytestmark  # type: ignore[attr-defined]  # pytest puts it there
    tried = {code for mark in marks if mark.name == "parametrize" for _, code in mark.args[1]}
    assert tried | {"header_too_large"} == set(GGUF_CODES)


def test_a_header_is_bounded(tmp_path: Path) -> None:
    """Limits are the caller's to set: a header that is longer is refused, not read."""
    path = tmp_path / "x.gguf"
    path.write_bytes(SOUND)
    with pytest.raises(ModelError) as error:
        read_gguf(path, limits=GgufLimits(header=90))
    assert error.value.code == "header_too_large"


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """As for every reader."""
    with pytest.raises(NotFoundError):
        read_gguf(tmp_path / "x.gguf")


@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_a_changed_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, place: int, put: bytes) -> None:
    """Fuzz: whatever bytes are put anywhere, the answer is a header inside the file or a ModelError."""
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes((SOUND[:place] + put + SOUND[place + len(put) :])[: len(SOUND)])
    header = None
    with suppress(ModelError):  # any other exception fails the test
        header = read_gguf(path)
    assert header is None or all(
        0 <= t.start < t.end <= path.stat().st_size - header.data_start for t in header.tensors
    )


@given(st.integers(0, len(SOUND) - 1))
@settings(max_examples=100, deadline=None)
def test_a_cut_short_file_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """No prefix of a file passes for it."""
    path = tmp_path_factory.getbasetemp() / "short.gguf"
    path.write_bytes(SOUND[:length])
    with pytest.raises(ModelError):
        read_gguf(path)


def test_a_full_header_has_arrays_and_long_texts(tmp_path: Path) -> None:
    """`full=True` keeps what the header otherwise counts or leaves out: arrays of numbers, bytes, texts and arrays, and long texts."""
    long = b"x" * ((1 << 20) + 1)
    keys = [
        text(b"numbers") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 2.0),
        text(b"bytes") + struct.pack("<IIQ3B", 9, 0, 3, 1, 2, 255),
        text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text("h\u00e9".encode()) + text(b""),
        text(b"nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ2i", 5, 2, -1, 3),
        text(b"long") + struct.pack("<I", 8) + text(long),
    ]
    path = tmp_path / "full.gguf"
    path.write_bytes(gguf({"w": (0, (8,))}, keys=keys))
    assert read_gguf(path, full=True).metadata == {
        "numbers": [0.5, 2.0],
        "bytes": b"\x01\x02\xff",
        "words": ["h\u00e9", ""],
        "nested": [[-1, 3]],
        "long": long.decode(),
    }
    assert read_gguf(path).metadata == {"numbers": 2, "bytes": 3, "words": 2, "nested": 1}


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (struct.pack("<IIQ", 9, 4, 1 << 40), "truncated"),
        (struct.pack("<IIQ", 9, 0, 1 << 62), "truncated"),
        (struct.pack("<IIQ", 9, 8, 1 << 30), "too_many_items"),
        (struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6, "too_many_items"),
        (struct.pack("<IIQI", 9, 99, 1, 0), "unknown_type"),
    ],
)
def test_a_full_header_allocates_nothing_that_is_not_there(key: bytes, code: str, tmp_path: Path) -> None:
    """An array that claims more than the file holds is refused before a list is made of the number."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(gguf({"w": (0, (8,))}, keys=[text(b"k") + key]))
    with pytest.raises(ModelError) as caught:
        read_gguf(path, full=True)
    assert caught.value.code == code
