"""A yard with a tiny base in it and a folder to work in, as a user at a terminal has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli.main import run
from tiny_models import save_model

RECIPE = """
name: tiny
repo: team/tiny
base: team/base
data:
  train: ./train.csv
  test: ./test.csv
  columns: {prompt: text, completion: category}
train: {rank: 2, max_steps: 2, batch_size: 2, learning_rate: 1e-2, dtype: float32, threads: 1}
evaluate: {task: exact-match, max_new_tokens: 4}
"""
ROWS = "text,category\nwhere is my card,card\nthe quick brown fox,fox\none two,dog\n"

Outcome = tuple[int, Any, dict[str, Any]]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in a folder, made once."""
    return save_model(tmp_path_factory.mktemp("cli") / "base")


@pytest.fixture
def desk(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a model, data files, a recipe; the yard beside it holds `team/base`."""
    folder = tmp_path / "desk"
    folder.mkdir()
    shutil.copytree(base_folder, folder / "model")
    (folder / "train.csv").write_text(ROWS, "utf-8")
    (folder / "test.csv").write_text(ROWS.replace("card,", "CARD,"), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "yard"))
    assert run(["import", "./model", "--to", "team/base", "--kind", "base", "--json"]) == 0
    return folder


@pytest.fixture
def yard(desk: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `yard ... --json`; gives the exit code, what stdout held, and the error that stderr held."""
    capsys.readouterr()

    def call(*arguments: str) -> Outcome:
        code = run([*arguments, "--json"])
        captured = capsys.readouterr()
        failed = [line for line in captured.err.splitlines() if line.startswith('{"error"')]
        found = json.loads(captured.out) if captured.out.strip() else None
        return code, found, json.loads(failed[-1])["error"] if failed else {}

    return call
