"""A yard, a tiny base, a few rows and a recipe that trains for a few steps."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from modelyard.app import open_yard
from modelyard.recipes import load_recipe, run
from modelyard.settings import Settings
from tiny_recipes import make_workspace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.recipes import RunResult
    from modelyard.recipes.events import Event
    from modelyard.registry import Yard


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in a folder, made once."""
    from tiny_models import save_model

    folder: Path = save_model(tmp_path_factory.mktemp("base") / "base")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, tiny_base: Path) -> Path:
    """A folder as `make_workspace` writes it."""
    return make_workspace(tmp_path / "work", tiny_base)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the yard is."""
    return tmp_path / "yard"


@pytest.fixture
def yard(home: Path) -> Yard:
    """The yard, as a command opens it; new unless the test uses `finished`."""
    return open_yard(Settings(home=home, author="tester"), create=True)


@pytest.fixture(scope="session")
def _finished_once(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, RunResult]:
    """A yard in which the recipe has run, made once."""
    root = tmp_path_factory.mktemp("finished")
    work = make_workspace(root / "work", tiny_base)
    yard = open_yard(Settings(home=root / "yard", author="tester"), create=True)
    result = run(load_recipe(work / "recipe.yaml"), yard, workspace=work, runs=root / "yard" / "runs")
    return root / "yard", result


@pytest.fixture
def finished(home: Path, _finished_once: tuple[Path, RunResult]) -> RunResult:
    """Put a copy of a yard in which the recipe has run where `yard` will open it; what that run ended with.

    Ask for it before `yard` and `run_recipe`, or with `usefixtures`.
    """
    shutil.copytree(_finished_once[0], home)
    return _finished_once[1]


@pytest.fixture
def run_recipe(workspace: Path, home: Path, yard: Yard) -> Callable[..., RunResult]:
    """Run the workspace's recipe with overrides; `events` collects what it says."""

    def call(*overrides: str, events: list[Event] | None = None, until: str | None = None) -> RunResult:
        recipe = load_recipe(workspace / "recipe.yaml", overrides=overrides)
        listen = events.append if events is not None else (lambda _event: None)
        return run(recipe, yard, workspace=workspace, runs=home / "runs", progress=listen, until=until)

    return call
