"""Hashes of a stream, on two cores."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.digest import HashingReader, digest_bytes
from modelyard.errors import InputError
from modelyard.store.hashing import CHUNK, Hashing, Segmenting, gather, hash_chunks


def one_by_one(chunks: list[bytes]) -> HashingReader:
    reader = HashingReader(chunks)
    for _ in reader:
        pass
    return reader


@pytest.mark.parametrize("size", [0, 1, CHUNK, 4 * CHUNK, 4 * CHUNK + 1, 24 * CHUNK + 5])
def test_hashes_are_those_of_the_plain_reader(size: int) -> None:
    """With and without threads, at the border and beyond what may wait, the hashes are those of one pass on one core."""
    data = random.Random(size).randbytes(size)
    chunks = [data[at : at + CHUNK] for at in range(0, size, CHUNK)]
    assert hash_chunks(chunks) == one_by_one([data]).digests()


def test_the_threads_end_when_the_source_fails() -> None:
    """An exception in the middle of a large stream leaves no threads behind."""

    def fail() -> None:
        with Hashing() as hashing:
            for _ in range(30):
                hashing.update(bytes(CHUNK))
            raise RuntimeError("the upload broke off")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broke off"):
        fail()
    assert threading.active_count() == before


@given(st.lists(st.integers(0, 2 * CHUNK), max_size=8))
def test_gathering_keeps_the_bytes_and_bounds_the_chunks(sizes: list[int]) -> None:
    """Gathered chunks are the same bytes; all but the last are at least a `CHUNK`; none is empty."""
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    gathered = list(gather(chunks))
    assert b"".join(gathered) == b"".join(chunks)
    assert all(len(chunk) >= CHUNK for chunk in gathered[:-1])
    assert all(gathered)


def test_a_buffer_that_is_used_again_is_copied() -> None:
    """A source that yields one buffer over and over gives the bytes as they were when it yielded them."""

    def chunks() -> object:
        buffer = bytearray(CHUNK)
        for number in range(8):
            buffer[:] = bytes([number]) * CHUNK
            yield buffer

    expected = one_by_one([bytes([number]) * CHUNK for number in range(8)]).digests()
    assert hash_chunks(gather(chunks())) == expected  # type: ignore[arg-type]  # what a caller may do all the same


@given(st.lists(st.integers(1, 5000), max_size=12), st.integers(1, 6000))
def test_segments_are_hashed_as_they_pass(sizes: list[int], step: int) -> None:
    """Whatever the segments and the chunks they arrive in, each has the digest of its own bytes."""
    data = random.Random(1).randbytes(sum(sizes))
    segmenting = Segmenting(sizes)
    for at in range(0, len(data), step):
        segmenting.update(data[at : at + step])
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    assert segmenting.digests() == tuple(
        digest_bytes(data[start : start + size]) for start, size in zip(starts, sizes, strict=True)
    )


@pytest.mark.parametrize("size", [0, 9, 11])
def test_a_stream_of_another_length_has_changed(size: int) -> None:
    """A file that is shorter or longer than its cut says is refused, with the code `changed`."""
    segmenting = Segmenting([4, 6])
    segmenting.update(bytes(size))
    with pytest.raises(InputError, match="10 bytes") as caught:
        segmenting.digests()
    assert caught.value.code == "changed"


@pytest.mark.parametrize("failing_chunk", [0, 10, 39])
def test_an_observer_that_fails_in_its_thread_is_heard(failing_chunk: int) -> None:
    """What the observer raises comes out of `update` or `digests`, nobody hangs, and the threads end."""
    seen = 0

    def observe(chunk: bytes) -> None:
        nonlocal seen
        seen += 1
        if seen > failing_chunk:
            raise RuntimeError("no more")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no more"):
        hash_chunks([bytes(CHUNK)] * 40, observe)
    assert threading.active_count() == before


def test_a_known_sha256_is_taken_as_it_is() -> None:
    """With a SHA-256 that somebody recorded, none is computed: the result says what was recorded."""
    with Hashing(sha256="ab" * 32) as hashing:
        for _ in range(8):
            hashing.update(bytes(CHUNK))
        digests = hashing.digests()
    assert digests.sha256 == "ab" * 32
    assert digests.blake3 == digest_bytes(bytes(8 * CHUNK))
