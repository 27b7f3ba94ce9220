"""A running server compacts what is cold, beside its work; nothing else does so by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Outcome
from modelyard.cli.housekeeping import housekeeping

WAIT = 60.0


def test_what_is_cold_is_compacted_on_the_side(
    desk: Path, yard: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its pause a server has compacted the version that nothing names, in another process, and `check` is clean."""
    (desk / "model" / "note.txt").write_text("second", "utf-8")
    assert yard("commit", "./model", "--to", "team/base")[0] == 0
    home = Path(yard("init")[1]["yard"])
    with housekeeping(home, wanted=True, first=0.0, pause=1000.0) as turned:
        assert turned.wait(WAIT)
    with housekeeping(home, wanted=False, first=0.0) as turned:
        assert not turned.wait(0.2)
    assert yard("check", "--read-data")[0] == 0


def test_a_turn_ends_with_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that takes for ever is ended when the server ends, and nothing is said of it."""
    monkeypatch.setattr("modelyard.cli.housekeeping.sys.executable", str(_script(tmp_path, "sleep 600")))
    notes: list[str] = []
    monkeypatch.setattr("modelyard.cli.housekeeping.output.note", notes.append)
    started = time.monotonic()
    with housekeeping(tmp_path, wanted=True, first=0.0, pause=0.0):
        time.sleep(0.5)
    assert time.monotonic() - started < WAIT
    assert notes == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("housekeeping")]


def test_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child says when it fails reaches the server's own log."""
    monkeypatch.setattr(
        "modelyard.cli.housekeeping.sys.executable", str(_script(tmp_path, "echo broken disk >&2; exit 8"))
    )
    notes: list[str] = []
    monkeypatch.setattr("modelyard.cli.housekeeping.output.note", notes.append)
    with housekeeping(tmp_path, wanted=True, first=0.0, pause=1000.0) as turned:
        assert turned.wait(WAIT)
    assert len(notes) == 1
    assert "broken disk" in notes[0]


def _script(folder: Path, line: str) -> Path:
    path = folder / "child"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path
