"""The promises of `modelyard.store.Store`, run against every implementation."""

from __future__ import annotations

import hashlib
import random
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast, get_args

import pytest

from modelyard.digest import Digest, FileDigests, digest_bytes
from modelyard.errors import ConflictError, InputError, IntegrityError, NotFoundError, YardError
from modelyard.store import Area, LocalStore, MemoryStore, ObjectArea, Store
from modelyard.store.base import ByteArea
from modelyard.store.hashing import Segmenting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ABSENT = Digest("0" * 64)
AREAS: tuple[Area, ...] = get_args(Area)
OBJECT_AREAS: tuple[ObjectArea, ...] = get_args(ObjectArea)
BYTE_AREAS: tuple[ByteArea, ...] = get_args(ByteArea)

SIZES = [0, 1, 4095, 4096, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (8 << 20) + 3]


@dataclass
class Case:
    """A store and a way to damage it behind its back."""

    store: Store
    overwrite: Callable[[ObjectArea, Digest, bytes], None]
    overwrite_journal: Callable[[int, bytes], None]


def local_case(folder: Path) -> Case:
    store = LocalStore(folder / "yard").init()

    def overwrite(area: ObjectArea, digest: Digest, data: bytes) -> None:
        path = folder / "yard" / area / (digest[:2] if area in {"files", "packs"} else "") / digest
        path.chmod(0o600)
        path.write_bytes(data)

    def overwrite_journal(seq: int, data: bytes) -> None:
        path = folder / "yard" / "journal" / str(seq)
        path.chmod(0o600)
        path.write_bytes(data)

    return Case(store, overwrite, overwrite_journal)


def memory_case(folder: Path) -> Case:
    store = MemoryStore()

    def overwrite(area: ObjectArea, digest: Digest, data: bytes) -> None:
        store._areas[area][digest] = data

    def overwrite_journal(seq: int, data: bytes) -> None:
        store._journal[seq] = data

    return Case(store, overwrite, overwrite_journal)


def s3_case(folder: Path) -> Case:
    import s3_case as s3

    store = s3.make_store(folder)
    return Case(store, partial(s3.overwrite, store), partial(s3.overwrite_journal, store))


@pytest.fixture(params=[local_case, memory_case, s3_case], ids=["local", "memory", "s3"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    made = request.param(tmp_path)
    assert isinstance(made, Case)
    return made


@pytest.fixture
def store(case: Case) -> Store:
    return case.store


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read(store: Store, digest: Digest) -> bytes:
    with store.open_file(digest) as stream:
        return stream.read()


def expected_digests(data: bytes) -> FileDigests:
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() if len(data) <= 1 << 20 else None
    return FileDigests(len(data), digest_bytes(data), hashlib.sha256(data).hexdigest(), git)


class TestStore:
    """What every store does alike."""

    @pytest.mark.parametrize("size", SIZES)
    def test_a_put_file_is_read_back(self, store: Store, size: int) -> None:
        """A file of any size comes back byte for byte, with the hashes that other programs give it."""
        data = some_bytes(size)
        digests = store.put_file(data[at : at + 100_003] for at in range(0, size, 100_003))
        assert digests == expected_digests(data)
        assert read(store, digests.blake3) == data
        assert store.file_size(digests.blake3) == size
        store.verify_file(digests.blake3)

    @pytest.mark.parametrize("size", SIZES)
    def test_an_imported_file_is_read_back(self, store: Store, size: int, tmp_path: Path) -> None:
        """An imported file is a copy: the same bytes and hashes, and the original may change afterwards."""
        data = some_bytes(size)
        original = tmp_path / "original"
        original.write_bytes(data)
        digests = store.import_file(original)
        original.write_bytes(b"changed")
        assert digests == expected_digests(data)
        assert read(store, digests.blake3) == data

    @pytest.mark.parametrize("size", [10, (8 << 20) + 1])
    def test_importing_twice_is_importing_once(self, store: Store, size: int, tmp_path: Path) -> None:
        """Importing bytes that are stored already gives the same hashes and stores nothing."""
        (tmp_path / "a").write_bytes(some_bytes(size))
        (tmp_path / "b").write_bytes(some_bytes(size))
        (tmp_path / "c").write_bytes(some_bytes(size, seed=1))
        assert store.import_file(tmp_path / "a") == store.import_file(tmp_path / "b")
        third = store.import_file(tmp_path / "c")
        assert read(store, third.blake3) == some_bytes(size, seed=1)
        assert len(list(store.digests("files"))) == 2

    @pytest.mark.parametrize("size", [10, (8 << 20) + 1])
    @pytest.mark.parametrize("knows", [True, False])
    def test_a_recorded_sha256_changes_nothing_but_the_speed(
        self, case: Case, size: int, knows: bool, tmp_path: Path
    ) -> None:
        """With `sha256_of`, whether it knows the file or not, the first, a second and a repairing import give all hashes."""
        data = some_bytes(size)
        (tmp_path / "original").write_bytes(data)
        expected = expected_digests(data)
        recorded = {expected.blake3: expected.sha256} if knows else {}
        for _ in range(2):
            assert case.store.import_file(tmp_path / "original", sha256_of=recorded.get) == expected
        case.overwrite("files", expected.blake3, bytes(size))
        assert case.store.import_file(tmp_path / "original", sha256_of=recorded.get) == expected
        case.store.verify_file(expected.blake3)

    def test_importing_what_is_no_file_is_refused(self, store: Store, tmp_path: Path) -> None:
        """A missing path and a folder are typed errors that name the path."""
        with pytest.raises(NotFoundError, match="nowhere"):
            store.import_file(tmp_path / "nowhere")
        with pytest.raises(InputError, match=str(tmp_path)):
            store.import_file(tmp_path)

    def test_chunks_may_be_of_any_size_and_kind(self, store: Store) -> None:
        """Empty chunks, byte arrays and views make the same file as one chunk."""
        chunks = [b"", bytearray(b"some "), b"", memoryview(b"bytes"), b""]
        assert store.put_file(cast("list[bytes]", chunks)) == store.put_file([b"some bytes"])

    def test_putting_twice_is_putting_once(self, store: Store) -> None:
        """The same bytes again give the same hashes and one object."""
        first = store.put_file([b"same"])
        assert store.put_file([b"sa", b"me"]) == first
        assert list(store.digests("files")) == [first.blake3]

    def test_a_source_that_fails_stores_nothing(self, store: Store) -> None:
        """An exception out of the chunks is passed on, and no object appears."""

        def chunks() -> Iterator[bytes]:
            yield b"half of it"
            raise RuntimeError("the upload broke off")

        with pytest.raises(RuntimeError, match="broke off"):
            store.put_file(chunks())
        assert list(store.digests("files")) == []
        store.put_file([b"still works"])

    def test_a_file_has_a_path_with_its_bytes_that_is_read_only(self, store: Store) -> None:
        """`file_path` is a real file with these bytes, mode 0444, every time it is asked."""
        digest = store.put_file([b"mapped"]).blake3
        path = store.file_path(digest)
        assert path.read_bytes() == b"mapped"
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert store.file_path(digest) == path

    @pytest.mark.parametrize("area", AREAS)
    def test_a_put_object_is_read_back(self, store: Store, area: Area) -> None:
        """A small object comes back under the BLAKE3 of its bytes, in its own area only."""
        data = some_bytes(10_000)
        digest = store.put(area, data)
        assert store.put(area, data) == digest == digest_bytes(data)
        assert store.get(area, digest) == data
        assert store.has(area, digest)
        others = [other for other in OBJECT_AREAS if other != area]
        assert [list(store.digests(other)) for other in others] == [[], [], []]

    def test_has_tells_what_is_there(self, store: Store) -> None:
        """`has` and `has_file` are true of what was put and false of the rest."""
        digest = store.put_file([b"x"]).blake3
        assert store.has_file(digest)
        assert not store.has_file(ABSENT)
        assert not any(store.has(area, digest) for area in AREAS)

    @pytest.mark.parametrize("call", ["open_file", "file_path", "file_size", "verify_file"])
    def test_a_missing_file_is_an_integrity_error(self, store: Store, call: str) -> None:
        """Whatever reads a file that is not there says so, with the code `missing`."""
        with pytest.raises(IntegrityError, match="000000000000") as caught:
            getattr(store, call)(ABSENT)
        assert caught.value.code == "missing"

    @pytest.mark.parametrize("area", AREAS)
    def test_a_missing_object_is_an_integrity_error(self, store: Store, area: Area) -> None:
        """Reading a manifest or report that is not there says so, with the code `missing`."""
        with pytest.raises(IntegrityError) as caught:
            store.get(area, ABSENT)
        assert caught.value.code == "missing"

    @pytest.mark.parametrize("area", OBJECT_AREAS)
    def test_digests_are_listed_in_order(self, store: Store, area: ObjectArea) -> None:
        """`digests` yields everything in the area once, ascending."""
        stored = [some_bytes(20, seed) for seed in range(40)]
        for data in stored:
            if area in BYTE_AREAS:
                store.put_file([data], area=area)
            else:
                store.put(cast("Area", area), data)
        assert list(store.digests(area)) == sorted(digest_bytes(data) for data in stored)

    @pytest.mark.parametrize("area", OBJECT_AREAS)
    def test_removing_removes_and_may_be_repeated(self, store: Store, area: ObjectArea) -> None:
        """A removed object is gone, removing it again is fine, and so is storing it again."""
        for _ in range(2):
            if area in BYTE_AREAS:
                digest = store.put_file([b"x"], area=area).blake3
            else:
                digest = store.put(cast("Area", area), b"x")
            assert list(store.digests(area)) == [digest]
            store.remove(area, digest)
            store.remove(area, digest)
            assert list(store.digests(area)) == []
            assert not store.has_file(digest)

    @pytest.mark.parametrize("size", SIZES)
    def test_a_pack_is_kept_like_a_file_in_an_area_of_its_own(self, case: Case, size: int) -> None:
        """A pack of any size comes back whole and in ranges, is verified and repaired, and is no file."""
        store, data = case.store, some_bytes(size)
        digest = store.put_file([data], area="packs").blake3
        assert (store.has_file(digest, area="packs"), store.has_file(digest)) == (True, False)
        assert store.file_size(digest, area="packs") == size
        with store.open_file(digest, area="packs") as stream:
            assert stream.read() == data
        store.verify_file(digest, area="packs")
        case.overwrite("packs", digest, data + b"!")
        with pytest.raises(IntegrityError, match=digest[:12]):
            store.verify_file(digest, area="packs")
        assert store.put_file([data], area="packs").blake3 == digest
        store.verify_file(digest, area="packs")
        with pytest.raises(IntegrityError) as caught:
            store.file_size(digest)
        assert caught.value.code == "missing"

    @pytest.mark.parametrize("area", BYTE_AREAS)
    def test_ranges_are_read_exactly(self, store: Store, area: ByteArea) -> None:
        """`read_range` gives the bytes from start to end, empty and whole ranges included; one beyond the end is damage."""
        data = some_bytes(3_000_000)
        digest = store.put_file([data], area=area).blake3
        for start, end in [(0, 0), (0, 1), (5, 70_000), (1_048_575, 2_097_153), (2_999_999, 3_000_000), (0, 3_000_000)]:
            assert store.read_range(area, digest, start, end) == data[start:end]
        with pytest.raises(IntegrityError, match=digest[:12]):
            store.read_range(area, digest, 2_999_999, 3_000_001)
        with pytest.raises(IntegrityError) as caught:
            store.read_range(area, ABSENT, 0, 1)
        assert caught.value.code == "missing"

    @pytest.mark.parametrize("size", [1, 10_000, (8 << 20) + 3, 20 << 20])
    def test_an_import_is_observed_byte_by_byte(self, case: Case, size: int, tmp_path: Path) -> None:
        """`observe` is given every byte once and in order: when the bytes are new, stored, stored but damaged, and nearly stored."""
        data = some_bytes(size)
        near = data[: size // 2] + bytes([data[size // 2] ^ 1]) + data[size // 2 + 1 :]
        sizes = [size // 3, size - size // 3] if size > 2 else [size]
        for kept in (data, data, None, data, near):
            if kept is None:
                case.overwrite("files", digest_bytes(data), bytes(size))
                continue
            (tmp_path / "original").write_bytes(kept)
            segmenting = Segmenting(sizes)
            digests = case.store.import_file(tmp_path / "original", observe=segmenting.update)
            assert digests == expected_digests(kept)
            parts = [kept[: sizes[0]], kept[sizes[0] :]][: len(sizes)]
            assert segmenting.digests() == tuple(digest_bytes(part) for part in parts)
            case.store.verify_file(digests.blake3)

    @pytest.mark.parametrize("size", [10, 20 << 20])
    def test_an_observer_that_fails_stores_nothing(self, store: Store, size: int, tmp_path: Path) -> None:
        """What `observe` raises is passed on, wherever it runs, and no object appears."""
        (tmp_path / "original").write_bytes(some_bytes(size))

        def fail(chunk: bytes) -> None:
            raise RuntimeError("the cut is wrong")

        with pytest.raises(RuntimeError, match="cut is wrong"):
            store.import_file(tmp_path / "original", observe=fail)
        assert list(store.digests("files")) == []

    @pytest.mark.parametrize("size", [10, (8 << 20) + 3])
    def test_an_import_that_may_link_gives_the_same(self, store: Store, size: int, tmp_path: Path) -> None:
        """With `link`, whether or not the store can, the hashes and the bytes are those of any import, and it may be repeated."""
        (tmp_path / "original").write_bytes(some_bytes(size))
        for _ in range(2):
            assert store.import_file(tmp_path / "original", link=True) == expected_digests(some_bytes(size))
        assert read(store, digest_bytes(some_bytes(size))) == some_bytes(size)
        assert (tmp_path / "original").read_bytes() == some_bytes(size)

    @pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "empty"])
    @pytest.mark.row(42, 43)
    def test_damage_to_a_file_is_detected_and_repaired(self, case: Case, damage: str) -> None:
        """`verify_file` finds a flipped bit, a missing end and a longer file; putting the file again repairs it."""
        data = some_bytes(3 << 20)
        damaged = {
            "flip": data[:2_000_000] + bytes([data[2_000_000] ^ 1]) + data[2_000_001:],
            "truncate": data[:-1],
            "extend": data + b"\0",
            "empty": b"",
        }[damage]
        digest = case.store.put_file([data]).blake3
        case.overwrite("files", digest, damaged)
        with pytest.raises(IntegrityError, match=digest[:12]):
            case.store.verify_file(digest)
        case.store.put_file([data])
        case.store.verify_file(digest)
        assert read(case.store, digest) == data

    @pytest.mark.parametrize("area", AREAS)
    @pytest.mark.row(42)
    def test_damage_to_an_object_is_detected_and_repaired(self, case: Case, area: Area) -> None:
        """A damaged manifest or report is never returned; putting it again repairs it."""
        digest = case.store.put(area, b"what it says")
        case.overwrite(area, digest, b"what it sayz")
        with pytest.raises(IntegrityError, match=digest[:12]):
            case.store.get(area, digest)
        case.store.put(area, b"what it says")
        assert case.store.get(area, digest) == b"what it says"

    def test_importing_repairs_a_damaged_file(self, case: Case, tmp_path: Path) -> None:
        """An import of bytes whose stored copy is damaged stores them again."""
        (tmp_path / "original").write_bytes(some_bytes(9 << 20))
        digest = case.store.import_file(tmp_path / "original").blake3
        case.overwrite("files", digest, some_bytes(9 << 20, seed=1))
        assert case.store.import_file(tmp_path / "original").blake3 == digest
        case.store.verify_file(digest)

    def test_the_journal_is_read_in_order(self, store: Store) -> None:
        """Entries come back by number, not by name or time, gaps and empty entries included."""
        entries = {10: b"ten", 2: b"two", 0: b"", 1 << 40: b"far", 9: b"nine"}
        for seq, entry in entries.items():
            store.publish_journal(seq, entry)
        assert list(store.journal()) == sorted(entries.items())

    def test_a_journal_entry_may_be_published_again_but_never_changed(self, store: Store) -> None:
        """The same entry again is fine; another under the same number is a conflict and changes nothing."""
        store.publish_journal(1, b"first")
        store.publish_journal(1, b"first")
        with pytest.raises(ConflictError, match="journal entry 1"):
            store.publish_journal(1, b"other")
        assert list(store.journal()) == [(1, b"first")]

    def test_a_damaged_journal_entry_is_detected_and_repaired(self, case: Case) -> None:
        """Reading stops at a damaged entry with an error; publishing it again repairs it."""
        for seq in (1, 2, 3):
            case.store.publish_journal(seq, b"entry")
        case.overwrite_journal(2, digest_bytes(b"entry").encode() + b"\nentrx")
        journal = case.store.journal()
        assert next(journal) == (1, b"entry")
        with pytest.raises(IntegrityError, match="journal entry 2"):
            next(journal)
        case.store.publish_journal(2, b"entry")
        assert [seq for seq, _ in case.store.journal()] == [1, 2, 3]

    def test_many_writers_of_the_same_bytes_agree(self, store: Store) -> None:
        """Threads that store the same and different bytes at the same time all succeed, and everything verifies."""
        start = threading.Barrier(6)

        def work(number: int) -> None:
            start.wait()
            for seed in range(5):
                store.put_file([some_bytes(5_000, seed)])
                store.put("manifests", some_bytes(500, seed))
                store.publish_journal(seed, some_bytes(50, seed))
            store.put_file([b"%d" % number])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert len(list(store.digests("files"))) == 11
        assert len(list(store.digests("manifests"))) == 5
        assert [seq for seq, _ in store.journal()] == [0, 1, 2, 3, 4]
        for digest in store.digests("files"):
            store.verify_file(digest)

    def test_free_bytes_is_a_number_or_unknown(self, store: Store) -> None:
        """`free_bytes` is positive where there is a disk and None where nobody can tell."""
        free = store.free_bytes()
        assert free is None or free > 0

    @pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
    def test_a_text_that_is_no_digest_touches_nothing(self, store: Store, name: str) -> None:
        """A plain string that is no digest never becomes a path, even when it claims to be a digest."""
        with pytest.raises(YardError):
            store.open_file(str.__new__(Digest, name))
