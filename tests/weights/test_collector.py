"""The garbage collector while a model is loaded."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest

import modelyard
from modelyard.errors import ModelError
from modelyard.weights.collector import collector_paused

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_on_again_when_the_last_of_several_has_ended() -> None:
    """Blocks of several threads overlap: it stays off until the last has ended, and is on then."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with collector_paused():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with collector_paused():
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    """A caller that works without it is left without it."""
    gc.disable()
    try:
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_load_that_fails_leaves_it_on(tmp_path: Path) -> None:
    """Whatever goes wrong in loading, the process is as it was."""
    with pytest.raises(ModelError):
        modelyard.load(tmp_path / "none")
    assert gc.isenabled()
