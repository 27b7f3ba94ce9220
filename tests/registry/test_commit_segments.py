"""Commits that share bytes: what is stored whole, what goes into a pack, and what is counted on."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.catalog import Transaction, counters, files, segments
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import InputError, IntegrityError, NoSpaceError
from modelyard.registry import deposit as deposits
from modelyard.store.packs import read_index
from registry.registry_helpers import DATA, Bench, Wrapper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from modelyard.registry import Version

LAYERS = 8


def tensors(seed: int = 0, **changed: int) -> dict[str, Any]:
    """Eight layers of 64 KiB each; `layer3=7` makes one anew from another seed."""
    return {
        f"layer{at}": np.random.default_rng((changed.get(f"layer{at}", seed), at)).random((128, 128), np.float32)
        for at in range(LAYERS)
    }


def model(bench: Bench, values: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
    folder = bench.write({"config.json": '{"model_type":"llama"}'})
    save_file(dict(values), folder / "model.safetensors", dict(metadata or {}))
    return folder


def weights(version: Version) -> Digest:
    return next(entry.blake3 for entry in version.files if entry.path == "model.safetensors")


def packs(bench: Bench) -> list[Digest]:
    return list(bench.store.digests("packs"))


def row(bench: Bench, version: Version) -> files.FileRow:
    with bench.yard._context.catalog.read() as connection:
        return files.find(connection, [weights(version)])[weights(version)]


def test_new_bytes_are_stored_whole_and_cut(any_bench: Bench) -> None:
    """A first commit writes files whole and no pack; its tensors are segments, the header is one too."""
    one = any_bench.yard.commit(model(any_bench, tensors()), "team/model")
    assert packs(any_bench) == []
    found = row(any_bench, one)
    assert (found.whole, found.cut) == (True, "safetensors/1")
    with any_bench.yard._context.catalog.read() as connection:
        pieces = files.pieces(connection, weights(one))
        rows = segments.find(connection, [piece.segment for piece in pieces])
    assert len(pieces) == LAYERS + 1
    data = any_bench.yard.path(one, "model.safetensors").read_bytes()
    assert [digest_bytes(data[piece.start : piece.start + piece.size]) for piece in pieces] == [
        piece.segment for piece in pieces
    ]
    assert {each.encoding for each in rows.values()} == {None}


def test_a_file_that_is_mostly_held_stores_its_new_segments_only(any_bench: Bench) -> None:
    """One changed layer of eight costs that layer and the header, in one pack, and no whole file; it reads as committed."""
    bench = any_bench
    bench.yard.commit(model(bench, tensors()), "team/model")
    folder = model(bench, tensors(layer3=1))
    two = bench.yard.commit(folder, "team/model")
    assert not bench.store.has_file(weights(two))
    (pack,) = packs(bench)
    index = read_index(bench.store, pack)
    assert [record.encoding for record in index.segments] == ["raw"]
    assert [record.digest for record in index.files] == [weights(two)]
    assert index.segments[0].size == 65536
    assert row(bench, two).whole is False
    expected = (folder / "model.safetensors").read_bytes()
    assert bench.yard.files(two).read("model.safetensors") == expected


def test_the_new_segments_of_a_commit_share_one_pack(bench: Bench) -> None:
    """Two files that are mostly held put what is new into the same pack."""
    parts = {"a": tensors(), "b": tensors(5)}

    def folder(**changed: int) -> Path:
        made = bench.write({"config.json": "{}"})
        for name, values in parts.items():
            save_file(
                values | {key: tensors(value)[key] for key, value in changed.items()}, made / f"{name}.safetensors"
            )
        return made

    bench.yard.commit(folder(), "team/model")
    bench.yard.commit(folder(layer1=9), "team/model")
    (pack,) = packs(bench)
    index = read_index(bench.store, pack)
    assert (len(index.files), len(index.segments)) == (2, 1)  # both got the same new layer


def test_a_file_with_more_than_half_new_is_whole(bench: Bench) -> None:
    """Five new layers of eight: the file is stored whole, and no pack is made."""
    bench.yard.commit(model(bench, tensors()), "team/model")
    two = bench.yard.commit(model(bench, tensors(**{f"layer{at}": 1 for at in range(5)})), "team/model")
    assert row(bench, two).whole
    assert packs(bench) == []


def test_a_renamed_header_costs_a_header(bench: Bench) -> None:
    """The same tensors under another header store the header alone."""
    bench.yard.commit(model(bench, tensors()), "team/model")
    two = bench.yard.commit(model(bench, tensors(), {"format": "pt"}), "team/model")
    (pack,) = packs(bench)
    assert sum(record.length for record in read_index(bench.store, pack).segments) < 2000
    assert bench.yard.files(two).read("model.safetensors")[:2000].count(b"pt") == 1


def test_a_second_identical_copy_stores_nothing(any_bench: Bench) -> None:
    """The same files in another repo add no file, no pack, and no byte."""
    bench = any_bench
    folder = model(bench, tensors())
    one = bench.yard.commit(folder, "team/model")
    before = list(bench.store.digests("files"))
    other = bench.yard.commit(folder, "team/copy")
    assert other.id == one.id
    assert list(bench.store.digests("files")) == before
    assert packs(bench) == []


def test_a_repeated_commit_of_a_file_in_segments_is_the_same_version(bench: Bench) -> None:
    """A retry of a commit that made a pack makes no second one."""
    bench.yard.commit(model(bench, tensors()), "team/model")
    folder = model(bench, tensors(layer3=1))
    two = bench.yard.commit(folder, "team/model")
    again = bench.yard.commit(folder, "team/model")
    assert again == two
    assert len(packs(bench)) == 1


def test_a_file_whose_pack_is_lost_is_stored_again(bench: Bench) -> None:
    """Committing a version again puts back the segments that vanished, though it is the same version."""
    bench.yard.commit(model(bench, tensors()), "team/model")
    folder = model(bench, tensors(layer3=1))
    two = bench.yard.commit(folder, "team/model")
    bench.store.remove("packs", packs(bench)[0])
    with pytest.raises(IntegrityError):
        bench.yard.files(two).read("model.safetensors")
    assert bench.yard.commit(folder, "team/model") == two
    assert bench.yard.files(two).read("model.safetensors") == (folder / "model.safetensors").read_bytes()


def test_a_damaged_whole_file_is_replaced_by_a_commit(bench: Bench) -> None:
    """Bytes that the catalog calls stored are read before they are counted on."""
    folder = model(bench, tensors())
    one = bench.yard.commit(folder, "team/model")
    path = bench.store.file_path(weights(one))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    bench.yard.commit(folder, "team/copy")
    bench.store.verify_file(weights(one))


def test_what_is_collected_before_the_transaction_is_stored_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that counts on a file that a collection takes meanwhile notices in its transaction, and starts over."""
    folder = bench.write({"data.txt": "shared"})
    one = bench.yard.commit(folder, DATA)
    digest = one.files[0].blake3
    real, calls = deposits.deposit, []

    def collected_after(*given: Any, **options: Any) -> Any:
        made = real(*given, **options)
        calls.append(made)
        if len(calls) == 1:
            bench.store.remove("files", digest)
            with bench.yard._context.change() as tx:
                tx.next("collections")
        return made

    monkeypatch.setattr("modelyard.registry.commit.deposit", collected_after)
    two = bench.yard.commit(folder, "datasets/team/other")
    assert len(calls) == 2
    assert bench.yard.files(two).read("data.txt") == b"shared"


def test_a_collection_of_other_things_does_not_disturb_a_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter alone does not make a commit start over: it looks whether its own objects are there."""
    real, calls = deposits.deposit, []

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(real(*given, **options))
        with bench.yard._context.change() as tx:
            tx.next("collections")
        return calls[-1]

    monkeypatch.setattr("modelyard.registry.commit.deposit", counted)
    bench.yard.commit(model(bench, tensors()), "team/model")
    bench.yard.commit(model(bench, tensors(layer3=1)), "team/model")
    assert len(calls) == 2


def test_rows_and_version_are_one_transaction(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that fails in its transaction leaves no row of its files."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(Transaction, "record", fail)
    with pytest.raises(RuntimeError, match="stop"):
        bench.yard.commit(bench.write({"data.txt": "x"}), DATA)
    with bench.yard._context.catalog.read() as connection:
        assert files.find(connection, [digest_bytes(b"x")]) == {}


def test_a_full_disk_while_a_pack_is_written(bench: Bench) -> None:
    """The error is typed, the branch stays, no pack is published, and the same commit succeeds when there is room."""
    one = bench.yard.commit(model(bench, tensors()), "team/model")

    class Full(Wrapper):
        def before(self, what: str) -> None:
            if what == "pack":
                raise NoSpaceError("the disk is full")

    folder = model(bench, tensors(layer3=1))
    with pytest.raises(NoSpaceError):
        bench.open(store=Full(bench.store)).commit(folder, "team/model")
    assert bench.yard.resolve("team/model") == one
    assert packs(bench) == []
    assert bench.yard.commit(folder, "team/model").number == 2


def test_commit_from_streams(bench: Bench) -> None:
    """Bytes, a path, an open file and an iterator become the files of one version, as if they had lain in a folder."""

    def lines() -> Iterator[bytes]:
        yield from (b"one\n", b"two\n")

    folder = bench.write({"d.txt": "path"})
    given: dict[str, Any] = {
        "a.txt": b"bytes",
        "b.txt": lines(),
        "c/c.txt": io.BytesIO(b"stream"),
        "d.txt": folder / "d.txt",
    }
    version = bench.yard.commit(given, DATA)
    stored = bench.yard.files(version)
    assert {name: stored.read(name) for name in stored.names()} == {
        "a.txt": b"bytes",
        "b.txt": b"one\ntwo\n",
        "c/c.txt": b"stream",
        "d.txt": b"path",
    }
    same = bench.write({"a.txt": "bytes", "b.txt": "one\ntwo\n", "c/c.txt": "stream", "d.txt": "path"})
    assert bench.yard.commit(same, DATA) == version
    assert list((bench.root / "links").iterdir()) == []


@pytest.mark.parametrize("wrong", ["text", 7, io.StringIO("text"), ["text"]])
def test_a_stream_of_something_else_is_refused(bench: Bench, wrong: Any) -> None:
    """Text and objects are no bytes: nothing is committed."""
    with pytest.raises(InputError, match="not bytes"):
        bench.yard.commit({"a.txt": wrong}, DATA)
    assert bench.yard.repos() == []


def test_a_stream_that_breaks_commits_nothing(bench: Bench) -> None:
    """An exception out of a stream is passed on; the branch stays and nothing is left in the way."""

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        bench.yard.commit({"a.txt": broken()}, DATA)
    assert bench.yard.repos() == []
    assert list((bench.root / "links").iterdir()) == []


@pytest.mark.row(28)
def test_streams_whose_names_collide_are_refused(bench: Bench) -> None:
    """Names that are one on another system are refused before a stream is read."""
    with pytest.raises(InputError):
        bench.yard.commit({"Model.bin": b"1", "model.bin": b"2"}, DATA)


def test_commit_from_another_yard(bench: Bench, tmp_path: Path) -> None:
    """A version's files commit from one yard into another, whole or in segments, with the same id."""
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other", f"sqlite:///{tmp_path / 'other' / 'catalog.db'}")
    other.yard.commit(model(other, tensors()), "team/model")
    source = other.yard.commit(model(other, tensors(layer3=1)), "team/tuned")
    assert not other.store.has_file(weights(source))
    made = bench.yard.commit(other.yard.files(source), "team/model")
    assert made.id == source.id
    assert bench.yard.files(made).read("model.safetensors") == other.yard.files(source).read("model.safetensors")
    other.close()


def test_a_file_that_another_yard_lost_is_no_commit(bench: Bench, tmp_path: Path) -> None:
    """The other yard's missing file is named, and nothing is committed; one that is held here need not be there."""
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other", f"sqlite:///{tmp_path / 'other' / 'catalog.db'}")
    source = other.data("lost")
    other.store.remove("files", source.files[0].blake3)
    with pytest.raises(IntegrityError):
        bench.yard.commit(other.yard.files(source), DATA)
    assert bench.yard.repos() == []
    bench.data("lost", to="datasets/team/here")
    assert bench.yard.commit(other.yard.files(source), DATA).id == source.id
    other.close()


def test_versions_by_metadata(any_bench: Bench) -> None:
    """`where` keeps the versions that have each of the keys with this very value."""
    bench = any_bench
    for seed, lr in (("1", "1e-4"), ("2", "1e-4"), ("1", "3e-4")):
        bench.data(f"{seed}{lr}", metadata={"seed": seed, "lr": lr})
    bench.data("without")
    assert [v.number for v in bench.yard.versions(DATA, where={"lr": "1e-4"})] == [2, 1]
    assert [v.number for v in bench.yard.versions(DATA, where={"lr": "1e-4", "seed": "1"})] == [1]
    assert bench.yard.versions(DATA, where={"lr": "1'; DROP TABLE versions"}) == []
    assert [v.number for v in bench.yard.versions(DATA, where={"lr": "1e-4"}, limit=1)] == [2]
    assert [entry.version for entry in bench.yard.log(DATA, where={"seed": "2"})] == [f"{DATA}@v2"]


def test_a_derivation_is_kept_with_its_version(any_bench: Bench) -> None:
    """What the committer says the files were computed by is stored, and shown; nonsense is refused."""
    said = {"operation": "linear/1", "weights": [0.5, 0.5]}
    version = any_bench.data("1", derivation=said)
    assert any_bench.yard.resolve(version).derivation == said
    assert any_bench.data("2").derivation is None
    with pytest.raises(InputError, match="operation"):
        any_bench.data("3", derivation={"weights": [1]})
    with pytest.raises(InputError, match="JSON"):
        any_bench.data("3", derivation={"operation": "x", "weights": [float("nan")]})


def test_the_counter_of_collections_starts_at_nothing(bench: Bench) -> None:
    """A commit alone counts no collection."""
    bench.data()
    with bench.yard._context.catalog.read() as connection:
        assert counters.current(connection, "collections") == 0
