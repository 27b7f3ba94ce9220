"""The layer that makes the system calls, and the disks that fail."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from modelyard.errors import InputError, NoSpaceError
from modelyard.store.faults import POINTS, Operation, RecordingFileSystem, WatchedFileSystem, crash_states, failpoint
from modelyard.store.filesystem import FileSystem
from modelyard.store.oserrors import explain


def test_a_new_file_is_private_and_locked(tmp_path: Path) -> None:
    """`create_tmp` makes a file of mode 0600 that no cleaner can take until it is closed."""
    disk = FileSystem()
    file = disk.create_tmp(tmp_path)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert not disk.unlink_stale(file.path)
    disk.close(file)
    disk.close(file)
    assert disk.unlink_stale(file.path)
    assert not disk.unlink_stale(file.path)


def test_a_file_that_a_cleaner_caught_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner that comes between creation and lock, and either holds the file or has removed it, costs a new name, not an error."""
    lock = fcntl.flock
    calls = 0

    def interrupted(fd: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BlockingIOError(errno.EAGAIN, "held by a cleaner")
        if calls == 2:
            Path(f"/proc/self/fd/{fd}").readlink().unlink()
        lock(fd, operation)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to find the file of a descriptor")
    monkeypatch.setattr(fcntl, "flock", interrupted)
    disk = FileSystem()
    file = disk.create_tmp(tmp_path)
    assert calls == 3
    assert file.path.exists()
    disk.close(file)


def test_a_disk_without_locks_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `flock` fails for another reason, the new file is removed again."""

    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="no locks"):
        FileSystem().create_tmp(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_making_a_folder_over_a_file_fails(tmp_path: Path) -> None:
    """`mkdir` accepts a folder that is there and nothing else."""
    FileSystem().mkdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        FileSystem().mkdir(tmp_path / "file")


def test_every_change_is_a_point_that_can_fail() -> None:
    """Each public method that changes the disk is named in `POINTS` and watched; a new one without a failpoint fails here."""
    changing = {name for name in vars(FileSystem) if not name.startswith("_")} - {"close", "unlink_stale"}
    assert changing == set(POINTS)
    assert changing <= set(vars(WatchedFileSystem))


@pytest.mark.parametrize(
    "text", ["", "fsync", "fsync:1", "fsync:0:EIO", "fsync:x:EIO", "fsync:1:EWHAT", "sync:1:EIO", "write:1:errorcode"]
)
def test_a_wrong_failpoint_is_refused(text: str) -> None:
    """A text that names no point, number or action is an `InputError` that shows the form."""
    with pytest.raises(InputError, match="no failpoint") as caught:
        failpoint(text)
    assert "POINT:NUMBER:ACTION" in str(caught.value.hint)


def test_a_failpoint_strikes_once(tmp_path: Path) -> None:
    """`write:2:ENOSPC` fails the second write and no other."""
    disk = failpoint("write:2:ENOSPC")
    file = disk.create_tmp(tmp_path)
    disk.write(file, b"1")
    with pytest.raises(OSError, match="No space"):
        disk.write(file, b"2")
    disk.write(file, b"3")
    assert file.path.read_bytes() == b"13"
    disk.close(file)


def test_unsynced_bytes_may_be_lost_torn_or_zero() -> None:
    """A synced name with unsynced bytes: as synced, all, half, or the right length of zeros."""
    operations = [
        Operation("create_tmp", "tmp/a"),
        Operation("write", "tmp/a", data=b"safe"),
        Operation("fsync", "tmp/a"),
        Operation("fsync_dir", "tmp"),
        Operation("write", "tmp/a", data=b"1234"),
    ]
    found = [state["tmp/a"] for state in crash_states(operations)]
    assert sorted(map(str, found)) == sorted(map(str, [b"safe", b"safe1234", b"safe12", b"safe\0\0\0\0"]))


def test_an_unsynced_rename_may_leave_both_names_or_neither() -> None:
    """A rename across folders of which only the new one is synced: there in any case, the old name perhaps."""
    operations = [
        Operation("create_tmp", "tmp/a"),
        Operation("fsync_dir", "tmp"),
        Operation("rename", "tmp/a", "files/a"),
    ]
    assert {frozenset(state) for state in crash_states(operations)} == {
        frozenset(),
        frozenset({"tmp/a"}),
        frozenset({"files/a"}),
        frozenset({"tmp/a", "files/a"}),
    }
    synced = [*operations, Operation("fsync_dir", "files")]
    assert {frozenset(state) for state in crash_states(synced)} == {
        frozenset({"files/a"}),
        frozenset({"tmp/a", "files/a"}),
    }


def test_recording_notes_what_happened(tmp_path: Path) -> None:
    """Operations are recorded in order, with paths relative to the root; a failed one is not."""
    disk = RecordingFileSystem(tmp_path)
    (tmp_path / "to").mkdir()
    file = disk.create_tmp(tmp_path)
    disk.write(file, b"x")
    disk.fsync(file)
    disk.rename(file, tmp_path / "to" / "name")
    disk.close(file)
    with pytest.raises(FileNotFoundError):
        disk.unlink(tmp_path / "absent")
    disk.mark("done")
    assert [operation.name for operation in disk.operations] == ["create_tmp", "write", "fsync", "rename", "mark"]
    assert disk.operations[3].target == "to/name"


@pytest.mark.row(41)
def test_a_descriptor_shortage_is_a_typed_error() -> None:
    """EMFILE and anything unforeseen still name the path and the cause."""
    error = explain(OSError(errno.EMFILE, "Too many open files"), "/yard/files", "open")
    assert error.message == "could not open `/yard/files`: Too many open files"
    assert error.details == {"path": "/yard/files", "errno": "EMFILE"}
    assert isinstance(explain(OSError(errno.EDQUOT, "Quota exceeded"), "/yard", "write"), NoSpaceError)
    assert "one file system" in str(explain(OSError(errno.EXDEV, "Cross-device"), "/yard", "create").hint)
