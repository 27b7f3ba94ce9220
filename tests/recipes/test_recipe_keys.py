"""Step keys, file digests, locks and the memory of the last run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from modelyard.errors import BusyError, InputError, InternalError
from modelyard.recipes.fingerprints import Fingerprints
from modelyard.recipes.keys import Inputs, changes, installed
from modelyard.recipes.memory import Memory
from modelyard.registry.locks import hold

if TYPE_CHECKING:
    from pathlib import Path


def test_a_key_depends_on_every_part() -> None:
    """Step, version, configuration, inputs and packages each change the key; order does not."""
    plain = Inputs("a", 1, {"x": 1, "y": {"z": 2}}, {"i": "1"}, {"p": "1"})
    same = Inputs("a", 1, {"y": {"z": 2}, "x": 1}, {"i": "1"}, {"p": "1"})
    others = [
        Inputs("b", 1, plain.config, plain.inputs, plain.packages),
        Inputs("a", 2, plain.config, plain.inputs, plain.packages),
        Inputs("a", 1, {"x": 1, "y": {"z": 3}}, plain.inputs, plain.packages),
        Inputs("a", 1, plain.config, {"i": "2"}, plain.packages),
        Inputs("a", 1, plain.config, plain.inputs, {"p": "2"}),
    ]
    assert same.key == plain.key
    assert len({plain.key, *(other.key for other in others)}) == 6


def test_types_are_kept_apart() -> None:
    """`1`, `1.0`, `"1"`, `true` and nothing are five different values."""
    assert len({Inputs("a", 1, {"x": value}).key for value in (1, 1.0, "1", True, None)}) == 5
    with pytest.raises(InternalError, match="`x`"):
        _ = Inputs("a", 1, {"x": object()}).key


def test_changes_are_said_in_words() -> None:
    """What differs between two runs is named, the recipe's own values first."""
    before = Inputs("a", 1, {"train": {"rank": 8}}, {"base": "1"}, {"torch": "2.12"}).to_dict()
    after = Inputs("a", 1, {"train": {"rank": 16}}, {"base": "2"}, {"torch": "2.13"}).to_dict()
    assert changes(before, after) == ["train.rank was 8, is 16", "base changed", "torch was 2.12, is 2.13"]
    assert changes(after, after) == []


def test_installed_versions_are_read_without_importing() -> None:
    """Versions come from the installation's metadata; what is not installed is left out."""
    assert "torch" in installed("torch", "no-such-package-at-all")
    assert len(installed("no-such-package-at-all")) == 0


def _age(path: Path, seconds: float = 10) -> None:
    """Make a file look as if it was changed some time ago; its change time cannot be set, so wait out the margin."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_fingerprint_follows_the_content(tmp_path: Path) -> None:
    """A changed file has another digest even when its size is the same, and a missing one is named."""
    path = tmp_path / "f"
    path.write_bytes(b"one")
    prints = Fingerprints(tmp_path / "memory.json")
    first = prints.file(path)
    path.write_bytes(b"two")
    assert prints.file(path) != first
    with pytest.raises(InputError, match="cannot be read"):
        prints.file(tmp_path / "none")


def test_a_settled_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remembered digest is used while size, times and inode stay; a fresh file is not trusted yet."""
    monkeypatch.setattr("modelyard.recipes.fingerprints._SETTLED_NS", 0)
    path = tmp_path / "f"
    path.write_bytes(b"one")
    time.sleep(0.02)
    prints = Fingerprints(tmp_path / "memory.json")
    digest = prints.file(path)
    prints.save()
    monkeypatch.setattr("modelyard.recipes.fingerprints.blake3", None)
    assert Fingerprints(tmp_path / "memory.json").file(path) == digest


def test_a_fresh_file_is_not_trusted(tmp_path: Path) -> None:
    """A file changed just before it was hashed is hashed again: the same clock tick may hide another change."""
    path = tmp_path / "f"
    path.write_bytes(b"one")
    prints = Fingerprints(tmp_path / "memory.json")
    prints.file(path)
    prints.save()
    assert not (tmp_path / "memory.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', "\x00"])
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, text: str) -> None:
    """What only saves time may be lost without harm."""
    path = tmp_path / "memory.json"
    path.write_text(text)
    file = tmp_path / "f"
    file.write_bytes(b"x")
    assert Fingerprints(path).file(file)
    memory = Memory(path)
    assert memory.key("train") is None
    memory.remember("train", "k")
    assert Memory(path).key("train") == "k"


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    """A second process is told which process holds the lock; `kill -9` of the holder frees it."""
    path = tmp_path / "locks" / "x.lock"
    code = (
        "import sys, time; from pathlib import Path; from modelyard.registry.locks import hold\n"
        f"with hold(Path({str(path)!r}), 'it'):\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {holder.pid}") as caught, hold(path, "the recipe `x`"):
            pass
        assert caught.value.details["pid"] == holder.pid
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()
    with hold(path, "the recipe `x`"):
        pass
    with hold(path, "the recipe `x`"):
        pass
