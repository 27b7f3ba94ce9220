"""A recipe is checked as a whole before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import RecipeError
from modelyard.recipes import Surroundings, load_recipe, parse_recipe

GOOD = """
name: intents
repo: team/intents
base: ./base
data: {train: ./train.csv, test: ./test.csv, columns: {prompt: text, completion: category}}
train: {rank: 8, learning_rate: 1e-3}
evaluate: {task: label, first_line: false}
gate: {min: 0.9, better_than: base}
promote: production
"""


def problems(text: str, **options: object) -> list[dict[str, object]]:
    """What is wrong with a recipe, as plain values."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, **options)  # type: ignore[arg-type]
    found = caught.value.details["problems"]
    assert isinstance(found, list)
    for problem in found:
        assert str(problem["path"]) in caught.value.message
    return found


def test_a_good_recipe_is_typed() -> None:
    """Sections become the types of the packages that use them, with their defaults."""
    recipe = parse_recipe(GOOD)
    assert recipe.train.rank == 8
    assert recipe.train.learning_rate == 1e-3
    assert recipe.evaluate is not None
    assert recipe.evaluate.name == "label"
    assert recipe.merge
    assert recipe.gate is not None
    assert recipe.gate.alpha == 0.05


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("./My Model", "team/My-Model"),
        ("package:base", "team/base"),
        ("hf://org/small@main", "org/small"),
        ("hf://gpt2", "team/gpt2"),
        ("./intents", "team/intents-base"),
        ("team/other@v3", None),
    ],
)
def test_repos_are_derived(base: str, expected: str | None) -> None:
    """A base that is no version yet gets a repo of its own, named after it; the data's is named after the result's."""
    recipe = parse_recipe(GOOD.replace("./base", base))
    assert recipe.committed_base_repo == expected
    assert recipe.data_repo == "team/intents-data"


@pytest.mark.parametrize(
    ("wrong", "path", "line", "meant"),
    [
        ("train: {lerning_rate: 1}", "train.lerning_rate", 2, "train.learning_rate"),
        ("data: {trian: ./a.csv, train: ./b.csv}", "data.trian", 2, "data.train"),
        ("gate: {minimum: 0.9, min: 0.9}", "gate.minimum", 2, "gate.min"),
        ("evaluate: {task: label, first_lin: true}", "evaluate.first_lin", 2, "evaluate.first_line"),
        ("evaluate: {name: label}", "evaluate.name", 2, "evaluate.task"),
        ("data: {train: ./a.csv, limit: {trains: 3}}", "data.limit.trains", 2, "data.limit.train"),
        ("promot: production", "promot", 2, "promote"),
        ("epochs: 3", "epochs", 2, "train.epochs"),
        ("data: {train: ./a.csv, merge: false}", "data.merge", 2, "merge"),
    ],
)
def test_an_unknown_key_names_its_path_line_and_near_match(wrong: str, path: str, line: int, meant: str) -> None:
    """At every level an unknown key is an error with its path, its line and the key that was probably meant."""
    section = wrong.partition(":")[0]
    kept = "\n".join(row for row in GOOD.splitlines() if row and not row.startswith(f"{section}:"))
    first, rest = kept.split("\n", 1)
    found = problems(f"{first}\n{wrong}\n{rest}")
    assert [(problem["path"], problem["line"], problem["meant"]) for problem in found] == [(path, line, meant)]


def test_every_problem_is_listed_at_once() -> None:
    """One wrong section hides nothing in another."""
    found = problems(
        """
name: my recipe
repo: intents
base: model
data: {train: train.csv, limit: {train: 0}}
train: {epochs: many, targets: 3}
evaluate: {task: exact_mach}
gate: {min: 2}
promote: v7
merge: maybe
"""
    )
    assert [problem["path"] for problem in found] == [
        "name",
        "repo",
        "base",
        "data.limit.train",
        "data.train",
        "train.epochs",
        "train.targets",
        "evaluate.task",
        "gate.min",
        "promote",
        "merge",
    ]


@pytest.mark.parametrize(
    ("replace", "by", "path"),
    [
        (", test: ./test.csv", "", "evaluate"),
        ("evaluate: {task: label, first_line: false}", "", "gate"),
        ("promote: production", "evaluate_base: false", "gate.better_than"),
        ("./test.csv", "./train.csv", "data.test"),
        ("promote: production", "base_repo: team/intents", "base_repo"),
        ("gate: {min: 0.9, better_than: base}", "gate: {alpha: 0.1}", "gate"),
    ],
)
def test_contradictions_are_refused(replace: str, by: str, path: str) -> None:
    """Sections that are right on their own and make no sense together are refused before any work."""
    assert [problem["path"] for problem in problems(GOOD.replace(replace, by))] == [path]


@pytest.mark.parametrize(
    ("base", "hint"),
    [
        ("model", "./model"),
        ("hf:org/x", "hf://org/name"),
        ("hf://a/b/c", "hf://org/name"),
        ("datasets/team/x", "is a dataset"),
        ('"package:"', "package:base"),
        ("team/x@", "refused"),
    ],
)
def test_a_base_in_no_known_form_names_the_right_one(base: str, hint: str) -> None:
    """A base that is no path, hub id, version or package is refused with the nearest form."""
    (problem,) = problems(GOOD.replace("./base", base))
    assert problem["path"] == "base"
    assert hint in str(problem["message"])


def test_set_changes_a_value_and_is_checked_like_the_file() -> None:
    """`--set` values are typed as in YAML, make missing sections, and a wrong path gets its near match."""
    recipe = parse_recipe(GOOD, overrides=["train.epochs=2", "data.limit.train=10", "merge=false", "train.epochs=4"])
    assert recipe.train.epochs == 4
    assert recipe.data.limit.train == 10
    assert not recipe.merge
    (problem,) = problems(GOOD, overrides=["train.epoch=2"])
    assert (problem["path"], problem["line"], problem["meant"]) == ("train.epoch", None, "train.epochs")
    for pair in ("train.epochs", "=3", "name.x=3"):
        with pytest.raises(RecipeError, match="--set"):
            parse_recipe(GOOD, overrides=[pair])


def test_paths_given_on_the_command_line_are_relative_to_it(tmp_path: Path) -> None:
    """`./x` in an argument means the folder the command was given in, `~/x` the home; the file's own paths stay."""
    here = Surroundings(tmp_path, Path("/home/me"))
    recipe = parse_recipe(GOOD, overrides=["data.train=./mine.csv", "base=~/models/x"], surroundings=here)
    assert recipe.data.train == str(tmp_path / "mine.csv")
    assert recipe.base == "/home/me/models/x"
    assert recipe.data.test == "./test.csv"


VARIED = """
name: intents
variables:
  DATA: folder with train.csv and test.csv, published at example.org
  ROWS: {description: how many, default: "all"}
repo: team/intents
base: ./base
description: "${ROWS} of $${DATA}"
data: {train: "${DATA}/train.csv", test: "${DATA}/test.csv"}
train: {}
"""


def test_variables_are_filled(tmp_path: Path) -> None:
    """A value given with `-v` or `--set` replaces `${NAME}`; a default stands in; `$${` is literal."""
    recipe = parse_recipe(VARIED, variables={"DATA": "./d"}, surroundings=Surroundings(tmp_path))
    assert recipe.data.train == f"{tmp_path}/d/train.csv"
    assert recipe.description == "all of ${DATA}"
    assert parse_recipe(VARIED, overrides=["DATA=/d", "ROWS=few"]).description == "few of ${DATA}"


def test_a_missing_variable_says_what_it_is_and_where_to_get_it() -> None:
    """Without a value the error names the variable, its description and the option that gives it."""
    found = problems(VARIED)
    assert [problem["path"] for problem in found] == ["data.test", "data.train"]
    assert "published at example.org" in str(found[0]["message"])
    assert "-v DATA=" in str(found[0]["message"])
    with pytest.raises(RecipeError, match="no variable `DAT`") as caught:
        parse_recipe(VARIED, variables={"DAT": "x"})
    assert "DATA" in str(caught.value.hint)


def test_a_variable_cannot_add_keys() -> None:
    """A value with YAML in it stays a text."""
    recipe = parse_recipe(VARIED, variables={"DATA": "/d", "ROWS": "x\ntrain: {rank: 99}"})
    assert recipe.train.rank == 16


def test_an_undeclared_variable_is_an_error_with_its_near_match() -> None:
    """`${NAME}` that is not under `variables` is refused."""
    (problem,) = problems(VARIED.replace("${DATA}/test", "${DAT}/test"), variables={"DATA": "/d"})
    assert (problem["path"], problem["meant"]) == ("data.test", "${DATA}")


def test_a_recipe_file_is_named_in_its_errors(tmp_path: Path) -> None:
    """Errors call the file what the user called it."""
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("rank", "ranc"))
    with pytest.raises(RecipeError, match=r"mine\.yaml`, line 6: `train\.ranc`"):
        load_recipe(path)
