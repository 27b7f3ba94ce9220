"""Packs: what a writer makes, and what a reader refuses."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from modelyard.digest import Digest, FileDigests, canonical_json, digest_bytes
from modelyard.errors import IntegrityError, InternalError, NoSpaceError
from modelyard.store import MemoryStore
from modelyard.store.base import ByteArea
from modelyard.store.packs import FileRecord, PackIndex, PackWriter, SegmentRecord, read_index

SEGMENTS = [random.Random(seed).randbytes(100 + seed) for seed in range(5)]
BASE = digest_bytes(b"base")
DELTA = {"codec": "delta/1", "dtype": "BF16"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def write_pack(store: MemoryStore) -> tuple[Digest, PackIndex]:
    """One segment in each encoding, and a file of two of them."""
    with PackWriter(store) as writer:
        digests = [digest_bytes(data) for data in SEGMENTS]
        writer.add(digests[0], len(SEGMENTS[0]), "raw", SEGMENTS[0])
        writer.add(digests[1], len(SEGMENTS[1]), "packed", b"packed", params={"codec": "planes/1", "dtype": "F32"})
        writer.add(digests[2], len(SEGMENTS[2]), "delta", b"delta", params=DELTA, inputs=(BASE,))
        writer.add(digests[3], len(SEGMENTS[3]), "derived", b"", params={"operation": "lora/1"}, inputs=(BASE, BASE))
        writer.add(digests[4], len(SEGMENTS[4]), "quantum", b"?", params={"codec": "of/9"})
        whole = SEGMENTS[0] + SEGMENTS[1]
        writer.add_file(FileRecord(digest_bytes(whole), len(whole), "ab" * 32, "cdc/1", tuple(digests[:2]), "cd" * 20))
        writer.add_file(FileRecord(digest_bytes(b""), 0, "ab" * 32, "whole/1", ()))
        return writer.close()


def test_what_was_written_is_read(store: MemoryStore) -> None:
    """The index comes back as `close` gave it, in order of digests, and every payload is where it says."""
    pack, index = write_pack(store)
    assert read_index(store, pack) == index
    assert [record.digest for record in index.segments] == sorted(record.digest for record in index.segments)
    payloads = {
        record.encoding: store.read_range("packs", pack, record.offset, record.offset + record.length)
        for record in index.segments
    }
    assert payloads == {"raw": SEGMENTS[0], "packed": b"packed", "delta": b"delta", "derived": b"", "quantum": b"?"}
    assert {file.git_blob for file in index.files} == {None, "cd" * 20}


def test_a_pack_is_laid_out_as_specified(store: MemoryStore) -> None:
    """Magic, payloads without gaps, a zstd frame of canonical JSON, its digest, its length, magic: byte by byte."""
    pack, index = write_pack(store)
    data = store.open_file(pack, area="packs").read()
    length = int.from_bytes(data[-16:-8], "little")
    frame = data[-48 - length : -48]
    assert data[: 8 + 100] == b"YARDPAK1" + SEGMENTS[0]
    assert data[8 + 100 : -48 - length] == b"packed" + b"delta" + b"?"
    assert data[-8:] == b"YARDIDX1"
    assert data[-48:-16].hex() == digest_bytes(frame)
    assert zstandard.get_frame_parameters(frame).content_size > 0
    found = json.loads(zstandard.decompress(frame))
    assert canonical_json(found) == zstandard.decompress(frame)
    assert found.keys() == {"format", "files", "segments"}
    derived = next(item for item in found["segments"] if item["encoding"] == "derived")
    assert derived["offset"] == derived["length"] == 0
    assert len(index.segments) == len(found["segments"])


def test_a_segment_is_kept_once(store: MemoryStore) -> None:
    """Adding a segment again adds nothing."""
    with PackWriter(store) as writer:
        for _ in range(3):
            writer.add(digest_bytes(SEGMENTS[0]), 100, "raw", SEGMENTS[0])
        assert writer.size == 108
        _, index = writer.close()
    assert len(index.segments) == 1


def test_a_pack_that_is_left_is_not_published(store: MemoryStore) -> None:
    """An exception in the block, and a block without `close`, store nothing and leave no thread."""
    before = threading.active_count()

    def fail() -> None:
        with PackWriter(store) as writer:
            writer.add(digest_bytes(SEGMENTS[0]), 100, "raw", SEGMENTS[0])
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        fail()
    with PackWriter(store) as writer:
        writer.add(digest_bytes(SEGMENTS[0]), 100, "raw", SEGMENTS[0])
    assert list(store.digests("packs")) == []
    assert threading.active_count() == before


def test_an_empty_pack_is_a_fault_of_ours(store: MemoryStore) -> None:
    """A pack without segments is refused."""
    with PackWriter(store) as writer, pytest.raises(InternalError, match="without segments"):
        writer.close()


def test_a_store_that_fails_is_heard(store: MemoryStore) -> None:
    """What the store raises while it takes the pack comes out of `add` or `close`; nobody hangs, whatever is added."""

    class Full(MemoryStore):
        def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
            next(iter(chunks))
            raise NoSpaceError("no space left")

    def fill() -> None:
        with PackWriter(Full()) as writer:
            for number in range(100):
                writer.add(digest_bytes(b"%d" % number), 1000, "raw", bytes(1000))
            writer.close()

    with pytest.raises(NoSpaceError, match="no space left"):
        fill()


@pytest.mark.parametrize(
    ("size", "encoding", "payload", "params", "inputs"),
    [
        (0, "raw", b"", {}, ()),
        ((64 << 20) + 1, "raw", b"x", {}, ()),
        (2, "raw", b"x", {}, ()),
        (1, "raw", b"x", {"codec": "planes/1"}, ()),
        (1, "raw", b"x", {}, (BASE,)),
        (1, "packed", b"x", {}, ()),
        (1, "packed", b"", {"codec": "planes/1"}, ()),
        (1, "packed", b"x", {"codec": "planes/1"}, (BASE,)),
        (1, "delta", b"x", DELTA, ()),
        (1, "delta", b"x", DELTA, (BASE, BASE)),
        (1, "delta", b"x", DELTA, (digest_bytes(b"x"),)),
        (1, "derived", b"x", {"operation": "lora/1"}, (BASE,)),
    ],
)
def test_a_record_that_no_reader_takes_is_not_written(
    store: MemoryStore, size: int, encoding: str, payload: bytes, params: dict[str, Any], inputs: tuple[Digest, ...]
) -> None:
    """A size, payload, params or inputs that do not fit the encoding are a fault of ours, found before the disk is."""
    with PackWriter(store) as writer, pytest.raises(InternalError, match="cannot be packed"):
        writer.add(digest_bytes(b"x"), size, encoding, payload, params=params, inputs=inputs)


# -- packs that are none -----------------------------------------------------------------------------------------------


def with_index(store: MemoryStore, change: Callable[[dict[str, Any]], object]) -> Digest:
    """The pack of `write_pack` with another index, whose digest and length are right."""
    pack, _ = write_pack(store)
    data = store.open_file(pack, area="packs").read()
    length = int.from_bytes(data[-16:-8], "little")
    index = json.loads(zstandard.decompress(data[-48 - length : -48]))
    change(index)
    return put_pack(store, data[: -48 - length], zstandard.compress(canonical_json(index)))


def put_pack(store: MemoryStore, payloads: bytes, frame: bytes) -> Digest:
    trailer = bytes.fromhex(digest_bytes(frame)) + len(frame).to_bytes(8, "little") + b"YARDIDX1"
    return store.put_file([payloads, frame, trailer], area="packs").blake3


def raw(index: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in index["segments"] if item["encoding"] == "raw")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda index: index.update(format="modelyard/pack/2"),
    "no files": lambda index: index.pop("files"),
    "one more key": lambda index: index.update(more=1),
    "files are a map": lambda index: index.update(files={}),
    "segments are numbers": lambda index: index.update(segments=[1]),
    "unsorted": lambda index: index["segments"].reverse(),
    "twice": lambda index: index["segments"].insert(0, index["segments"][0]),
    "files unsorted": lambda index: index["files"].reverse(),
    "no digest": lambda index: raw(index).update(digest="x"),
    "a digest that is a path": lambda index: raw(index).update(digest="../" * 21 + "x"),
    "a size of 0": lambda index: raw(index).update(size=0),
    "a size of 2^52": lambda index: raw(index).update(size=1 << 52),
    "a negative offset": lambda index: raw(index).update(offset=-8),
    "an offset in the magic": lambda index: raw(index).update(offset=0),
    "overlapping": lambda index: raw(index).update(offset=9),
    "beyond the payloads": lambda index: raw(index).update(length=1 << 40, size=1 << 26),
    "a gap": lambda index: index["segments"].remove(raw(index)),
    "text for a number": lambda index: raw(index).update(size="100"),
    "params that are a list": lambda index: raw(index).update(params=[]),
    "inputs that are a text": lambda index: raw(index).update(inputs=BASE),
    "an encoding that is a number": lambda index: raw(index).update(encoding=1),
    "a key too many": lambda index: raw(index).update(more=1),
    "a sha256 that is none": lambda index: index["files"][0].update(sha256="x"),
    "a git_blob that is none": lambda index: index["files"][0].update(git_blob="x"),
    "a cut that is a number": lambda index: index["files"][0].update(cut=1),
    "segments of a file that are a text": lambda index: index["files"][0].update(segments=BASE),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_that_is_none_is_damage(store: MemoryStore, name: str) -> None:
    """Whatever an index says that it may not is an `IntegrityError` that names the pack, although every digest is right."""
    pack = with_index(store, CHANGES[name])
    with pytest.raises(IntegrityError, match=pack[:12]):
        read_index(store, pack)


def frames() -> dict[str, bytes]:
    nothing = canonical_json({"format": "modelyard/pack/1", "segments": [], "files": []})
    return {
        "no frame": b"not a frame",
        "empty": b"",
        "no JSON": zstandard.compress(b"\xff\xfe"),
        "nested": zstandard.compress(b"[" * 100_000),
        "a huge number": zstandard.compress(b'{"format":' + b"9" * 10_000 + b"}"),
        "not canonical": zstandard.compress(nothing.replace(b":", b": ")),
        "a bomb": zstandard.compress(bytes((256 << 20) + 1)),
        "without its size": zstandard.ZstdCompressor(write_content_size=False).compress(nothing),
        "two frames": zstandard.compress(nothing) * 2,
    }


@pytest.mark.parametrize("name", sorted(frames()))
def test_a_frame_that_holds_no_index_is_damage(store: MemoryStore, name: str) -> None:
    """Frames that are none, that are bombs, and that hold something else, are `IntegrityError`."""
    pack = put_pack(store, b"YARDPAK1", frames()[name])
    with pytest.raises(IntegrityError, match=pack[:12]):
        read_index(store, pack)


@given(st.data())
def test_every_flipped_bit_outside_the_payloads_is_found(data: st.DataObject) -> None:
    """A flipped bit in the magic, the index or the trailer is damage; so is a pack that is cut short anywhere."""
    store = MemoryStore()
    pack, index = write_pack(store)
    stored = bytearray(store._areas["packs"][pack])
    payloads = range(8, 8 + sum(record.length for record in index.segments))
    place = data.draw(st.integers(0, len(stored) - 1).filter(lambda place: place not in payloads))
    stored[place] ^= 1 << data.draw(st.integers(0, 7))
    store._areas["packs"][pack] = bytes(stored)
    with pytest.raises(IntegrityError):
        read_index(store, pack)
    store._areas["packs"][pack] = bytes(stored)[: data.draw(st.integers(0, len(stored) - 1))]
    with pytest.raises(IntegrityError):
        read_index(store, pack)


def test_a_missing_pack_is_missing(store: MemoryStore) -> None:
    """Reading the index of a pack that is not there says so, with the code `missing`."""
    with pytest.raises(IntegrityError) as caught:
        read_index(store, BASE)
    assert caught.value.code == "missing"


def test_records_are_plain_values() -> None:
    """A record without params and inputs compares equal to another."""
    assert SegmentRecord(BASE, 1, "raw", 8, 1) == SegmentRecord(BASE, 1, "raw", 8, 1, {}, ())
