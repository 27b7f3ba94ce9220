"""What every test gets: one compute thread, no hub, an empty home and no stray variables; and the quickstart, run once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from processes import Quickstart

# Set before torch is first imported: two test processes with two threads each would stall one another.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


@pytest.fixture(autouse=True)
def _empty_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees an empty home directory and no MODELYARD_* variable."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in list(os.environ):
        if name.startswith("MODELYARD_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it skip with the reason when it is absent."""
    path = Path(__file__).parent.parent.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the shared data sets are not beside this checkout")
    return path


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """Run `yard quickstart --json` once, in an empty home. Tests that use it carry `xdist_group("quickstart")`."""
    folder = tmp_path_factory.mktemp("quickstart")
    home = folder / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODELYARD_")}
    environment |= {"HOME": str(home), "MODELYARD_THREADS": "1"}
    done = Quickstart(home / ".modelyard", {}, environment).yard("quickstart", "--json", timeout=900, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Quickstart(home / ".modelyard", json.loads(done.stdout), environment)
