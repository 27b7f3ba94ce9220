"""The plan: which steps have their outcome already, which will run, and why. Looking changes nothing.

A step whose inputs are not known, because an earlier step has to run first, waits: whether it runs depends on what
comes out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from modelyard.recipes.context import Context, Outputs, Waiting
from modelyard.recipes.keys import Inputs, changes
from modelyard.recipes.steps import Step, steps_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Plan", "PlannedStep", "look", "make_plan"]

State = Literal["cached", "runs", "waits"]


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        step: Its name.
        state: `cached`: nothing to do; `runs`; `waits`: it depends on what an earlier step makes.
        reason: The outcome that is there, or why it runs, or what it waits for.
        key: The digest of its inputs, where they are known.
    """

    step: str
    state: State
    reason: str
    key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    recipe: str
    repo: str
    steps: tuple[PlannedStep, ...]

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return all(step.state == "cached" for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "recipe": self.recipe,
            "repo": self.repo,
            "done": self.is_done,
            "steps": [step.to_dict() for step in self.steps],
        }


def make_plan(context: Context) -> Plan:
    """Look at every step of the context's recipe, in order.

    Raises:
        YardError: Something the recipe names is not there.
    """
    return Plan(context.recipe.name, context.recipe.repo, tuple(_planned(context)))


def _planned(context: Context) -> Iterator[PlannedStep]:
    for step in steps_of(context.recipe):
        try:
            inputs = step.inputs(context)
        except Waiting as waiting:
            yield PlannedStep(step.name, "waits", f"depends on what `{waiting.step}` makes")
            continue
        outputs, reason = look(step, inputs, context)
        if outputs is None:
            yield PlannedStep(step.name, "runs", reason, str(inputs.key))
        else:
            context.outputs[step.name] = outputs
            yield PlannedStep(step.name, "cached", step.summary(outputs), str(inputs.key))


def look(step: Step, inputs: Inputs, context: Context) -> tuple[Outputs | None, str]:
    """The step's recorded outputs if they hold, else None and why it has to run."""
    record = context.yard.run_record(inputs.key)
    if record is not None and record.state == "finished":
        if step.holds(context, record.outputs):
            return record.outputs, ""
        return None, "what it made is not there any more"
    if record is not None:
        how = "was interrupted" if record.state == "running" else f"failed: {record.error}"
        return None, f"the last attempt {how}"
    last = context.memory.key(step.name)
    before = context.yard.run_record(last) if last is not None else None
    if before is None:
        return None, "it never ran"
    return None, "; ".join(changes(before.inputs, inputs.to_dict())) or "its last outcome is not known"
