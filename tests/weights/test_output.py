"""A new folder is there whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import blake3
import pytest

import modelyard.weights as weights
from modelyard.errors import ConflictError, NoSpaceError
from modelyard.weights.output import HashingWriter, fresh_folder, write_file


def fail(out: Path, error: Exception) -> None:
    """Write something, then raise `error`."""
    with fresh_folder(out) as folder:
        write_file(folder / "x", b"data")
        raise error


def test_appears_at_the_end(tmp_path: Path) -> None:
    """The target is not there before the block ends, and is there with its files afterwards."""
    out = tmp_path / "deep" / "out"
    with fresh_folder(out) as folder:
        write_file(folder / "sub" / "x", b"data")
        assert not out.exists()
    assert (out / "sub" / "x").read_bytes() == b"data"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_error_leaves_nothing(tmp_path: Path) -> None:
    """An error in the block leaves neither the target nor anything else."""
    with pytest.raises(ValueError, match="mine"):
        fail(tmp_path / "out", ValueError("mine"))
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    """A target that is an empty folder is as good as none."""
    (tmp_path / "out").mkdir()
    with fresh_folder(tmp_path / "out") as folder:
        write_file(folder / "x", b"")
    assert (tmp_path / "out" / "x").is_file()


@pytest.mark.parametrize("kind", ["file", "link", "full"])
def test_existing_target_is_a_conflict(tmp_path: Path, kind: str) -> None:
    """A file, a link or a folder with something in it is not replaced."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("x")
    elif kind == "link":
        out.symlink_to(tmp_path / "elsewhere")
    else:
        out.mkdir()
        (out / "x").write_text("x")
    with pytest.raises(ConflictError), fresh_folder(out):
        pytest.fail("the block must not run")


def test_full_disk_is_typed(tmp_path: Path) -> None:
    """A full disk is a `NoSpaceError`, and what was written is gone."""
    with pytest.raises(NoSpaceError):
        fail(tmp_path / "out", OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_no_target(tmp_path: Path) -> None:
    """After `kill -9` in the middle there is no target, and the same command works."""
    code = (
        "import os, signal, sys; from pathlib import Path; from modelyard.weights.output import *\n"
        "with fresh_folder(Path(sys.argv[1])) as folder:\n"
        "    write_file(folder / 'x', b'data')\n"
        "    os.kill(os.getpid(), int(sys.argv[2]))\n"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(out), str(int(signal.SIGKILL))], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    subprocess.run([sys.executable, "-c", code, str(out), "0"], check=True)
    assert (out / "x").read_bytes() == b"data"


def test_writer_hashes_what_it_writes(tmp_path: Path) -> None:
    """The digest and size are those of the file; an existing file is never opened for writing."""
    with HashingWriter(tmp_path / "x") as writer:
        writer.write(b"ab")
        writer.write(memoryview(b"c"))
    assert (writer.digest(), writer.size) == (blake3.blake3(b"abc").hexdigest(), 3)
    with pytest.raises(FileExistsError), HashingWriter(tmp_path / "x"):
        pytest.fail("the block must not run")


def test_package_offers_what_it_says() -> None:
    """Every name in the package's `__all__` is there, and nothing else is made up."""
    assert all(getattr(weights, name) is not None for name in weights.__all__)
    with pytest.raises(AttributeError):
        weights.no_such_name  # noqa: B018


def test_a_target_that_no_rename_replaces_is_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` (though empty) and a path below a file are told as what they are, and nothing is written."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), Path(".."), tmp_path / "file" / "out"):
        with pytest.raises(ConflictError):
            fail(out, ValueError("not reached"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "here"]
