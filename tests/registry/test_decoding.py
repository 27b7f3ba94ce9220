"""Reading segments: every encoding, every way in which one can be wrong, and never a byte that is not verified."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from modelyard.catalog.segments import SegmentRow
from modelyard.derivations.replay import cast_params
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import IntegrityError
from modelyard.registry.decoding import Decoder
from modelyard.store import MemoryStore
from modelyard.store.codecs import encode_delta, encode_planes
from modelyard.store.packs import PackWriter

if TYPE_CHECKING:
    from collections.abc import Iterable


class Shelf:
    """A store with one pack and one whole file, and rows that say so."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.rows: dict[str, SegmentRow] = {}
        self.homes: dict[str, tuple[str, int]] = {}
        self.asked = 0

    def pack(self, data: bytes, encoding: str, payload: bytes, params: dict[str, Any], *inputs: str) -> str:
        """Store a segment in a pack of its own."""
        digest = digest_bytes(data)
        with PackWriter(self.store) as writer:
            writer.add(
                digest, len(data), encoding, payload, params=params, inputs=tuple(Digest(source) for source in inputs)
            )
            pack, index = writer.close()
        record = index.segments[0]
        depth = 1 + max(self.rows[source].depth for source in inputs) if inputs else 0
        self.rows[digest] = SegmentRow(
            digest, len(data), encoding, pack, record.offset, record.length, json.dumps(params), depth, inputs
        )
        return digest

    def whole(self, before: bytes, data: bytes) -> str:
        """Store a segment inside of a whole file."""
        digest = digest_bytes(data)
        file = self.store.put_file([before, data, b"after"]).blake3
        self.rows.setdefault(digest, SegmentRow(digest, len(data)))
        self.homes[digest] = (file, len(before))
        return digest

    def decoder(self, **options: Any) -> Decoder:
        """A decoder over it."""
        return Decoder(self.store, self._lookup, self._homes, **options)

    def _lookup(self, digests: Iterable[str]) -> dict[str, SegmentRow]:
        self.asked += 1
        return {name: self.rows[name] for name in digests if name in self.rows}

    def _homes(self, digests: Iterable[str]) -> dict[str, tuple[str, int]]:
        return {name: self.homes[name] for name in digests if name in self.homes}


@pytest.fixture
def shelf() -> Shelf:
    """An empty one."""
    return Shelf()


def numbers(seed: int, count: int = 2000) -> np.ndarray:
    """Float32 numbers like weights."""
    return (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)


PLANES = {"codec": "planes/1", "dtype": "F32"}
DELTA = {"codec": "delta/1", "dtype": "F32"}


def chain(shelf: Shelf, length: int) -> list[bytes]:
    """A raw segment, and `length` deltas, each against the one before."""
    made = [numbers(0).tobytes()]
    shelf.pack(made[0], "raw", made[0], {})
    for step in range(1, length + 1):
        data = numbers(step).tobytes()
        shelf.pack(data, "delta", encode_delta(data, made[-1], "F32"), DELTA, str(digest_bytes(made[-1])))
        made.append(data)
    return made


def test_every_encoding_reads(shelf: Shelf) -> None:
    """Raw in a file, raw in a pack, packed, delta and derived, in one go and one by one."""
    base, other = numbers(0), numbers(1)
    half = base.astype(np.float16).tobytes()
    shelf.whole(b"header", base.tobytes())
    made = [base.tobytes(), b"raw", other.tobytes(), (base + other).tobytes(), half]
    shelf.pack(made[1], "raw", made[1], {})
    shelf.pack(made[2], "packed", encode_planes(made[2], "F32"), PLANES)
    shelf.pack(made[3], "delta", encode_delta(made[3], made[0], "F32"), DELTA, digest_bytes(made[0]))
    params = {**cast_params("F32", "F16"), "roles": {"x": [[0, 0, len(made[0])]]}}
    shelf.pack(half, "derived", b"", params, digest_bytes(made[0]))
    names = [digest_bytes(data) for data in made]
    assert [shelf.decoder().segment(name) for name in names] == made
    for threads in (1, 2, 3):
        assert list(shelf.decoder().segments([*names, *names], threads=threads)) == [*made, *made]


def test_roles_join_parts_of_inputs(shelf: Shelf) -> None:
    """A derived segment is computed from slices of several inputs, joined in the order given."""
    x = numbers(0, 100)
    first, second = x[:30].tobytes(), x[30:].tobytes()
    shelf.pack(b"junk" + first, "raw", b"junk" + first, {})
    shelf.pack(second, "raw", second, {})
    params = {**cast_params("F32", "F16"), "roles": {"x": [[0, 4, 124], [1, 0, 280]]}}
    data = x.astype(np.float16).tobytes()
    shelf.pack(data, "derived", b"", params, digest_bytes(b"junk" + first), digest_bytes(second))
    assert shelf.decoder().segment(digest_bytes(data)) == data


def test_a_line_of_deltas_is_read_from_its_beginning(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat: no payload is held while what it is a delta of is decoded."""
    made = chain(shelf, 4)
    read, order = shelf.store.read_range, list[str]()

    def noted(area: Any, digest: Digest, start: int, end: int) -> bytes:
        order.append(digest)
        return read(area, digest, start, end)

    monkeypatch.setattr(shelf.store, "read_range", noted)
    assert shelf.decoder().segment(digest_bytes(made[-1])) == made[-1]
    assert order == [shelf.rows[digest_bytes(data)].pack for data in made]


def test_a_segment_is_read_from_another_file_when_the_first_is_gone(shelf: Shelf) -> None:
    """Of several whole files that have it any will do; where none is sound, the error tells of the first."""
    data = numbers(0).tobytes()
    name = shelf.whole(b"one", data)
    first = shelf.homes[name]
    shelf.whole(b"other", data)
    second, shelf.homes[name] = shelf.homes[name], first
    decoder = shelf.decoder(others=lambda _digest: [first, second])
    shelf.store.remove("files", Digest(first[0]))
    assert decoder.segment(name) == data
    shelf.store.remove("files", Digest(second[0]))
    with pytest.raises(IntegrityError, match=first[0][:12]):
        decoder.segment(name)


def test_inputs_are_followed_four_steps_and_no_further(shelf: Shelf) -> None:
    """Four edges read; a fifth is an error that says so, and so is a ring."""
    made = chain(shelf, 5)
    decoder = shelf.decoder()
    assert decoder.segment(digest_bytes(made[4])) == made[4]
    with pytest.raises(IntegrityError, match="more than 4 steps"):
        shelf.decoder().segment(digest_bytes(made[5]))
    first = shelf.rows[digest_bytes(made[1])]
    shelf.rows[first.digest] = dataclasses.replace(first, inputs=(digest_bytes(made[2]),))
    with pytest.raises(IntegrityError, match="more than 4 steps"):
        shelf.decoder().segment(digest_bytes(made[3]))


@pytest.mark.parametrize("wrong", ["payload", "base", "digest"])
def test_a_damaged_segment_is_never_handed_out(shelf: Shelf, wrong: str) -> None:
    """Another payload, another base, another digest: an error that names the segment, and no bytes."""
    made = chain(shelf, 1)
    row = shelf.rows[digest_bytes(made[1])]
    other = numbers(7).tobytes()
    if wrong == "payload":
        replaced = shelf.pack(other, "delta", encode_delta(other, made[0], "F32"), DELTA, digest_bytes(made[0]))
        shelf.rows[row.digest] = dataclasses.replace(shelf.rows[replaced], digest=row.digest)
    elif wrong == "base":
        shelf.rows[row.digest] = dataclasses.replace(row, inputs=(shelf.pack(other, "raw", other, {}),))
    else:
        shelf.rows["0" * 64] = dataclasses.replace(row, digest="0" * 64)
    name = "0" * 64 if wrong == "digest" else row.digest
    with pytest.raises(IntegrityError, match=name[:16]) as caught:
        shelf.decoder().segment(name)
    assert caught.value.details["segment"] == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "squeezed"}, "not known here"),
        ({"params": "[]"}, "not a JSON object"),
        ({"params": "{"}, "not a JSON object"),
        ({"params": json.dumps({"codec": "planes/2", "dtype": "F32"})}, "not known here"),
        ({"params": json.dumps({"codec": "planes/1"})}, "not known here"),
        ({"pack": None}, "makes no sense"),
        ({"length": 1 << 40}, "makes no sense"),
        ({"offset": 1 << 30}, "cannot be read"),
        ({"encoding": "derived"}, "no roles"),
        ({"encoding": None}, "in no pack and in no whole file"),
        ({"size": 7}, "segment"),
    ],
)
def test_a_row_that_makes_no_sense_is_damage(shelf: Shelf, change: dict[str, Any], message: str) -> None:
    """Whatever the catalog says, the answer is the right bytes or an error."""
    data = numbers(0).tobytes()
    name = shelf.pack(data, "packed", encode_planes(data, "F32"), PLANES)
    shelf.rows[name] = dataclasses.replace(shelf.rows[name], **change)
    with pytest.raises(IntegrityError, match=message):
        shelf.decoder().segment(name)


@pytest.mark.parametrize(
    "roles",
    [
        {},
        {"x": [[1, 0, 8]]},
        {"x": [[0, 0, 9000]]},
        {"x": [[0, 8, 8]]},
        {"x": [[0, -8, 8]]},
        {"x": [[0, 0]]},
        {"x": "all"},
        {"x": [[0, 0, True]]},
        {"x": [[0, 0, 8000]] * 100_000},
        {"y": [[0, 0, 8000]]},
        [],
    ],
)
def test_roles_that_make_no_sense_are_damage(shelf: Shelf, roles: Any) -> None:
    """Roles come out of packs that anybody may have written: they are checked before anything is read or allocated."""
    source = numbers(0)
    base, data = source.tobytes(), source.astype(np.float16).tobytes()
    shelf.pack(base, "raw", base, {})
    name = shelf.pack(data, "derived", b"", cast_params("F32", "F16"), digest_bytes(base))
    params = json.dumps({**cast_params("F32", "F16"), "roles": roles})
    shelf.rows[name] = dataclasses.replace(shelf.rows[name], params=params)
    with pytest.raises(IntegrityError, match=name[:16]):
        shelf.decoder().segment(name)


def test_where_one_form_is_damaged_the_other_is_read(shelf: Shelf) -> None:
    """A segment in a whole file and in a pack: either may be wrong, and the right bytes come; with both wrong, nothing does."""
    data = numbers(0).tobytes()
    name = shelf.pack(data, "packed", encode_planes(data, "F32"), PLANES)
    shelf.whole(b"", data)
    home = shelf.homes[name]
    shelf.homes[name] = (shelf.store.put_file([b"other bytes" * 1000]).blake3, 0)
    assert shelf.decoder().segment(name) == data
    wrong = dataclasses.replace(shelf.rows[name], offset=9)
    shelf.rows[name], shelf.homes[name] = wrong, home
    assert shelf.decoder().segment(name) == data
    shelf.homes[name] = (str(digest_bytes(b"gone")), 0)
    with pytest.raises(IntegrityError):
        shelf.decoder().segment(name)


def test_a_segment_that_moved_meanwhile_is_looked_up_again(shelf: Shelf) -> None:
    """When the pack is gone because a compaction moved the segment, the new place is read."""
    first, second = numbers(0).tobytes(), numbers(1).tobytes()
    for data in (first, second):
        shelf.pack(data, "packed", encode_planes(data, "F32"), PLANES)
    old = shelf.rows[digest_bytes(second)]
    reading = shelf.decoder().segments([digest_bytes(first), digest_bytes(second)])
    assert next(reading) == first
    shelf.pack(second, "raw", second, {})
    shelf.store.remove("packs", Digest(str(old.pack)))
    assert next(reading) == second


def test_an_unknown_segment_is_missing(shelf: Shelf) -> None:
    """A segment without a row is an error with the code `missing`, and so is an input without one."""
    made = chain(shelf, 1)
    del shelf.rows[digest_bytes(made[0])]
    for name in (digest_bytes(b"never"), digest_bytes(made[1])):
        with pytest.raises(IntegrityError) as caught:
            shelf.decoder().segment(name)
        assert caught.value.code == "missing"


def test_rows_are_asked_for_together_and_small_inputs_once(shelf: Shelf) -> None:
    """A thousand segments cost a few look-ups; an input that many need is read from its pack once."""
    base = numbers(0, 50).tobytes()
    shelf.pack(base, "raw", base, {})
    names = []
    for seed in range(1, 40):
        data = numbers(seed, 50).tobytes()
        names.append(shelf.pack(data, "delta", encode_delta(data, base, "F32"), DELTA, digest_bytes(base)))
    reads: list[str] = []
    plain = shelf.store.read_range

    def counted(area: Any, digest: Digest, start: int, end: int) -> bytes:
        reads.append(str(digest))
        return plain(area, digest, start, end)

    shelf.store.read_range = counted  # type: ignore[method-assign]
    list(shelf.decoder().segments(names))
    assert shelf.asked <= 3
    assert reads.count(str(shelf.rows[digest_bytes(base)].pack)) == 1
    reads.clear()
    list(shelf.decoder(cache_bytes=0).segments(names))
    assert reads.count(str(shelf.rows[digest_bytes(base)].pack)) == len(names)
