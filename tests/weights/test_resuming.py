"""A folder that is written file by file goes on where it was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modelyard.digest import Digest, digest_bytes
from modelyard.errors import BusyError, ModelError, NoSpaceError
from modelyard.weights.files import FolderFiles
from modelyard.weights.output import Work, key_of, resumable_folder, write_file

KEY, OTHER = "1" * 64, "2" * 64

# Writes four files of 1 MiB; with a number it kills itself with that signal in the middle of the third.
PROGRAM = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from modelyard.weights.output import HashingWriter, resumable_folder
    if int(sys.argv[2]) == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with resumable_folder(Path(sys.argv[1]), "1" * 64) as work:
        for number in range(4):
            name = f"{number}.bin"
            note = work.finished(name)
            if note is not None:
                print(name, note["from"], flush=True)
                continue
            with HashingWriter(work.folder / name) as writer:
                writer.write(bytes([number]) * 600_000)
                if number == 2 and int(sys.argv[2]):
                    os.kill(os.getpid(), int(sys.argv[2]))
                writer.write(bytes([number]) * 400_000)
            work.finish(name, writer.digest(), {"from": os.getpid()})
""")


def run(out: Path, number: int = 0) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(out), str(number)], capture_output=True, text=True, check=False
    )


def partial(out: Path) -> list[Path]:
    """The hidden folders beside `out`."""
    return sorted(out.parent.glob(f".{out.name}.*.partial"))


def contents(folder: Path) -> dict[str, bytes]:
    """Name to bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_work_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """After kill -9, SIGTERM or Ctrl-C in the third file, the same command keeps the first two (the same inodes) and makes the same bytes."""
    out = tmp_path / "out"
    killed = run(out, number)
    assert killed.returncode != 0
    assert not out.exists()
    (folder,) = partial(out)
    before = {name: (folder / name).stat().st_ino for name in ("0.bin", "1.bin")}
    again = run(out)
    assert again.returncode == 0, again.stderr
    assert [line.split()[0] for line in again.stdout.splitlines()] == ["0.bin", "1.bin"]
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert partial(out) == []
    assert run(tmp_path / "whole").returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


def interrupt(out: Path, key: str = KEY, error: BaseException | None = None) -> None:
    """One finished file and one that is not, then the end of it all."""
    with resumable_folder(out, key) as work:
        assert work.finished("a") is None
        work.finish("a", write_file(work.folder / "a", b"first"), {"said": 1})
        write_file(work.folder / "half", b"un")
        raise error or KeyboardInterrupt


def test_what_changed_meanwhile_is_written_again(tmp_path: Path) -> None:
    """A finished file is hashed before it is believed; one whose bytes changed, or that never was finished, is gone."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out)
    (folder,) = partial(out)
    with resumable_folder(out, KEY) as work:
        assert work.folder == folder
        assert work.finished("a") == {"said": 1}
        assert work.digest("a") == digest_bytes(b"first")
        assert not (folder / "half").exists()
        (folder / "a").write_bytes(b"other")
        assert work.finished("a") is None
        assert not (folder / "a").exists()
        work.finish("a", write_file(folder / "a", b"third"))
    assert contents(out) == {"a": b"third"}


def test_another_key_is_not_touched(tmp_path: Path) -> None:
    """A result of other options begins anew, and what was kept for the first ones stays."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out)
    with resumable_folder(out, OTHER) as work:
        assert work.finished("a") is None
        write_file(work.folder / "b", b"b")
    assert contents(out) == {"b": b"b"}
    (kept,) = partial(out)
    assert (kept / "a").read_bytes() == b"first"


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (ModelError("no"), ModelError),
        (ValueError("no"), ValueError),
        (OSError(28, "No space left on device"), NoSpaceError),
    ],
)
def test_errors_leave_nothing(tmp_path: Path, raised: Exception, seen: type[Exception]) -> None:
    """An error of the operation would come again: its folder is removed."""
    with pytest.raises(seen):
        interrupt(tmp_path / "out", error=raised)
    assert list(tmp_path.iterdir()) == []


def test_second_process_is_told(tmp_path: Path) -> None:
    """While one process writes a result, a second one that wants the same is `busy` at once, and disturbs nothing."""
    out = tmp_path / "out"
    with resumable_folder(out, KEY) as work:
        write_file(work.folder / "a", b"mine")
        with pytest.raises(BusyError) as caught, resumable_folder(out, KEY):
            pytest.fail("the block must not run")
        assert run(out).returncode != 0
    assert caught.value.exit_code == 9
    assert contents(out) == {"a": b"mine"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "modelyard/progress/1"}', None])
def test_unreadable_progress_costs_a_fresh_start(tmp_path: Path, text: str | None) -> None:
    """What is no progress of this key (None: that of a key with the same first digits) is not believed, and nothing of it stays."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out)
    (folder,) = partial(out)
    if text is not None:
        (folder / "progress.json").write_text(text)
    (folder / "sub").mkdir()
    with resumable_folder(out, KEY if text is not None else KEY[:40] + "3" * 24) as work:
        assert work.finished("a") is None
        assert {path.name for path in work.folder.iterdir()} <= {"progress.json"}
        work.finish("a", write_file(work.folder / "a", b"new"))
    assert contents(out) == {"a": b"new"}


def test_key_follows_from_operation_options_and_files(tmp_path: Path) -> None:
    """Each of them changes the key; reading a file does not; digests take the place of times where they are known."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_bytes(b"one")
    files = FolderFiles(source)
    first = key_of("rewrite", {"dtype": "F16"}, files)
    assert files.read("x") == b"one"
    assert key_of("rewrite", {"dtype": "F16"}, FolderFiles(source)) == first
    keys = {first, key_of("rewrite", {"dtype": "F32"}, files), key_of("to_bin", {"dtype": "F16"}, files)}
    os.utime(source / "x", ns=(1, 1))
    keys.add(key_of("rewrite", {"dtype": "F16"}, files))
    assert len(keys) == 4

    class Known(FolderFiles):
        """Files that know their digests."""

        def digest(self, name: str) -> Digest:
            """The digest of one file."""
            return digest_bytes(self.read(name))

    known = key_of("rewrite", {}, Known(source))
    os.utime(source / "x", ns=(2, 2))
    assert key_of("rewrite", {}, Known(source)) == known
    (source / "x").write_bytes(b"two")
    assert key_of("rewrite", {}, Known(source)) != known


def test_work_knows_only_what_was_finished(tmp_path: Path) -> None:
    """The digest of a file that was never finished is an error, not a guess."""
    with pytest.raises(KeyError):
        Work(tmp_path, KEY, {}).digest("x")
