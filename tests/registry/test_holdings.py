"""Files that are not whole: read, ranged, verified, made whole, and never handed out damaged."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.catalog import Catalog, files
from modelyard.catalog.files import Piece
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import ConflictError, IntegrityError, NoSpaceError
from modelyard.points import at
from modelyard.registry.rebuilt import RebuiltFile
from registry.registry_helpers import Bench, Wrapper
from registry.test_commit_segments import LAYERS, model, row, tensors, weights

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry import Version


def tuned(bench: Bench) -> tuple[Version, bytes]:
    """A version whose weights are not whole, and their bytes."""
    bench.yard.commit(model(bench, tensors()), "team/model")
    folder = model(bench, tensors(layer3=1))
    version = bench.yard.commit(folder, "team/model")
    assert not bench.store.has_file(weights(version))
    return version, (folder / "model.safetensors").read_bytes()


def flip(path: Path, place: int) -> None:
    """Flip one bit of a stored object."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_file_that_is_not_whole_reads_in_any_order(any_bench: Bench) -> None:
    """Size, presence, ranges, seeking and whole reads are as if the file lay there; nothing is written for them."""
    version, data = tuned(any_bench)
    store, digest = any_bench.yard._context.store, weights(version)
    assert store.has_file(digest)
    assert store.file_size(digest) == len(data)
    for start, end in ((0, 8), (100, 70_000), (65_000, 200_000), (len(data) - 3, len(data)), (5, 5)):
        assert store.read_range("files", digest, start, end) == data[start:end]
    with store.open_file(digest) as stream:
        stream.seek(-10, io.SEEK_END)
        assert stream.read() == data[-10:]
        stream.seek(65_530)
        assert stream.read(20) == data[65_530:65_550]
        stream.seek(0)
        assert b"".join(iter(lambda: stream.read(10_000), b"")) == data
    store.verify_file(digest)
    assert not any_bench.store.has_file(digest)


def test_a_range_beyond_the_end_is_refused(bench: Bench) -> None:
    """A range is whole or an error, never shorter than asked for."""
    version, data = tuned(bench)
    with pytest.raises(IntegrityError, match="asked for"):
        bench.yard._context.store.read_range("files", weights(version), 0, len(data) + 1)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), places=st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=60, deadline=None)
def test_rebuilt_files_are_files(sizes: list[int], places: list[int]) -> None:
    """Whatever the segments and wherever one reads, a rebuilt file gives what the bytes themselves would."""
    data = bytes(range(sum(sizes)))
    parts, pieces = {}, []
    for position, size in enumerate(sizes):
        start = sum(sizes[:position])
        parts[str(position)] = data[start : start + size]
        pieces.append(Piece(position, str(position), start, size))

    class Parts:
        def segment(self, name: str) -> bytes:
            return parts[name]

    stream, plain = io.BufferedReader(RebuiltFile(pieces, Parts())), io.BytesIO(data)  # type: ignore[arg-type]
    for place in places:
        assert stream.seek(place) == plain.seek(place)
        assert stream.read(place % 7) == plain.read(place % 7)
    assert stream.read() == plain.read()


def test_asking_for_a_path_makes_a_file_whole(any_bench: Bench) -> None:
    """A path is a real file with these bytes, and the catalog says that it is whole before the path is handed out."""
    version, data = tuned(any_bench)
    path = any_bench.yard.path(f"{version.name}:model.safetensors")
    assert path.read_bytes() == data
    assert row(any_bench, version).whole
    assert any_bench.store.has_file(weights(version))
    any_bench.yard._context.store.make_whole([weights(version)])  # again is fine


def test_a_file_that_lies_there_but_is_not_counted_on_is_made_whole_again(bench: Bench) -> None:
    """A file that a compaction let go of, and that no collection has taken yet, is no path until the catalog says so."""
    version, data = tuned(bench)
    bench.yard.path(version, "model.safetensors")
    with bench.yard._context.change() as tx:
        files.set_whole(tx, [weights(version)], False)
    assert bench.yard.path(version, "model.safetensors").read_bytes() == data
    assert row(bench, version).whole


def test_what_is_collected_while_it_is_made_whole_is_written_again(bench: Bench) -> None:
    """A collection between the bytes and the row is noticed: the row is never ahead of the bytes."""
    version, data = tuned(bench)
    digest, seen = weights(version), []

    def collect(point: str) -> None:
        seen.append(point)
        if seen.count("whole.written") == 1 and point == "whole.written":
            bench.store.remove("files", digest)
            with bench.yard._context.change() as tx:
                tx.next("collections")

    with at(collect):
        bench.yard._context.store.make_whole([digest])
    assert seen.count("whole.written") == 2
    assert bench.store.file_path(digest).read_bytes() == data


@pytest.mark.row(40)
def test_a_full_disk_while_a_file_is_made_whole(bench: Bench) -> None:
    """The error is typed, the file still reads from its segments, and it is made whole when there is room."""
    version, data = tuned(bench)

    class Full(Wrapper):
        def before(self, what: str) -> None:
            if what == "file":
                raise NoSpaceError("the disk is full")

    yard = bench.open(store=Full(bench.store))
    with pytest.raises(NoSpaceError):
        yard.path(version, "model.safetensors")
    assert yard.files(version).read("model.safetensors") == data
    assert row(bench, version).whole is False
    assert bench.yard.path(version, "model.safetensors").read_bytes() == data


@pytest.mark.row(42)
def test_a_damaged_segment_is_never_served(bench: Bench) -> None:
    """A flipped bit in a pack is an IntegrityError on read, range, path, checkout and promotion; nothing becomes whole."""
    version, _ = tuned(bench)
    (pack,) = bench.store.digests("packs")
    flip(next(path for path in (bench.root / "packs").rglob(str(pack))), 1000)
    store = bench.yard._context.store
    for use in (
        lambda: bench.yard.files(version).read("model.safetensors"),
        lambda: store.verify_file(weights(version)),
        lambda: bench.yard.path(version, "model.safetensors"),
        lambda: bench.yard.checkout(version, bench.folder / "out"),
        lambda: bench.yard.promote(version, "production"),
    ):
        with pytest.raises(IntegrityError):
            use()
    assert row(bench, version).whole is False
    assert not (bench.folder / "out").exists()
    assert [ref.name for ref in bench.yard.refs("team/model")] == ["main"]


@pytest.mark.row(42)
@pytest.mark.parametrize("link", [False, True])
def test_a_damaged_whole_file_comes_back_from_its_segments(bench: Bench, link: bool) -> None:
    """Where every segment is held elsewhere, a flipped bit in the whole file is repaired on use, and the user sees none."""
    version, data = tuned(bench)
    path = bench.yard.path(version, "model.safetensors")
    flip(path, 100_000)
    (out,) = (p for p in bench.yard.checkout(version, bench.folder / "out", link=link) if p.name == "model.safetensors")
    assert out.read_bytes() == data
    assert bench.yard.path(version, "model.safetensors").read_bytes() == data
    flip(path, 8)
    assert bench.yard.files(version).read("model.safetensors") == data
    bench.store.verify_file(weights(version))


def test_a_whole_file_that_vanished_comes_back(bench: Bench) -> None:
    """A file that the catalog calls whole and that is gone is put together again, not taken from itself."""
    version, data = tuned(bench)
    bench.yard.path(version, "model.safetensors").unlink()
    assert bench.yard.path(version, "model.safetensors").read_bytes() == data


def test_what_nothing_makes_is_missing(bench: Bench) -> None:
    """A digest that nobody knows is an IntegrityError with the code `missing`, as in every store."""
    store, digest = bench.yard._context.store, digest_bytes(b"nobody")
    assert not store.has_file(digest)
    for use in (
        lambda: store.open_file(digest),
        lambda: store.file_size(digest),
        lambda: store.file_path(digest),
        lambda: store.read_range("files", digest, 0, 1),
        lambda: store.verify_file(digest),
    ):
        with pytest.raises(IntegrityError) as error:
            use()
        assert error.value.code == "missing"


def test_a_promoted_version_is_whole_before_its_alias_moves(any_bench: Bench) -> None:
    """A promise: when the alias moves, every file lies in the store whole; a rollback makes its target whole too."""
    version, _ = tuned(any_bench)
    moved: list[bool] = []

    def look(point: str) -> None:
        if point == "promote.moved":
            moved.append(any_bench.store.has_file(weights(version)) and row(any_bench, version).whole)

    with at(look):
        any_bench.yard.promote(version, "production")
    assert moved == [True]
    any_bench.yard.promote("team/model@v1", "production")
    with any_bench.yard._context.change() as tx:
        files.set_whole(tx, [weights(version)], False)
    any_bench.store.remove("files", weights(version))
    assert any_bench.yard.rollback("team/model", "production").version.id == version.id
    assert any_bench.store.has_file(weights(version))
    assert row(any_bench, version).whole


def test_a_rollback_needs_a_holder_before(bench: Bench) -> None:
    """Without one it is a conflict, as it was."""
    bench.data()
    bench.yard.promote("datasets/team/data", "live")
    with pytest.raises(ConflictError, match="no holder before"):
        bench.yard.rollback("datasets/team/data", "live")


def test_use_is_noted_once_a_day(bench: Bench) -> None:
    """A load, checkout or path notes that the files are used, and a second one on the same day writes nothing."""
    from datetime import UTC, datetime, timedelta

    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    yard = bench.open(clock=lambda: now[0])
    version = yard.commit(bench.write({"data.txt": "x"}), "datasets/team/data")
    digest = version.files[0].blake3

    def used() -> str | None:
        with Catalog(bench.url).read() as connection:
            return files.find(connection, [digest])[Digest(digest)].used_at

    assert used() is None
    yard.path(version, "data.txt")
    first = used()
    assert (first or "").startswith("2026-01-01")
    now[0] += timedelta(hours=23)
    yard.checkout(version, bench.folder / "a")
    assert used() == first
    now[0] += timedelta(hours=2)
    yard.folder(version)
    assert (used() or "").startswith("2026-01-02")
    now[0] -= timedelta(days=400)
    yard.checkout(version, bench.folder / "b")
    assert (used() or "").startswith("2024-11")  # a note from the future is no note


def test_every_layer_was_cut(bench: Bench) -> None:
    """The helper's model has as many segments as tensors, and one for the header."""
    version, _ = tuned(bench)
    with bench.yard._context.catalog.read() as connection:
        assert len(files.pieces(connection, weights(version))) == LAYERS + 1
