"""Hostile and broken safetensors files: each refused with its code, quickly, without memory that the header asks for."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelError, NotFoundError, PickleError
from modelyard.weights.content import identify
from modelyard.weights.headers import CODES, Limits, parse_header, read_header

GOOD = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: Any = "U8") -> dict[str, Any]:
    """A header entry; by default bytes that fill `start` to `end`."""
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def write(folder: Path, header: bytes | dict[str, Any], data: bytes = b"") -> Path:
    """A file with this header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refusal(path: Path, limits: Limits | None = None) -> ModelError:
    """The error that reading this file raises."""
    with pytest.raises(ModelError) as caught:
        read_header(path, limits=limits)
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.row(1)
def test_file_too_small_for_a_length(tmp_path: Path, size: int) -> None:
    """A file of fewer than 8 bytes is `header_too_small`."""
    (tmp_path / "x").write_bytes(bytes(size))
    assert refusal(tmp_path / "x").code == "header_too_small"


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (1 << 63, "header_too_large"),
        ((1 << 64) - 1, "header_too_large"),
        (25_000_001, "header_too_large"),
        (10_000, "truncated"),
    ],
)
@pytest.mark.row(2, 3)
def test_length_beyond_the_file(tmp_path: Path, length: int, code: str) -> None:
    """A length that is too large or goes beyond the file is refused before anything of that size is allocated."""
    path = tmp_path / "x"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path).code == code
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024  # KiB


@pytest.mark.parametrize("length", [0, 1])
def test_length_too_short_for_an_object(tmp_path: Path, length: int) -> None:
    """A header of 0 or 1 bytes is no JSON object."""
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert refusal(tmp_path / "x").code == "header_too_small"


@pytest.mark.row(3)
def test_header_limit_is_adjustable(tmp_path: Path) -> None:
    """A header over a given limit is refused, and one just at it is read."""
    path = write(tmp_path, GOOD, bytes(16))
    size = len(json.dumps(GOOD))
    assert read_header(path, limits=Limits(header=size)).tensors
    assert refusal(path, Limits(header=size - 1)).code == "header_too_large"


@pytest.mark.row(4)
def test_a_million_tensors(tmp_path: Path) -> None:
    """A legal header of very many empty tensors is refused in under a second."""
    one = b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    path = write(tmp_path, b"{" + b",".join(one % number for number in range(400_000)) + b"}")
    start = time.perf_counter()
    assert refusal(path).code == "too_many_tensors"
    assert time.perf_counter() - start < 1


def test_as_many_tensors_under_another_spelling() -> None:
    """Writing the keys with JSON escapes does not get around the limit."""
    one = '"%d":{"dtype":"U8","shape":[0],"data\\u005foffsets":[0,0]}'
    text = "{" + ",".join(one % number for number in range(1100)) + "}"
    with pytest.raises(ModelError) as caught:
        parse_header(text.encode(), 0, "x", limits=Limits(tensors=1000))
    assert caught.value.code == "too_many_tensors"


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
@pytest.mark.row(5)
def test_deep_nesting(tmp_path: Path, bracket: bytes) -> None:
    """100,000 levels of nesting are a refusal, not a RecursionError."""
    path = write(tmp_path, b'{"w":' + bracket * 100_000 + b"}")
    assert refusal(path).code == "bad_header"


@pytest.mark.parametrize(
    "text",
    [
        b'\xef\xbb\xbf{"w":1}',
        b' {"w":1}',
        b"[]",
        b'"w"',
        b"{} x",
        b"{}\x00",
        b"{}\n",
        b'{"\xff":1}',
        b'{"w":NaN}',
        b'{"w":Infinity}',
        b"{'w':1}",
        b"{{",
        b'{"w":1e999999999}',
        b'{"w":' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.row(6)
def test_not_the_json_it_should_be(tmp_path: Path, text: bytes) -> None:
    """A byte-order mark, a leading space, something behind the object, bad UTF-8 or no JSON at all is refused."""
    assert refusal(write(tmp_path, text)).code in {"bad_header", "bad_tensor"}


def test_trailing_spaces_are_padding(tmp_path: Path) -> None:
    """Spaces behind the object are what libraries pad with, and are read."""
    assert read_header(write(tmp_path, json.dumps(GOOD).encode() + b"   ", bytes(16))).tensors


@pytest.mark.parametrize(
    "text",
    [
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"a":"1","a":"2"}}',
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0077":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
@pytest.mark.row(7)
def test_duplicate_keys(tmp_path: Path, text: bytes) -> None:
    """A key that is there twice is refused at every level, also in another spelling."""
    assert refusal(write(tmp_path, text, b"\0")).code == "duplicate_key"


@pytest.mark.parametrize(
    ("header", "size", "code"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "overlap"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "overlap"),
        ({"a": entry(0, 8), "b": entry(2, 4)}, 8, "overlap"),
        ({"a": entry(0, 4), "b": entry(5, 6)}, 6, "hole"),
        ({"a": entry(1, 4)}, 4, "hole"),
        ({"a": entry(0, 4), "z": entry(2, 2)}, 4, "overlap"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, 4, "bad_offsets"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}}, 4, "bad_offsets"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0.0, 4.0]}}, 4, "bad_offsets"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 8]}}, 4, "bad_offsets"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}}, 1, "bad_offsets"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": "04"}}, 4, "bad_offsets"),
    ],
)
@pytest.mark.row(8)
def test_places_that_do_not_cover_the_data(tmp_path: Path, header: dict[str, Any], size: int, code: str) -> None:
    """Overlaps, aliases, holes, and offsets that are negative, reversed or no whole numbers are refused."""
    assert refusal(write(tmp_path, header, bytes(size))).code == code


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ([-1], "bad_shape"),
        ([2.0], "bad_shape"),
        ([True], "bad_shape"),
        ("4", "bad_shape"),
        ([1] * 65, "bad_shape"),
        ([1 << 32, 1 << 32], "overflow"),
        ([4194305, 4194305, 211106198978564], "overflow"),
        ([1 << 63, 0], "overflow"),
        ([5], "size_mismatch"),
        ([], "size_mismatch"),
    ],
)
@pytest.mark.row(9)
def test_shapes_that_lie(tmp_path: Path, shape: Any, code: str) -> None:
    """Shapes that are negative, no whole numbers, wrap around 64 bits, or do not fit their bytes are refused."""
    assert refusal(write(tmp_path, {"a": entry(0, 4, shape)}, bytes(4))).code == code


@pytest.mark.parametrize("dtype", ["F128", "f32", "", 7, None, ["F32"]])
@pytest.mark.row(10)
def test_unknown_dtype(tmp_path: Path, dtype: Any) -> None:
    """A dtype that the format has not is refused, with the list of those it has."""
    error = refusal(write(tmp_path, {"a": entry(0, 4, dtype=dtype)}, bytes(4)))
    assert error.code == "unknown_dtype"
    assert "BF16" in error.message


@pytest.mark.row(10)
def test_elements_that_do_not_fill_bytes(tmp_path: Path) -> None:
    """Three 4-bit elements do not fill whole bytes."""
    assert refusal(write(tmp_path, {"a": entry(0, 2, [3], "F4")}, bytes(2))).code == "misaligned"


@pytest.mark.row(11)
def test_empty_tensor_with_a_huge_dimension(tmp_path: Path) -> None:
    """A tensor of shape [0, 2^40] is accepted as empty."""
    header = read_header(write(tmp_path, {"z": entry(0, 0, [0, 1 << 40], "F32"), "a": entry(0, 4)}, bytes(4)))
    assert header.tensors["z"].elements == 0


@pytest.mark.parametrize(("size", "code"), [(15, "truncated"), (17, "trailing_bytes"), (0, "truncated")])
@pytest.mark.row(12)
def test_data_too_short_or_too_long(tmp_path: Path, size: int, code: str) -> None:
    """One byte less than the tensors need is `truncated`, one more is `trailing_bytes`."""
    assert refusal(write(tmp_path, GOOD, bytes(size))).code == code


@pytest.mark.parametrize(
    "name", ["", "a\0b", "a\nb", "\x1b[31mred", "a\u202eb", "a\u2066b", "\x85", "\x7f", "\ud800", "n" * 1_000_000]
)
@pytest.mark.row(13)
def test_hostile_tensor_names(tmp_path: Path, name: str) -> None:
    """Names that are empty, huge, or change a terminal are refused, and the message shows them escaped."""
    error = refusal(write(tmp_path, {name: entry(0, 4)}, bytes(4)))
    assert error.code == "bad_name"
    assert error.message.isprintable()
    assert len(error.message) < 1000


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "модель.вес", "权重"])
def test_names_that_are_only_unusual(tmp_path: Path, name: str) -> None:
    """A name is a key and never a path, so slashes and other scripts are accepted."""
    assert name in read_header(write(tmp_path, {name: entry(0, 4)}, bytes(4))).tensors


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, {"a": {"b": "c"}}, [], "x", {"a": "x" * (1 << 20)}, None])
@pytest.mark.row(14)
def test_metadata_that_is_not_strings_or_too_much(tmp_path: Path, metadata: Any) -> None:
    """`__metadata__` is a map of strings of at most 1 MiB."""
    assert refusal(write(tmp_path, {"__metadata__": metadata, **GOOD}, bytes(16))).code == "bad_metadata"


@pytest.mark.parametrize("changed", [{"shape": None}, {"extra": 1}, {"dtype": None}])
def test_entries_with_other_keys(tmp_path: Path, changed: dict[str, Any]) -> None:
    """A tensor has exactly `dtype`, `shape` and `data_offsets`."""
    made = {key: value for key, value in (GOOD["w"] | changed).items() if value is not None}
    assert refusal(write(tmp_path, {"w": made}, bytes(16))).code == "bad_tensor"
    assert refusal(write(tmp_path, {"w": []})).code == "bad_tensor"


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    """A FIFO is refused at once, with nobody writing to it."""
    os.mkfifo(tmp_path / "x")
    assert refusal(tmp_path / "x").code == "not_a_regular_file"


def test_device_and_folder_are_refused(tmp_path: Path) -> None:
    """A device and a folder are no files."""
    assert refusal(Path("/dev/zero")).code == "not_a_regular_file"
    assert refusal(tmp_path).code == "not_a_regular_file"


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is a `NotFoundError`."""
    with pytest.raises(NotFoundError):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "lfs_pointer"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "html_page"),
        (b"PK\x03\x04" + bytes(60), "archive"),
    ],
)
def test_what_it_really_is(tmp_path: Path, content: bytes, code: str) -> None:
    """A git-lfs pointer, a web page or an archive under the name of weights is named as what it is."""
    (tmp_path / "model.safetensors").write_bytes(content)
    assert refusal(tmp_path / "model.safetensors").code == code


def test_pickle_under_another_name(tmp_path: Path) -> None:
    """A pickle called .safetensors is a `PickleError`."""
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(20))
    assert isinstance(refusal(tmp_path / "model.safetensors"), PickleError)


def test_length_that_begins_like_a_pickle(tmp_path: Path) -> None:
    """A header of 640 bytes, whose length reads 80 02, is a header and no pickle."""
    path = write(tmp_path, json.dumps(GOOD).encode().ljust(640), bytes(16))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_header(path).tensors
    assert identify(path) == "safetensors"


def test_codes_are_the_listed_ones() -> None:
    """The list of codes has no doubles; every refusal of the format in this file is one of them."""
    assert len(set(CODES)) == len(CODES)
