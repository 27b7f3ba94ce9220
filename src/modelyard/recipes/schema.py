"""A recipe: the YAML file that describes a lifecycle, as a typed value that was checked as a whole before any work.

Every key is known and every value has its type, or `RecipeError` lists all that is wrong, each with its key, line and
near match. Whether files, versions and columns exist is not known here: the steps find out.

>>> recipe = parse_recipe('''
... name: intents
... repo: team/intents
... base: package:base
... data: {train: ./train.csv, test: ./test.csv}
... train: {epochs: 2}
... evaluate: {task: exact-match}
... gate: {min: 0.9, better_than: base}
... promote: production
... ''')
>>> recipe.name, recipe.data_repo, recipe.committed_base_repo
('intents', 'team/intents-data', 'team/base')
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modelyard.errors import RecipeError, RefError
from modelyard.evaluation.gates import Gate
from modelyard.evaluation.tasks import TaskConfig, parse_task
from modelyard.recipes.document import Document, Location, read_document, read_file
from modelyard.recipes.overrides import VARIABLE, Surroundings, apply_overrides, fill_variables
from modelyard.recipes.problems import Problem, explained_problems, find_problems, known_paths, refuse
from modelyard.recipes.sources import HubSource, PathSource, VersionSource, parse_base, parse_data, slug
from modelyard.registry.names import check_ref_name, check_repo_name
from modelyard.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["DataSection", "Limit", "Recipe", "Variable", "data_section", "load_recipe", "parse_recipe"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Section = TypeVar("Section", bound=BaseModel)


class _Strict(BaseModel):
    """What every section has: no unknown key, no coerced value, no change afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Variable(_Strict):
    """A value that the recipe leaves to whoever runs it."""

    description: str = Field(min_length=1)
    default: str | None = None


class Limit(_Strict):
    """How many rows to use at most; None means all. Rows are drawn by `data.seed` and keep their order."""

    train: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


class DataSection(_Strict):
    """Which rows to train and to evaluate on.

    Attributes:
        repo: Dataset repo that the files are committed to; None derives it.
        train: The training file: a path, `datasets/ns/name[@rev]:file` or `package:NAME`.
        test: The held-out file, in the same forms.
        format: File format; `auto` looks at the file.
        columns: What the file's columns mean: role to column, e.g. `prompt: text`.
        system: A system message put before every conversation.
        limit: How many rows to use at most.
        seed: Seed of the draw when there is a limit.
    """

    repo: str | None = None
    train: str
    test: str | None = None
    format: str = "auto"
    columns: dict[str, str] | None = None
    system: str | None = None
    limit: Limit = Field(default_factory=Limit)
    seed: int = Field(default=0, ge=0)

    @field_validator("train", "test")
    @classmethod
    def _is_data(cls, text: str | None) -> str | None:
        return text if text is None else _form(parse_data, text)

    @field_validator("repo")
    @classmethod
    def _is_repo(cls, text: str | None) -> str | None:
        return text if text is None else _form(check_repo_name, text)


class Recipe(_Strict):
    """A lifecycle, checked.

    Attributes:
        name: The recipe's name: letters, digits, `-` and `_`.
        repo: Model repo of the adapter (branch `adapter`) and of the merged versions (branch `main`).
        base: `./folder`, `hf://org/name[@rev]`, `ns/name[@rev]` or `package:NAME`.
        base_repo: Where a base that is no version yet is committed; derived when not given.
        data: The rows.
        train: How to train.
        merge: Whether to merge the adapter into the base, and to evaluate and promote the merged version.
        evaluate: The task to evaluate on `data.test`; None evaluates nothing.
        evaluate_base: Whether to evaluate the base too, for the comparison.
        gate: What the result must pass; set on the alias when there is one.
        promote: The alias that moves to the result; None moves nothing.
        description: For people.
        variables: Values that the recipe leaves to whoever runs it.
    """

    name: str
    repo: str
    base: str
    base_repo: str | None = None
    data: DataSection
    train: TrainConfig
    merge: bool = True
    evaluate: TaskConfig | None = None
    evaluate_base: bool = True
    gate: Gate | None = None
    promote: str | None = None
    description: str | None = None
    variables: dict[str, str | Variable] = {}

    @field_validator("name")
    @classmethod
    def _is_name(cls, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise ValueError(f"{text!r} is not a name: letters, digits, `-` and `_`, at most 64")
        return text

    @field_validator("repo", "base_repo")
    @classmethod
    def _is_repo(cls, text: str | None) -> str | None:
        return text if text is None else _form(check_repo_name, text)

    @field_validator("base")
    @classmethod
    def _is_base(cls, text: str) -> str:
        return _form(parse_base, text)

    @field_validator("promote")
    @classmethod
    def _is_alias(cls, text: str | None) -> str | None:
        return text if text is None else _form(check_ref_name, text)

    @field_validator("variables")
    @classmethod
    def _are_names(cls, found: dict[str, str | Variable]) -> dict[str, str | Variable]:
        for name in found:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not a variable's name: capital letters, digits and `_`")
        return found

    @property
    def namespace(self) -> str:
        """The namespace of `repo`, which derived repos share."""
        return self.repo.partition("/")[0]

    @property
    def data_repo(self) -> str:
        """The dataset repo that data files are committed to."""
        return self.data.repo or f"{self.repo}-data"

    @property
    def committed_base_repo(self) -> str | None:
        """The repo that the base is committed to; None where it is a version already."""
        source = parse_base(self.base)
        if isinstance(source, VersionSource):
            return None
        if self.base_repo is not None:
            return self.base_repo
        if isinstance(source, HubSource):
            organisation, _, model = source.repo.rpartition("/")
            return f"{slug(organisation) if organisation else self.namespace}/{slug(model)}"
        name = slug(Path(source.path).name) if isinstance(source, PathSource) else slug(source.name)
        derived = f"{self.namespace}/{name}"
        return f"{derived}-base" if derived == self.repo else derived


def load_recipe(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    surroundings: Surroundings | None = None,
) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: The YAML file.
        overrides: `key=value` pairs from the command line, e.g. `train.epochs=2`.
        variables: Values of the recipe's variables.
        surroundings: What `./` and `~` mean in `overrides` and `variables`.

    Raises:
        NotFoundError: There is no such file.
        RecipeError: Anything in it is wrong; all of it is listed.
    """
    return _check(read_file(path), overrides, variables or {}, surroundings or Surroundings())


def parse_recipe(
    text: str,
    *,
    label: str = "recipe",
    overrides: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    surroundings: Surroundings | None = None,
) -> Recipe:
    """As `load_recipe`, from text; `label` is what messages call it."""
    return _check(read_document(text, label), overrides, variables or {}, surroundings or Surroundings())


def data_section(values: Mapping[str, object], label: str) -> DataSection:
    """A `data` section on its own, for commands that read data without a recipe; `label` is what messages call it.

    Raises:
        RecipeError: Anything in it is wrong; all of it is listed.
    """
    try:
        return DataSection.model_validate(values)
    except ValidationError as error:
        known = list(known_paths(DataSection))
        problems = find_problems(error, DataSection, Document(dict(values), label), set(), known=known)
        raise refuse(label, problems) from error


def _check(
    document: Document, overrides: Sequence[str], variables: Mapping[str, str], surroundings: Surroundings
) -> Recipe:
    touched, given = apply_overrides(document, overrides, surroundings)
    problems = fill_variables(document, {**variables, **given}, surroundings)
    checker = _Checker(document, touched)
    recipe = checker.recipe()
    problems += [problem for problem in checker.problems if problem.path not in {known.path for known in problems}]
    if not problems and recipe is not None:
        problems = list(_contradictions(recipe, document))
    if problems or recipe is None:
        raise refuse(document.label, problems)
    return recipe


class _Checker:
    """Validates each section on its own, so that one wrong section hides nothing in another."""

    def __init__(self, document: Document, touched: set[Location]) -> None:
        self._document = document
        self._touched = touched
        self.problems: list[Problem] = []

    def recipe(self) -> Recipe | None:
        """The recipe, or None with `problems`."""
        tree = dict(self._document.tree)
        if "train" in tree:
            tree["train"] = self._section("train", TrainConfig, tree["train"])
        if tree.get("gate") is not None:
            tree["gate"] = self._section("gate", Gate, tree["gate"])
        if tree.get("evaluate") is not None:
            tree["evaluate"] = self._task(tree["evaluate"])
        try:
            return Recipe.model_validate(tree)
        except ValidationError as error:
            failed = {problem.path.partition(".")[0] for problem in self.problems}
            found = find_problems(error, Recipe, self._document, self._touched, known=list(known_paths(Recipe)))
            self.problems += [problem for problem in found if problem.path not in failed]
            return None

    def _section(self, name: str, model: type[Section], values: object) -> Section | None:
        """Validate one section on its own and note what is wrong with it."""
        known = [path for path in known_paths(Recipe) if path[0] != name or len(path) == 1]
        known += [
            ("evaluate", "task") if path == ("evaluate", "name") else path for path in known_paths(model, (name,))
        ]
        try:
            return model.model_validate(values)
        except ValidationError as error:
            self.problems += find_problems(error, model, self._document, self._touched, known=known, section=(name,))
        except RecipeError as error:
            # A model that explains itself (`TrainConfig`) says which keys are wrong in its details.
            self.problems += explained_problems(error, self._document, self._touched, known=known, section=(name,))
        return None

    def _task(self, values: object) -> TaskConfig | None:
        """The `evaluate` section: `task` names the family, the other keys are its options."""
        line = self._document.line(("evaluate",))
        if not isinstance(values, dict):
            self.problems.append(Problem("evaluate", f"has to be a section of keys, not {values!r}", line))
            return None
        options = dict(values)
        name = options.pop("task", None)
        if "name" in options:
            line = self._document.line(("evaluate", "name"))
            self.problems.append(Problem("evaluate.name", "unknown key", line, "evaluate.task"))
            return None
        if not isinstance(name, str):
            self.problems.append(Problem("evaluate.task", "is required: the name of a task, e.g. `exact-match`", line))
            return None
        try:
            plain = parse_task(name)
        except RecipeError as error:
            text = f"{error.message}; {error.hint}" if error.hint else error.message
            self.problems.append(Problem("evaluate.task", text, self._document.line(("evaluate", "task"))))
            return None
        return self._section("evaluate", type(plain), {**options, "name": plain.name})


def _contradictions(recipe: Recipe, document: Document) -> list[Problem]:
    """What is wrong between sections that are right on their own."""
    found = []

    def note(path: str, message: str) -> None:
        found.append(Problem(path, message, document.line(tuple(path.split(".")))))

    if recipe.evaluate is not None and recipe.data.test is None:
        note("evaluate", "needs `data.test`, the rows to evaluate on")
    if recipe.gate is not None and recipe.evaluate is None:
        note("gate", "needs `evaluate`: a gate judges a report")
    if recipe.gate is not None and recipe.gate.better_than == "base" and not recipe.evaluate_base:
        note("gate.better_than", "`base` needs the base's report, but `evaluate_base` is false")
    if recipe.data.test == recipe.data.train:
        note("data.test", "is the training file: rows to evaluate on have to be held out")
    if recipe.committed_base_repo == recipe.repo:
        note("base_repo", f"is `{recipe.repo}`, the repo of the result; the base needs one of its own")
    return found


def _form(parse: Callable[[str], object], text: str) -> str:
    """`text`, if `parse` accepts it; pydantic wants a `ValueError` where it does not."""
    try:
        parse(text)
    except RefError as error:
        raise ValueError(f"{error.message}; {error.hint}" if error.hint else error.message) from error
    return text
