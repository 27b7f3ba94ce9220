"""The recipes in examples/ are sound, and say where their data is published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard.errors import RecipeError
from modelyard.recipes import load_recipe, rows

if TYPE_CHECKING:
    from modelyard.recipes import Recipe

FOLDER = Path(__file__).parent.parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def load(name: str, data: Path | str = "/data") -> Recipe:
    """An example, with its data's path where it asks for one."""
    text = (FOLDER / name).read_text()
    return load_recipe(FOLDER / name, variables={"DATA": str(data)} if "variables:" in text else {})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_sound_recipe(path: Path) -> None:
    """Each example loads, and takes another base by `--set base=...`."""
    assert load(path.name).name == path.stem
    given = ["DATA=/d"] if "variables:" in path.read_text() else []
    assert load_recipe(path, overrides=[*given, "base=hf://org/name"]).base == "hf://org/name"


@pytest.mark.parametrize("name", ["banking77.yaml", "gsm8k.yaml"])
def test_an_example_without_its_data_says_where_it_is_published(name: str) -> None:
    """Leaving the variable out is an error that names it and where the data is published."""
    with pytest.raises(RecipeError, match=r"DATA .*published at github\.com") as caught:
        load_recipe(FOLDER / name)
    assert "-v DATA=" in caught.value.message


@pytest.mark.parametrize(
    ("name", "folder", "counts"), [("banking77.yaml", "banking77", (10003, 3080)), ("gsm8k.yaml", "gsm8k", (2000, 200))]
)
def test_an_example_reads_its_real_files(name: str, folder: str, counts: tuple[int, int], shared_data: Path) -> None:
    """The published files are read with the example's columns and limits, each row with a question and an answer."""
    recipe = load(name, shared_data / folder)
    train = rows.read(Path(recipe.data.train), recipe.data, "train")
    test = rows.read(Path(str(recipe.data.test)), recipe.data, "test")
    assert (len(train), len(rows.examples(test))) == counts


def test_the_reference_page_has_every_key() -> None:
    """docs/reference/recipe.md names every key of a recipe, and no other."""
    import re

    from modelyard.evaluation import TaskConfig
    from modelyard.recipes import Recipe
    from modelyard.recipes.problems import dotted, known_paths

    page = (FOLDER.parent / "docs" / "reference" / "recipe.md").read_text()
    named = {
        name for row in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)
    }
    sections = {"data.limit", "variables.description", "variables.default"}
    known = {dotted(path) for path in known_paths(Recipe)} - {"evaluate.name"} | {"evaluate.task"}
    steps = {"data", "base", "preflight", "train", "merge", "compare", "promote"}
    assert set(TaskConfig.model_fields) - {"name"} <= {name.removeprefix("evaluate.") for name in named}
    assert named - steps - known == set()
    assert known - named - sections == set()


@pytest.mark.parametrize("name", ["document", "keys", "problems", "schema", "sources", "events"])
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    """What a module's docstrings show is what it does."""
    import doctest
    import importlib

    found = doctest.testmod(importlib.import_module(f"modelyard.recipes.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
