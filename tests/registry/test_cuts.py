"""Cuts: which a file has, where its segments end, and that both follow from the bytes alone."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import blake3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from modelyard.errors import NotFoundError
from modelyard.registry.cuts import SEGMENT_LIMIT, SMALL, find_cut
from weights.gguf_files import gguf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MIB = 1 << 20

GOLDEN = (
    2087176,
    1098358,
    1783274,
    1533579,
    700154,
    1684546,
    1562235,
    525989,
    1198355,
    442081,
    468806,
    1100373,
    712909,
    1121398,
    757983,
)


def stream(size: int, seed: bytes = b"cdc") -> bytes:
    """Bytes that everybody can make: BLAKE3's output for a seed, as long as one likes."""
    return blake3.blake3(seed).digest(length=size)


def specified(data: bytes) -> list[int]:
    """`cdc/1` written from docs/design/store-format.md, vectorised only in that the hash is a sum over its last 64 bytes."""
    gear = np.array([int.from_bytes(hashlib.md5(bytes([b]) * 64).digest()[:8], "big") for b in range(256)], np.uint64)
    least, middle, most = 262144, 1048576, 4194304
    strict, loose = np.uint64(0x0000D91767537000), np.uint64(0x0000D91707537000)
    values = gear[np.frombuffer(data, np.uint8)]
    found, start = [], 0
    while start < len(data):
        left = len(data) - start
        length = min(left, most)
        if left > least:
            end, turn = length // 2 * 2, min(middle, length) // 2 * 2
            part = values[start + least : start + end]
            hashed = part.copy()  # of the last 1 byte, then 2, 4, ... 64: what is older is shifted out
            for width in (1, 2, 4, 8, 16, 32):
                hashed[width:] += hashed[:-width].copy() << np.uint64(width)
            masks = np.where(np.arange(least, end) < turn, strict, loose)
            cuts = np.flatnonzero((hashed & masks) == 0)
            length = least + int(cuts[0]) if len(cuts) else length
        found.append(length)
        start += length
    return found


def safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> None:
    """A sparse safetensors file from names to dtype, shape and bytes."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        sink.truncate(8 + len(text) + at)


def test_small_files_are_one_segment(tmp_path: Path) -> None:
    """Up to 8 MiB, and without tensors, a file is one segment; an empty one has none."""
    path = tmp_path / "x"
    for size in (0, 1, SMALL):
        path.write_bytes(bytes(size))
        cut = find_cut(path)
        assert (cut.name, cut.sizes) == ("whole/1", (size,) if size else ())
    path.write_bytes(bytes(SMALL + 1))
    assert find_cut(path).name == "cdc/1"


def test_safetensors_are_cut_at_tensors(tmp_path: Path) -> None:
    """Header, then each tensor in order of its bytes, whatever the order of names; an empty tensor has no segment."""
    path = tmp_path / "anything.bin"
    safetensors(path, {"z": ("F32", [100, 100], 40000), "none": ("F32", [0, 7], 0), "a": ("BF16", [20000], 40000)})
    cut = find_cut(path)
    assert cut.name == "safetensors/1"
    assert cut.sizes[1:] == (40000, 40000)
    assert sum(cut.sizes) == path.stat().st_size


def test_small_safetensors_are_one_segment(tmp_path: Path) -> None:
    """Below 64 KiB nothing is looked at."""
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(100, np.float32)}, path)
    assert find_cut(path).name == "whole/1"


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "pieces"),
    [
        ("F32", [33, MIB], 132 * MIB, [64 * MIB, 64 * MIB, 4 * MIB]),  # rows of 4 MiB: 16 to a piece
        ("F32", [5, 6 * MIB], 120 * MIB, [48 * MIB, 48 * MIB, 24 * MIB]),  # rows of 24 MiB: 2 to a piece
        ("U8", [1, 100 * MIB], 100 * MIB, [64 * MIB, 36 * MIB]),  # one row is longer than a segment
        ("F4", [3, 50 * MIB, 2], 150 * MIB, [50 * MIB, 50 * MIB, 50 * MIB]),
        ("F4", [144 * MIB - 16], 72 * MIB - 8, [64 * MIB, 8 * MIB - 8]),  # half a byte to a row
        ("U8", [64 * MIB], 64 * MIB, [64 * MIB]),
    ],
)
def test_large_tensors_are_cut_in_rows(
    tmp_path: Path, dtype: str, shape: list[int], size: int, pieces: list[int]
) -> None:
    """Above 64 MiB a piece has as many whole rows as fit, so that tensors of one shape are cut alike."""
    path = tmp_path / "model.safetensors"
    safetensors(path, {"w": (dtype, shape, size)})
    assert list(find_cut(path).sizes[1:]) == pieces


def test_gguf_is_cut_at_tensors(tmp_path: Path) -> None:
    """Up to the data section, then from tensor to tensor with the padding after it, the last to the end."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"a": (0, [10_001]), "b": (8, [3200, 3]), "c": (0, [20_000])}) + b"trailing")
    cut = find_cut(path)
    assert cut.name == "gguf/1"
    assert cut.sizes[1:] == (40_032, 10_208, 80_008)
    assert sum(cut.sizes) == path.stat().st_size


@pytest.mark.row(24)
@pytest.mark.parametrize(
    "start", [b"GGUF\x03\0\0\0" + b"\xff" * 16, b"\xff" * 8 + b"{", b"GGUF", b"\x10" + bytes(7) + b"{}"]
)
def test_what_only_claims_to_hold_tensors_is_cut_by_content(tmp_path: Path, start: bytes) -> None:
    """An unsound header is no error in a cut: the file is divided as any other, by its size."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(start + bytes(1 << 17))
    assert find_cut(path).name == "whole/1"
    path.write_bytes(start + bytes(SMALL))
    assert find_cut(path).name == "cdc/1"


def test_the_name_decides_nothing(tmp_path: Path) -> None:
    """The same bytes under another name, or with a hint, have the same cut."""
    one, two = tmp_path / "model.safetensors", tmp_path / "notes.txt"
    safetensors(one, {"w": ("F32", [100, 1000], 400_000)})
    two.write_bytes(one.read_bytes())
    assert find_cut(one) == find_cut(two) == find_cut(two, "data.jsonl")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """There is no cut of nothing."""
    with pytest.raises(NotFoundError):
        find_cut(tmp_path / "x")


def test_chunks_are_pinned(tmp_path: Path) -> None:
    """Golden: these boundaries never change, whatever library finds them; another one would be another cut."""
    path = tmp_path / "x"
    path.write_bytes(stream(16 * MIB))
    assert find_cut(path).sizes == GOLDEN
    path.write_bytes(bytes(9 * MIB + 1))
    assert find_cut(path).sizes == (4 * MIB, 4 * MIB, MIB + 1)


def test_chunks_are_as_specified(tmp_path: Path) -> None:
    """An implementation written from the specification finds the same boundaries, for odd sizes and repetitive bytes too."""
    noise = stream(13 * MIB + 7, b"a")
    lines = b"".join(
        b'{"id": %d, "text": "%s"}\n' % (at, stream(40, b"%d" % at).hex().encode()) for at in range(90_000)
    )
    for data in (noise, noise[: SMALL + 1], lines, bytes(SMALL + 3)):
        path = tmp_path / "x"
        path.write_bytes(data)
        assert list(find_cut(path).sizes) == specified(data)


def test_an_insertion_changes_few_chunks(tmp_path: Path) -> None:
    """The point of it: bytes put in at the front leave the chunks after them as they were."""
    path, data = tmp_path / "x", stream(16 * MIB)
    path.write_bytes(data)
    before = set(digests(data, find_cut(path).sizes))
    changed = b"a new first line\n" + data
    path.write_bytes(changed)
    after = digests(changed, find_cut(path).sizes)
    assert len(set(after) - before) <= 2


def digests(data: bytes, sizes: Sequence[int]) -> list[str]:
    found, at = [], 0
    for size in sizes:
        found.append(blake3.blake3(data[at : at + size]).hexdigest())
        at += size
    return found


@given(st.binary(min_size=0, max_size=300), st.integers(0, 1 << 17))
@settings(max_examples=60, deadline=None)
def test_every_cut_covers_the_file(tmp_path_factory: pytest.TempPathFactory, start: bytes, more: int) -> None:
    """Whatever a file holds, its segments cover it, none is empty, and none is too long."""
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(start + bytes(more))
    sizes = find_cut(path).sizes
    assert sum(sizes) == len(start) + more
    assert all(0 < size <= SEGMENT_LIMIT for size in sizes)
