"""Power loss, dying processes, full and failing disks: what the store promises when they happen.

The power-loss tests record every change of the disk that a call makes, and open a store on every state that a power loss after any
prefix of them may leave (`modelyard.store.faults.crash_states`).
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from modelyard.digest import Digest, digest_bytes
from modelyard.errors import IntegrityError, NoSpaceError, NotFoundError, YardError
from modelyard.store import LocalStore
from modelyard.store.faults import (
    FailingFileSystem,
    Operation,
    RecordingFileSystem,
    State,
    WatchedFileSystem,
    crash_states,
    failpoint,
)
from modelyard.store.filesystem import FileSystem, TmpFile
from modelyard.store.packs import FileRecord, PackWriter, read_index

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(0).randbytes(3000)
CHUNKS = [DATA[:1000], DATA[1000:2500], DATA[2500:]]


class Replica:
    """One yard's folder that is put into one recorded state after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        LocalStore(root).init()
        self._format = (root / "format").read_bytes()

    def become(self, state: State) -> LocalStore:
        """Take the place of the disk in `state`, which adds to a fresh yard."""
        (self.root / "format").write_bytes(self._format)
        for folder in ("tmp", "journal", "manifests", "reports", "files", "packs"):
            for path in (self.root / folder).iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for name, data in sorted(state.items()):
            path = self.root / name
            if data is None:
                path.mkdir()
            elif path.parent.is_dir():  # else its folder was lost, and the file with it
                path.write_bytes(data)
        return LocalStore(self.root).open()


def states_after_each_prefix(operations: list[Operation]) -> Iterator[tuple[list[Operation], State]]:
    """Every prefix of the operations with every state that a power loss right after it may leave."""
    for count in range(len(operations) + 1):
        for state in crash_states(operations[:count]):
            yield operations[:count], state


def acknowledged(operations: list[Operation]) -> list[str]:
    return [operation.path for operation in operations if operation.name == "mark"]


def check_everything_visible(store: LocalStore) -> None:
    """Whatever has a name is right: nothing torn, nothing empty."""
    for digest in store.digests("files"):
        store.verify_file(digest)
    for pack in store.digests("packs"):
        store.verify_file(pack, area="packs")
        read_index(store, pack)
        assert b"packs" in (store.root / "format").read_bytes(), "a pack in a yard that does not say so"
    for digest in store.digests("manifests"):
        store.get("manifests", digest)
    list(store.journal())


Call = Callable[[LocalStore], str]
"""Stores something; gives back a note of what was acknowledged."""


def put_file(store: LocalStore) -> str:
    return f"files {store.put_file(CHUNKS).blake3}"


def put_manifest(store: LocalStore) -> str:
    return f"manifests {store.put('manifests', DATA)}"


def publish_journal(store: LocalStore) -> str:
    store.publish_journal(7, DATA)
    return "journal 7"


def import_file(store: LocalStore) -> str:
    original = store.root.parent / "original"
    if not original.exists():
        original.write_bytes(DATA)
    return f"files {store.import_file(original).blake3}"


def link_file(store: LocalStore) -> str:
    original = store.root.parent / "large"
    if not original.exists():
        original.write_bytes(DATA * 3000)
    return f"large {store.import_file(original, link=True).blake3}"


def put_pack(store: LocalStore) -> str:
    with PackWriter(store) as writer:
        for start in range(0, 3000, 1000):
            payload = DATA[start : start + 1000]
            writer.add(digest_bytes(payload), 1000, "raw", payload)
        writer.add_file(FileRecord(digest_bytes(DATA), 3000, "00" * 32, "cdc/1", tuple(segments_of(DATA))))
        pack, _ = writer.close()
    return f"packs {pack}"


def segments_of(data: bytes) -> list[Digest]:
    return [digest_bytes(data[start : start + 1000]) for start in range(0, len(data), 1000)]


def check_pack(store: LocalStore, pack: Digest) -> None:
    """Every segment of the pack is there, and its index says how the file is put together."""
    store.verify_file(pack, area="packs")
    index = read_index(store, pack)
    found = {
        record.digest: store.read_range("packs", pack, record.offset, record.offset + record.length)
        for record in index.segments
    }
    (file,) = index.files
    assert b"".join(found[digest] for digest in file.segments) == DATA


def check_acknowledged(store: LocalStore, note: str) -> None:
    """What the call said is stored is stored, with its exact bytes."""
    kind, name = note.split()
    if kind == "journal":
        assert (int(name), DATA) in list(store.journal())
    elif kind == "packs":
        check_pack(store, Digest(name))
    elif kind == "large":
        assert store.file_size(Digest(name)) == 3000 * len(DATA)
        store.verify_file(Digest(name))
    elif kind == "files":
        with store.open_file(Digest(name)) as stream:
            assert stream.read() == DATA
    else:
        assert store.get("manifests", Digest(name)) == DATA


def violations(folder: Path, call: Call, filesystem: Callable[[Path], RecordingFileSystem]) -> tuple[list[str], int]:
    """Run `call` on a recorded disk and look at every state a power loss may leave; what is wrong, and how many states there were."""
    LocalStore(folder / "yard").init()
    disk = filesystem(folder / "yard")
    store = LocalStore(folder / "yard", disk)
    disk.mark(call(store))
    replica = Replica(folder / "replica")
    wrong, count = [], 0
    for done, state in states_after_each_prefix(disk.operations):
        count += 1
        try:
            found = replica.become(state)
            check_everything_visible(found)
            for note in acknowledged(done):
                check_acknowledged(found, note)
            check_acknowledged(found, call(found))  # the call again, after the crash
        except (YardError, AssertionError) as error:
            wrong.append(f"after {[operation.name for operation in done]}: {error}")
        if list((replica.root / "tmp").iterdir()):
            wrong.append(f"after {[operation.name for operation in done]}: tmp/ was not swept")
    return wrong, count


@pytest.mark.parametrize("call", [put_file, put_manifest, publish_journal, import_file, put_pack])
@pytest.mark.row(38)
def test_an_acknowledged_object_survives_power_loss(tmp_path: Path, call: Call) -> None:
    """After any prefix of the call's changes, in every state a power loss may leave: what is visible is right, what was
    acknowledged is there, the same call succeeds, and leftovers are swept.
    """
    wrong, count = violations(tmp_path, call, RecordingFileSystem)
    assert wrong == []
    assert count > 20


class NoFileSync(RecordingFileSystem):
    """Forgets to make files durable."""

    def fsync(self, file: TmpFile) -> None:
        pass


class NoFolderSync(RecordingFileSystem):
    """Forgets to make names durable."""

    def fsync_dir(self, path: Path) -> None:
        pass


@pytest.mark.parametrize("call", [put_file, put_manifest, publish_journal, put_pack])
@pytest.mark.parametrize("broken", [NoFileSync, NoFolderSync])
def test_the_power_loss_test_finds_a_missing_fsync(
    tmp_path: Path, call: Call, broken: Callable[[Path], RecordingFileSystem]
) -> None:
    """A store that forgot either fsync fails the test above: it can fail."""
    wrong, _ = violations(tmp_path, call, broken)
    assert wrong != []


@pytest.mark.parametrize("call", [put_file, import_file, put_manifest, publish_journal])
def test_two_writers_of_the_same_bytes_are_both_right_to_acknowledge(tmp_path: Path, call: Call) -> None:
    """A second writer that finds the bytes published, but their folder not yet synced, makes them durable itself."""
    yard = tmp_path / "yard"
    LocalStore(yard).init()
    disk = RecordingFileSystem(yard)
    second = LocalStore(yard, disk)

    class SecondComesFirst(WatchedFileSystem):
        """Lets the second writer run between the first one's new name and its sync of the folder."""

        def after(self, operation: Operation) -> None:
            if operation.name in {"create_tmp", "write", "fsync", "mkdir", "rename", "link"}:
                RecordingFileSystem.after(disk, operation)
            if operation.name in {"rename", "link"}:
                disk.mark(call(second))

    call(LocalStore(yard, SecondComesFirst()))
    replica = Replica(tmp_path / "replica")
    (note,) = acknowledged(disk.operations)
    end = next(index for index, operation in enumerate(disk.operations) if operation.name == "mark") + 1
    for state in crash_states(disk.operations[:end]):
        check_acknowledged(replica.become(state), note)


def test_a_linked_import_survives_power_loss(tmp_path: Path) -> None:
    """After any prefix of an import by link: what is visible is right, what was acknowledged is there, the call again succeeds."""
    LocalStore(tmp_path / "yard").init()
    disk = RecordingFileSystem(tmp_path / "yard")
    store = LocalStore(tmp_path / "yard", disk)
    disk.mark(link_file(store))
    names = [operation.name for operation in disk.operations]
    assert "adopt" in names
    assert "write" not in names
    replica = Replica(tmp_path / "replica")
    for count in range(len(disk.operations) + 1):
        for state in crash_states(disk.operations[:count]):
            found = replica.become(state)
            check_everything_visible(found)
            for note in acknowledged(disk.operations[:count]):
                check_acknowledged(found, note)
            check_acknowledged(found, link_file(found))


def test_the_feature_is_durable_before_a_pack_is_visible(tmp_path: Path) -> None:
    """In no state that a power loss may leave is there a pack in a yard whose `format` does not announce packs."""
    LocalStore(tmp_path / "yard").init()
    disk = RecordingFileSystem(tmp_path / "yard")
    put_pack(LocalStore(tmp_path / "yard", disk))
    packs = 0
    for _, state in states_after_each_prefix(disk.operations):
        if any(name.startswith("packs/") and data is not None for name, data in state.items()):
            packs += 1
            assert b'"packs"' in (state["format"] or b"")
    assert packs > 0


def test_init_survives_power_loss(tmp_path: Path) -> None:
    """Wherever `init` is cut off, the folder is either no yard yet or a whole one."""
    disk = RecordingFileSystem(tmp_path / "yard")
    LocalStore(tmp_path / "yard", disk).init()
    whole = {operation.path for operation in disk.operations if operation.name == "mkdir"}
    for _, state in states_after_each_prefix(disk.operations):
        if "format" in state:
            assert whole <= set(state)
            assert state["format"] == (tmp_path / "yard" / "format").read_bytes()


@pytest.mark.parametrize("point", ["mkdir:1", "mkdir:5", "fsync_dir:1", "write:1", "rename:1", "fsync_dir:3"])
def test_init_completes_what_an_interrupted_one_began(tmp_path: Path, point: str) -> None:
    """An `init` that failed at any step leaves a folder that is no yard or a whole one; `init` again makes it whole."""
    with pytest.raises(YardError):
        LocalStore(tmp_path / "yard", failpoint(f"{point}:EIO")).init()
    try:
        LocalStore(tmp_path / "yard").open()
    except NotFoundError as error:
        assert "yard init" in str(error.hint)  # noqa: PT017  both outcomes are right
    store = LocalStore(tmp_path / "yard").init()
    check_acknowledged(store, put_file(store))


def test_the_whole_yard_is_durable_after_init(tmp_path: Path) -> None:
    """After `init` returned, a power loss takes nothing that a yard needs."""
    disk = RecordingFileSystem(tmp_path)
    LocalStore(tmp_path / "yard", disk).init()
    needed = {"yard", "yard/format", "yard/tmp", "yard/journal", "yard/files", "yard/manifests", "yard/reports"}
    for state in crash_states(disk.operations):
        assert needed <= set(state)


# -- failing disks -----------------------------------------------------------------------------------------------------


def failing(folder: Path, text: str) -> LocalStore:
    LocalStore(folder).init()
    return LocalStore(folder, failpoint(text))


@pytest.mark.parametrize("call", [put_file, put_manifest, publish_journal, import_file])
@pytest.mark.row(39)
def test_a_failed_fsync_stores_nothing_and_is_not_retried(tmp_path: Path, call: Call) -> None:
    """EIO from fsync: a typed error, the file gone, fsync called once; the next call starts from new bytes."""
    LocalStore(tmp_path / "yard").init()
    disk = FailingFileSystem("fsync", 1, lambda: _raise(errno.EIO))
    store = LocalStore(tmp_path / "yard", disk)
    with pytest.raises(YardError, match="could not write") as caught:
        call(store)
    assert caught.value.details["errno"] == "EIO"
    assert disk.calls["fsync"] == 1
    assert disk.calls["rename"] == disk.calls["link"] == 0
    assert list((tmp_path / "yard" / "tmp").iterdir()) == []
    assert [*store.digests("files"), *store.digests("packs"), *store.digests("manifests"), *store.journal()] == []
    check_acknowledged(store, call(store))
    assert disk.calls["create_tmp"] == 2


@pytest.mark.row(39)
def test_a_folder_that_cannot_be_synced_stops_all_writing(tmp_path: Path) -> None:
    """EIO from syncing a folder: not acknowledged, no further write by this store, reads go on; opening anew starts over."""
    before = put_manifest(LocalStore(tmp_path).init())
    store = failing(tmp_path, "fsync_dir:1:EIO")
    with pytest.raises(YardError, match="make durable"):
        put_file(store)
    for call in (put_file, put_manifest, publish_journal):
        with pytest.raises(YardError, match="takes no more changes") as caught:
            call(store)
        assert caught.value.code == "read_only"
    check_acknowledged(store, before)
    check_acknowledged(store, put_file(LocalStore(tmp_path)))


@pytest.mark.row(41)
def test_running_out_of_descriptors_is_not_a_failed_sync(tmp_path: Path) -> None:
    """A folder that could not be opened for syncing fails that call only: a server that ran out of descriptors recovers."""
    store = failing(tmp_path, "fsync_dir:1:EMFILE")
    with pytest.raises(YardError, match="make durable"):
        put_file(store)
    check_acknowledged(store, put_file(store))


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("point", ["create_tmp", "write", "fsync", "rename", "fsync_dir"])
@pytest.mark.row(40)
def test_a_full_disk_is_a_typed_error_wherever_it_shows(tmp_path: Path, point: str, number: str) -> None:
    """ENOSPC and EDQUOT at any step are `NoSpaceError`, leave nothing half-made, and what was there is still readable."""
    before = put_manifest(LocalStore(tmp_path).init())
    store = failing(tmp_path, f"{point}:1:{number}")
    with pytest.raises(NoSpaceError, match="no space left to"):
        put_file(store)
    assert list((tmp_path / "tmp").iterdir()) == []
    check_acknowledged(store, before)
    check_everything_visible(store)


@pytest.mark.parametrize(("point", "number"), [("create_tmp", "EACCES"), ("rename", "EROFS"), ("write", "EPERM")])
@pytest.mark.row(41)
def test_a_forbidden_write_names_the_path(tmp_path: Path, point: str, number: str) -> None:
    """EACCES, EPERM and EROFS are typed errors that name a path of this yard."""
    store = failing(tmp_path, f"{point}:1:{number}")
    with pytest.raises(YardError, match="not allowed to") as caught:
        put_file(store)
    assert caught.value.code == "no_access"
    assert str(tmp_path) in caught.value.message
    check_acknowledged(store, put_file(store))


def test_every_point_can_fail_and_the_store_recovers(tmp_path: Path) -> None:
    """EIO at each single change that storing a file, a manifest and an entry makes: after it, opening and repeating succeeds."""
    counter = FailingFileSystem("none", 0, lambda: None)
    LocalStore(tmp_path / "count").init()
    store = LocalStore(tmp_path / "count", counter)
    for call in (put_file, put_manifest, publish_journal, put_pack):
        call(store)
    points = [(name, number) for name, total in counter.calls.items() for number in range(1, total + 1)]
    assert len(points) > 15
    for name, number in points:
        root = tmp_path / f"{name}{number}"
        root.mkdir()
        store = failing(root, f"{name}:{number}:EIO")
        for call in (put_file, put_manifest, publish_journal, put_pack):
            try:
                call(store)
            except YardError as error:
                assert error.code in {"io_failed", "read_only"}  # noqa: PT017  it may, but need not, raise: unlink failures are swept later
        again = LocalStore(root)
        for call in (put_file, put_manifest, publish_journal, put_pack):
            check_acknowledged(again, call(again))
        check_everything_visible(again)
        assert list((root / "tmp").iterdir()) == []


@pytest.mark.row(41)
def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that writes fewer bytes than asked is asked again until all are written."""
    store = LocalStore(tmp_path).init()
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    check_acknowledged(store, put_file(store))


def test_a_lost_write_is_noticed_before_publication(tmp_path: Path) -> None:
    """A file that came out shorter than what was written is never published."""

    class Forgetful(FileSystem):
        def write(self, file: TmpFile, data: bytes) -> None:
            super().write(file, data[:-1])

    LocalStore(tmp_path).init()
    store = LocalStore(tmp_path, Forgetful())
    with pytest.raises(YardError, match="instead of 3000"):
        put_file(store)
    assert list(store.digests("files")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root on Linux")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.row(40)
def test_a_really_full_disk_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """On a disk that is full: `NoSpaceError`, no leftovers, old objects readable; after freeing, the same call succeeds."""
    store = LocalStore(small_disk).init()
    kept = store.put_file([b"a" * 1_000_000]).blake3
    big = tmp_path / "big"
    big.write_bytes(random.Random(1).randbytes(9 << 20))
    with pytest.raises(NoSpaceError):
        store.put_file([b"b" * 500_000 for _ in range(20)])
    with pytest.raises(NoSpaceError):
        store.import_file(big)
    assert list((small_disk / "tmp").iterdir()) == []
    free = store.free_bytes()
    assert free is not None
    assert free > 2_000_000
    store.verify_file(kept)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(5 << 20))
    with pytest.raises(NoSpaceError):
        store.put("manifests", DATA)
    store.verify_file(kept)
    filler.unlink()
    assert store.get("manifests", store.put("manifests", DATA)) == DATA


@pytest.mark.row(41)
def test_a_disk_mounted_read_only_is_still_read(small_disk: Path) -> None:
    """On a read-only file system a yard opens and reads, and a write is a typed error that names the path."""
    digest = LocalStore(small_disk).init().put_file([b"x"]).blake3
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = LocalStore(small_disk).open()
    store.verify_file(digest)
    with pytest.raises(YardError, match="Read-only") as caught:
        store.put_file([b"y"])
    assert caught.value.code == "no_access"
    assert str(small_disk) in caught.value.message


# -- dying processes ---------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from modelyard.store import LocalStore
from modelyard.store.faults import failpoint
store = LocalStore(Path(sys.argv[1]), failpoint(sys.argv[2]))
store.put_file([b"x" * 1_500_000, b"y" * 1_500_000])
print("acknowledged", flush=True)
"""


@pytest.mark.parametrize("point", ["write:2", "protect:1", "fsync:1", "rename:1", "fsync_dir:1"])
@pytest.mark.row(37)
def test_a_killed_process_leaves_a_yard_that_opens_and_verifies(tmp_path: Path, point: str) -> None:
    """`kill -9` in the middle of `put_file`: old or new state, everything verifies, and the next writer sweeps what was left."""
    kept = put_file(LocalStore(tmp_path).init())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), f"{point}:kill"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert b"acknowledged" not in done.stdout
    store = LocalStore(tmp_path).open()
    check_acknowledged(store, kept)
    check_everything_visible(store)
    assert len(list(store.digests("files"))) in {1, 2}
    again = store.put_file([b"x" * 1_500_000, b"y" * 1_500_000])
    store.verify_file(again.blake3)
    assert list((tmp_path / "tmp").iterdir()) == []


KILLED_PACK = """
import sys
from pathlib import Path
from modelyard.digest import digest_bytes
from modelyard.store import LocalStore
from modelyard.store.faults import failpoint
from modelyard.store.packs import PackWriter
with PackWriter(LocalStore(Path(sys.argv[1]), failpoint(sys.argv[2]))) as writer:
    for letter in (b"x", b"y"):
        writer.add(digest_bytes(letter * 1_500_000), 1_500_000, "raw", letter * 1_500_000)
    writer.close()
print("acknowledged", flush=True)
"""


@pytest.mark.parametrize("point", ["rename:1", "fsync_dir:1", "write:2", "fsync:2", "rename:2", "fsync_dir:3"])
@pytest.mark.row(37)
def test_a_process_killed_in_a_pack_leaves_the_old_state_or_the_new(tmp_path: Path, point: str) -> None:
    """`kill -9` while a pack is announced, written and published: the yard opens, every visible pack is sound, tmp/ is swept."""
    kept = put_pack(LocalStore(tmp_path).init()) if point == "write:2" else put_file(LocalStore(tmp_path).init())
    done = subprocess.run(
        [sys.executable, "-c", KILLED_PACK, str(tmp_path), f"{point}:kill"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert b"acknowledged" not in done.stdout
    store = LocalStore(tmp_path).open()
    check_acknowledged(store, kept)
    check_everything_visible(store)
    check_acknowledged(store, put_pack(store))
    assert list((tmp_path / "tmp").iterdir()) == []


SLOW = """
import sys, time
from pathlib import Path
from modelyard.store import LocalStore
def chunks():
    yield b"x" * 100_000
    print("half", flush=True)
    sys.stdin.readline()
    yield b"y"
print(LocalStore(Path(sys.argv[1])).put_file(chunks()).blake3, flush=True)
"""


def test_a_slow_writer_is_not_swept_away(tmp_path: Path) -> None:
    """Another process's file on its way in is not a leftover, however old it looks; killing its writer makes it one."""
    store = LocalStore(tmp_path).init()
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as slow:
        assert slow.stdout is not None
        assert slow.stdin is not None
        assert slow.stdout.readline() == b"half\n"
        (left,) = (tmp_path / "tmp").iterdir()
        os.utime(left, (0, 0))
        assert store.remove_leftovers() == 0
        slow.stdin.write(b"\n")
        slow.stdin.flush()
        digest = Digest(slow.stdout.readline().decode().strip())
    store.verify_file(digest)
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as slow:
        assert slow.stdout is not None
        slow.stdout.readline()
        slow.kill()
        slow.wait()
        assert store.remove_leftovers() == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_sweeping_never_takes_a_living_writers_file(tmp_path: Path) -> None:
    """A cleaner that runs without pause beside a writer never makes it fail."""
    store = LocalStore(tmp_path).init()
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            store.remove_leftovers()

    cleaner = threading.Thread(target=sweep)
    cleaner.start()
    try:
        for number in range(60):
            store.put("reports", b"%d" % number)
    finally:
        stop.set()
        cleaner.join()
    assert sorted(store.digests("reports")) == sorted(digest_bytes(b"%d" % number) for number in range(60))


def test_a_limit_on_file_size_is_a_typed_error(tmp_path: Path) -> None:
    """A file larger than the process may write is refused with the path and the cause; nothing is left."""
    store = LocalStore(tmp_path).init()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    try:
        with pytest.raises(YardError, match="File too large"):
            store.put_file([bytes(1 << 17)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_torn_file_under_its_digest_is_detected(tmp_path: Path) -> None:
    """Should a disk lie about fsync, what it left under a digest is found by verification and replaced by the next put."""
    store = LocalStore(tmp_path).init()
    digest = store.put_file(CHUNKS).blake3
    path = store.file_path(digest)
    path.chmod(0o600)
    path.write_bytes(DATA[:1500] + bytes(1500))
    with pytest.raises(IntegrityError):
        store.verify_file(digest)
    check_acknowledged(store, put_file(store))


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))
