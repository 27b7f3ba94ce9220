"""The shipped base and the recipe that makes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from modelyard.quickstart.pretrain import Recipe, pretrain

BASE = Path(__file__).parents[2] / "src" / "modelyard" / "quickstart" / "base"


def test_the_shipped_base_records_the_recipe_in_the_repository() -> None:
    """What went into the shipped weights is what `make base` uses, and the weights are at most 8 MB."""
    assert json.loads((BASE / "recipe.json").read_text("utf-8"))["recipe"] == asdict(Recipe())
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 8_000_000


def test_pretraining_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """Seeds, order and threads decide the weights: a small run repeated writes the same file."""
    small = Recipe(documents=120, hidden=32, intermediate=64, layers=1, heads=2, kv_heads=1, epochs=1.0)
    for name in ("one", "two"):
        pretrain(tmp_path / name, small)

    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
