"""Our header reader against the safetensors library, and against headers changed at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from modelyard.errors import ModelError
from modelyard.weights.headers import CODES, Header, TensorInfo, parse_header, read_header

NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_, "F64": np.float64}
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
    max_size=6,
)
METADATA = st.dictionaries(NAMES, st.text(max_size=20), max_size=3)


def saved(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> bytes:
    """A file as the library writes it."""
    arrays: dict[str, Any] = {name: np.zeros(shape, DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    return bytes(save(arrays, metadata or None))


def split(data: bytes) -> tuple[bytes, int]:
    """A file's header text, and the size of what follows it."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], len(data) - 8 - length


def header_or_error(text: bytes, size: int) -> Header | ModelError:
    """What reading this header gives; any other exception fails the test."""
    try:
        return parse_header(text, size, "x")
    except ModelError as error:
        return error


@given(TENSORS, METADATA)
@settings(deadline=None, max_examples=60)
def test_reads_what_the_library_writes(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> None:
    """Names, dtypes, shapes and metadata of any file that the library writes come back as they were given."""
    header = parse_header(*split(saved(tensors, metadata)), "x")
    assert {name: (info.dtype, list(info.shape)) for name, info in header.tensors.items()} == tensors
    assert header.metadata == metadata


@given(st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_changed_bytes_are_refused_or_read(data: st.DataObject) -> None:
    """Bytes changed, cut or put in anywhere give a sound header or a `ModelError` with a listed code, nothing else."""
    text, size = split(saved({"a.b": ("F32", [2, 3]), "c": ("U8", [5])}, {"format": "pt"}))
    changed = bytearray(text)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1)) if changed else 0
        piece = data.draw(
            st.sampled_from([b"", b"0", b'"', b"{", b"[", b"-", b"9" * 20, b",", b"\\u0000"]) | st.binary(max_size=2)
        )
        changed[place : place + data.draw(st.integers(0, 3))] = piece
    header = header_or_error(bytes(changed), size)
    if isinstance(header, Header):
        assert sum(info.end - info.start for info in header.tensors.values()) == size
    else:
        assert header.code in CODES
        assert header.message.isprintable()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["w", "__metadata__", "dtype", ""]), JSON_VALUES), st.integers(0, 100))
@settings(deadline=None, max_examples=200)
def test_any_json_is_refused_or_read(value: dict[str, Any], size: int) -> None:
    """Whatever JSON a header holds, the outcome is a header or a `ModelError` with a listed code."""
    header = header_or_error(json.dumps(value).encode(), size)
    assert isinstance(header, Header) or header.code in CODES


def test_reads_a_file(tmp_path: Path) -> None:
    """From a file come the tensors, the metadata, and where the first tensor's bytes begin."""
    path = tmp_path / "model.safetensors"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"w": array}, path, {"format": "pt"})
    header = read_header(path)
    assert header.tensors == {"w": TensorInfo("F32", (2, 3), 0, 24)}
    assert header.metadata == {"format": "pt"}
    assert path.read_bytes()[header.data_start :] == array.tobytes()


def test_file_order_is_by_place(tmp_path: Path) -> None:
    """`in_file_order` lists tensors by where their bytes lie, whatever the order of the header's text."""
    save_file({"z": np.zeros(2, np.float64), "a": np.zeros(2, np.uint8)}, tmp_path / "x")
    assert [name for name, _ in read_header(tmp_path / "x").in_file_order()] == ["z", "a"]


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((3,), 3), ((2, 3), 6), ((0, 9), 0)])
def test_elements(shape: tuple[int, ...], count: int) -> None:
    """A tensor's elements are the product of its shape, 1 for a scalar."""
    assert TensorInfo("F32", shape, 0, 4 * count).elements == count
