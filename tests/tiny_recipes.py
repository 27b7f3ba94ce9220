"""A recipe that trains a tiny model for a few steps, and the files it names."""

from __future__ import annotations

import csv
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
name: tiny
repo: team/tiny
base: ./base
data:
  train: ./train.csv
  test: ./test.csv
  columns: {prompt: text, completion: category}
train: {rank: 2, max_steps: 3, batch_size: 2, learning_rate: 1e-2, save_every: 1, dtype: float32, threads: 1}
evaluate: {task: exact-match, max_new_tokens: 4, batch_size: 4}
"""
ROWS = [
    ("where is my card", "card"),
    ("my card has not arrived", "card"),
    ("the quick brown fox", "fox"),
    ("one two", "dog"),
]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write a CSV file with the columns `text` and `category`."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])


def make_workspace(folder: Path, base: Path) -> Path:
    """Write a base, train.csv, test.csv and recipe.yaml, as a user has them."""
    folder.mkdir(parents=True)
    shutil.copytree(base, folder / "base")
    write_rows(folder / "train.csv", ROWS * 3)
    write_rows(folder / "test.csv", [(text.upper(), label) for text, label in ROWS])
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder
