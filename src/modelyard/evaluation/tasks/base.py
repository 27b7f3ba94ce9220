"""What a task is: how outputs become scores, and how a new family is added.

A *family* has a name, a strict configuration and a way to build a `Task`. `register` adds one; `parse_task` finds it
by name. A task sees text only: it knows no models, no files and no reports.

>>> parse_task("exact-match").max_new_tokens
64
>>> parse_task({"name": "exact_mach"})
Traceback (most recent call last):
...
modelyard.errors.RecipeError: unknown task `exact_mach`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from modelyard.errors import ConflictError, RecipeError, near_match
from modelyard.evaluation import _strict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from modelyard.evaluation.examples import Example

__all__ = ["Family", "Score", "Task", "TaskConfig", "build_task", "parse_task", "register", "task_names"]


class TaskConfig(BaseModel):
    """The options every task has; each family adds its own.

    Attributes:
        name: The family.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts decoded together: speed only, left out when reports are compared.
        limit: Evaluate the first `limit` examples only; None means all.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=32, ge=1)
    limit: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Score:
    """How one output did.

    Attributes:
        value: 0.0 (wrong) to 1.0 (right); the mean over all examples is the report's `accuracy`.
        facts: What the family's own `summarize` needs to know about this output.
    """

    value: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One configured task, ready to score outputs."""

    def score(self, example: Example, output: str) -> Score:
        """Score one output; any text at all is a valid output, and a wrong one scores 0."""
        ...

    def summarize(self, scores: Sequence[Score]) -> dict[str, float]:
        """Secondary metrics by name, over all scores in the examples' order; `accuracy` is not among them."""
        ...


Config = TypeVar("Config", bound=TaskConfig)


@dataclass(frozen=True)
class Family(Generic[Config]):
    """A kind of task: its name, its configuration, and how to build one for a set of examples.

    `build` raises `DataError` for examples that the task cannot score, before anything is generated.
    """

    name: str
    config: type[Config]
    build: Callable[[Config, Sequence[Example]], Task]


_FAMILIES: dict[str, Family[Any]] = {}


def register(family: Family[Config]) -> None:
    """Add a family, so that its name works wherever a task is named.

    Raises:
        ConflictError: If another family has the name.
    """
    if _FAMILIES.get(family.name, family) != family:
        raise ConflictError(f"a task `{family.name}` is registered already")
    _FAMILIES[family.name] = family


def task_names() -> tuple[str, ...]:
    """The names of all registered families, sorted."""
    return tuple(sorted(_FAMILIES))


def parse_task(task: str | Mapping[str, Any] | TaskConfig) -> TaskConfig:
    """The strict configuration that a name, a mapping of options or a plain `TaskConfig` stands for.

    Raises:
        RecipeError: For an unknown task or option (with the near match) or a wrong value.
    """
    if isinstance(task, str):
        values: dict[str, Any] = {"name": task}
    elif isinstance(task, TaskConfig):
        values = task.model_dump(exclude_unset=True)
    else:
        values = dict(task)
    name = values.get("name")
    if not isinstance(name, str):
        raise RecipeError("the task has no `name`", hint=f"one of: {', '.join(task_names())}", field="name")
    family = _FAMILIES.get(name) or _FAMILIES.get(name.replace("_", "-"))
    if family is None:
        meant = near_match(name.replace("_", "-"), _FAMILIES)
        hint = f"did you mean `{meant}`?" if meant else f"one of: {', '.join(task_names())}"
        raise RecipeError(f"unknown task `{name}`", hint=hint, field="name")
    config: type[TaskConfig] = family.config
    return _strict.parse(config, {**values, "name": family.name}, f"task `{family.name}`")


def build_task(config: TaskConfig, examples: Sequence[Example]) -> Task:
    """The task that `config` describes, for these examples.

    Raises:
        DataError: If the family cannot score an example.
        RecipeError: If `config` names no registered family.
    """
    parsed = parse_task(config)
    task: Task = _FAMILIES[parsed.name].build(parsed, examples)
    return task
