"""The codecs of packed and delta segments: `planes/1` and `delta/1`."""

from __future__ import annotations

import json
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from modelyard.digest import digest_bytes
from modelyard.errors import IntegrityError, InternalError
from modelyard.store import codecs
from modelyard.store.codecs import decode_delta, decode_planes, encode_delta, encode_planes

DTYPES = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "C64",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "I16",
    "U16",
    "I32",
    "U64",
    "BOOL",
    "F4",
    "BYTES",
]
ROOT = Path(__file__).parent.parent.parent
SPECIFICATION = (ROOT / "docs/design/store-format.md").read_text()
GOLDEN = json.loads((Path(__file__).parent / "codecs.json").read_text())


def weights(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers that are distributed roughly as a layer's are."""
    return np.random.default_rng(seed).laplace(0, 0.02, count).astype(np.float32)


def bf16(numbers: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    return (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()


def pair(count: int) -> tuple[bytes, bytes]:
    """A layer and the same after an update of like size everywhere, both in bf16."""
    base = weights(count)
    return bf16(base), bf16(base + np.random.default_rng(1).laplace(0, 2e-4, count).astype(np.float32))


@st.composite
def segments(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two segments of one size: random bytes, runs, and mixtures of both; of any size above 0."""
    data = draw(st.binary(min_size=1, max_size=300)) * draw(st.integers(1, 40))
    changed = bytearray(data)
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=20)):
        changed[place] ^= draw(st.integers(0, 255))
    return data, bytes(changed)


@given(segments(), st.sampled_from(DTYPES))
def test_any_bytes_come_back_from_planes(pair_of: tuple[bytes, bytes], dtype: str) -> None:
    """Whatever the bytes and the dtype, and where the size is no multiple of the element: the round trip is exact."""
    data, _ = pair_of
    assert decode_planes(encode_planes(data, dtype), dtype, len(data)) == data


@given(segments(), st.sampled_from(DTYPES))
def test_any_bytes_come_back_from_a_delta(pair_of: tuple[bytes, bytes], dtype: str) -> None:
    """Likewise against a base, equal or near or far."""
    data, base = pair_of
    assert decode_delta(encode_delta(data, base, dtype), base, dtype, len(data)) == data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 8, 4096, (2 << 20) + 4, (8 << 20) + 3])
def test_sizes_at_the_borders_of_blocks_come_back(dtype: str, size: int) -> None:
    """One byte, less than an element, one block and a little, several blocks."""
    generator = np.random.default_rng(size)
    data = generator.integers(0, 256, size, np.uint8).tobytes()
    base = bytearray(data)
    base[:: max(1, size // 50)] = bytes(len(base[:: max(1, size // 50)]))
    assert decode_planes(encode_planes(data, dtype), dtype, size) == data
    assert decode_delta(encode_delta(data, bytes(base), dtype), bytes(base), dtype, size) == data


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81, 0x0001])
def test_odd_numbers_keep_their_bits(bits: int) -> None:
    """Zeros of either sign, infinities, NaNs of every payload and subnormals are bit patterns like others, as value and as base."""
    odd = np.full(3000, bits, "<u2").tobytes()
    plain = bf16(weights(3000))
    for data, base in ((odd, plain), (plain, odd), (odd, odd)):
        assert decode_delta(encode_delta(data, base, "BF16"), base, "BF16", 6000) == data
    assert decode_planes(encode_planes(odd, "BF16"), "BF16", 6000) == odd


def test_planes_of_a_layer_are_shorter() -> None:
    """A layer in bf16 keeps at most 0.70 of its size: the exponents take few values."""
    data, _ = pair(200_000)
    assert len(encode_planes(data, "BF16")) <= 0.70 * len(data)


def test_a_delta_of_a_small_update_is_far_shorter() -> None:
    """An update of 1 % keeps at most 0.45, less than differences in the order of their places, and those less than XOR."""
    base, data = pair(200_000)
    block, other = np.frombuffer(data, "<u2"), np.frombuffer(base, "<u2")
    squeeze = codecs._squeezer("BF16")
    xor, difference, grouped = (
        len(codecs._planes(mode, codecs._mixed(mode, block, other), squeeze)) for mode in (0, 1, 2)
    )
    assert grouped < difference < xor
    assert len(encode_delta(data, base, "BF16")) <= grouped + 1 <= 0.45 * len(data)


def test_a_delta_keeps_the_order_of_places_where_that_is_shorter() -> None:
    """Where a few rows of an embedding were learnt anew, the block is written in the order of its places."""
    base, _ = pair(200_000)
    data = base[:300_000] + random.Random(0).randbytes(30_000) + base[330_000:]
    payload = encode_delta(data, base, "BF16")
    assert payload[1] == codecs._DIFFERENCE
    assert decode_delta(payload, base, "BF16", len(data)) == data


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_grows_by_a_few_bytes_only(dtype: str) -> None:
    """What cannot be compressed is stored: 5 bytes a plane, one a block and one a segment more."""
    noise = random.Random(0).randbytes(100_000)
    assert len(encode_planes(noise, dtype)) <= len(noise) + 1 + 1 + 8 * 5


def test_zeros_cost_next_to_nothing() -> None:
    """A megabyte of zeros, and a delta of a megabyte against itself, are a hundred bytes or so."""
    data = bytes(1 << 20)
    noise = random.Random(0).randbytes(1 << 20)
    for dtype in DTYPES:
        assert len(encode_planes(data, dtype)) < 500
        assert len(encode_delta(noise, noise, dtype)) < 500


def test_a_base_of_another_size_is_no_base() -> None:
    """Encoding against it is a fault of ours; decoding with it is damage."""
    with pytest.raises(InternalError, match="10 bytes against 9"):
        encode_delta(bytes(10), bytes(9), "BF16")
    with pytest.raises(IntegrityError, match="its base has 9 bytes"):
        decode_delta(encode_delta(bytes(10), bytes(10), "BF16"), bytes(9), "BF16", 10)


# -- what was written once is read for ever ----------------------------------------------------------------------------


@pytest.mark.parametrize("vector", GOLDEN, ids=[vector["name"] for vector in GOLDEN])
def test_pinned_payloads_decode_as_ever(vector: dict[str, Any]) -> None:
    """Payloads that were written once decode to the same segments for ever, whatever is written nowadays."""
    payload, base = bytes.fromhex(vector["payload"]), bytes.fromhex(vector.get("base", ""))
    size, dtype = vector["size"], vector["dtype"]
    found = decode_delta(payload, base, dtype, size) if base else decode_planes(payload, dtype, size)
    assert found.hex() == vector["segment"]


def test_every_mode_and_width_is_pinned() -> None:
    """No width, mode or kind of plane is without a pinned payload."""
    pinned = {(vector["codec"], bytes.fromhex(vector["payload"])[1]) for vector in GOLDEN if vector["size"] > 8}
    assert pinned == {("planes/1", 0), ("planes/1", 1), ("delta/1", 0), ("delta/1", 1), ("delta/1", 2)}
    assert {bytes.fromhex(vector["payload"])[0] for vector in GOLDEN} == {1, 2, 4, 8}
    assert {bytes.fromhex(vector["payload"])[2] for vector in GOLDEN if vector["size"] > 8} == {0, 1}


def test_the_decoder_in_the_specification_reads_what_is_written() -> None:
    """The decoder that the specification prints, run as printed, agrees with ours on every mode, width and tail."""
    (text,) = re.findall(r"```python\n(def decode_delta.*?)```", SPECIFICATION, re.DOTALL)
    names: dict[str, Any] = {"zstandard": zstandard}
    exec(text, names)
    base, data = pair(3000)
    for dtype in DTYPES:
        for cut in (0, 1, 3):
            payload = encode_delta(data[cut:], base[cut:], dtype)
            assert names["decode_delta"](payload, base[cut:], len(data) - cut) == data[cut:], dtype
    for vector in GOLDEN:
        if "base" in vector:
            payload, other = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["base"])
            assert names["decode_delta"](payload, other, vector["size"]).hex() == vector["segment"]


# -- payloads that are none --------------------------------------------------------------------------------------------


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def plane(kind: int, kept: bytes, length: int | None = None) -> bytes:
    return bytes([kind]) + (len(kept) if length is None else length).to_bytes(4, "little") + kept


UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10))
HOSTILE = {
    "empty": b"",
    "width 0": b"\0",
    "width 3": b"\3\0" + plane(0, bytes(10)),
    "no mode": b"\1",
    "mode 9": b"\1\x09" + plane(0, bytes(10)),
    "kind 2": b"\1\0" + plane(2, bytes(10)),
    "plane too short": b"\1\0" + plane(0, bytes(9)),
    "plane too long": b"\1\0" + plane(0, bytes(11)),
    "length beyond the end": b"\1\0" + plane(0, bytes(10), 1 << 31),
    "ends in a length": b"\1\0\0\x0a\0",
    "a bomb": b"\1\0" + plane(1, frame(bytes(1 << 28))),
    "a frame that is shorter": b"\1\0" + plane(1, frame(bytes(9))),
    "a frame without size": b"\1\0" + plane(1, UNSIZED),
    "no frame": b"\1\0" + plane(1, b"not a frame"),
    "a cut frame": b"\1\0" + plane(1, frame(bytes(range(10)))[:-2]),
    "two frames": b"\1\0" + plane(1, frame(bytes(10)) + frame(bytes(10))),
    "a skippable frame": b"\1\0" + plane(1, b"\x50\x2a\x4d\x18\x0a\0\0\0" + bytes(10)),
    "bytes after the end": b"\1\0" + plane(0, bytes(10)) + b"\0",
    "no tail": b"\4\0" + plane(0, bytes(2)) * 4 + b"\0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_payload_that_is_none_is_damage(name: str) -> None:
    """Whatever is wrong with a payload is an `IntegrityError` that names the codec, before anything large is made."""
    with pytest.raises(IntegrityError, match="planes/1"):
        decode_planes(HOSTILE[name], "BYTES", 10)
    with pytest.raises(IntegrityError, match="delta/1"):
        decode_delta(HOSTILE[name], bytes(10), "BYTES", 10)


@pytest.mark.parametrize("size", [0, -1, (64 << 20) + 1, 1 << 60])
def test_a_size_that_no_segment_has_is_damage(size: int) -> None:
    """A record that promises more than 64 MiB, or nothing, is refused before memory is asked for."""
    with pytest.raises(IntegrityError, match="it is for"):
        decode_planes(b"\1", "BYTES", size)
    with pytest.raises(IntegrityError, match="it is for"):
        decode_delta(b"\1", b"", "BYTES", size)


@given(st.binary(max_size=200), st.integers(1, 40))
def test_random_payloads_are_damage_or_a_segment_of_the_right_size(payload: bytes, size: int) -> None:
    """No bytes whatever make a decoder fail in another way, or hand out another number of bytes."""
    with suppress(IntegrityError):
        assert len(decode_planes(payload, "F32", size)) == size
    with suppress(IntegrityError):
        assert len(decode_delta(payload, bytes(size), "F32", size)) == size


@given(st.data())
def test_a_flipped_bit_is_damage_or_other_bytes_never_a_crash(data: st.DataObject) -> None:
    """A flipped bit in a sound payload is found here or by the digest afterwards."""
    base, segment = pair(400)
    payload = bytearray(encode_delta(segment, base, "BF16"))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode_delta(bytes(payload), base, "BF16", len(segment))
    except IntegrityError:
        return
    assert len(found) == len(segment)
    assert digest_bytes(found) != digest_bytes(segment) or found == segment
