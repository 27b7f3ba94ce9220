"""Running a recipe: each step whose outcome is not there yet, in order.

Whatever stops a run — an error, Ctrl-C, `kill -9`, a full disk — what was finished stays, and the same command goes on
from there. One process at a time runs a recipe.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import NoSpaceError, YardError
from modelyard.recipes.context import Context, Outputs
from modelyard.recipes.events import Progress, StepFailed, StepFinished, StepStarted, ignore
from modelyard.recipes.plan import Plan, look, make_plan
from modelyard.recipes.resources import NoResources, Resources
from modelyard.recipes.steps import Step, steps_of
from modelyard.registry.locks import hold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from modelyard.recipes.keys import Inputs
    from modelyard.recipes.schema import Recipe
    from modelyard.registry import Yard

__all__ = ["RunResult", "StepResult", "plan", "run"]

_VERSION_STEPS = {"base": "base", "data": "dataset", "train": "adapter", "merge": "merged"}


@dataclass(frozen=True)
class StepResult:
    """One step's outcome.

    Attributes:
        step: Its name.
        key: The digest of its inputs.
        cached: Whether it was there already.
        seconds: How long this run spent on it.
        summary: The outcome, for people.
        outputs: The outcome as plain values.
    """

    step: str
    key: str
    cached: bool
    seconds: float
    summary: str
    outputs: Outputs

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the outputs: they are in the result's own fields."""
        return {
            "step": self.step,
            "key": self.key,
            "cached": self.cached,
            "seconds": self.seconds,
            "summary": self.summary,
        }


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        recipe: The recipe's name.
        repo: Its repo.
        steps: Every step, in order.
        seconds: The whole run.
    """

    recipe: str
    repo: str
    steps: tuple[StepResult, ...]
    seconds: float

    def outputs(self, step: str) -> Outputs:
        """What `step` made; empty where the recipe has no such step."""
        return next((result.outputs for result in self.steps if result.step == step), {})

    @property
    def did_nothing(self) -> bool:
        """Whether everything was there already."""
        return all(result.cached for result in self.steps)

    @property
    def versions(self) -> dict[str, dict[str, Any]]:
        """`base`, `dataset`, `adapter` and `merged`, each as `{id, name}`, those that the recipe makes."""
        found = {}
        for step, word in _VERSION_STEPS.items():
            outputs = self.outputs(step)
            if outputs:
                found[word] = {"id": outputs["version"], "name": outputs["version_name"]}
        return found

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """`base`, `baseline` and `result`, each as `{report, accuracy, interval, n, metrics}`."""
        words = {"evaluate-base": "base", "evaluate-baseline": "baseline", "evaluate": "result"}
        return {word: dict(self.outputs(step)) for step, word in words.items() if self.outputs(step).get("report")}

    @property
    def comparison(self) -> dict[str, Any] | None:
        """The result against the base: `evaluation.Comparison` as plain values."""
        return self.outputs("compare").get("comparison")

    @property
    def verdict(self) -> dict[str, Any] | None:
        """The gate's verdict as plain values."""
        return self.outputs("compare").get("verdict")

    @property
    def contamination(self) -> dict[str, Any]:
        """What of the test rows occurs in `train` and in the `base`'s corpus, each as plain values."""
        return dict(self.outputs("preflight").get("contamination", {}))

    @property
    def clean(self) -> dict[str, Any] | None:
        """Accuracy of `result`, `base` and `baseline` on the test rows that are not in the training data.

        Each is `{n, accuracy}`; None where no row is flagged.
        """
        return self.outputs("compare").get("clean")

    @property
    def promotion(self) -> dict[str, Any] | None:
        """`alias`, `version`, `version_name`, `previous`, `moved`; None where the recipe promotes nothing."""
        return dict(self.outputs("promote")) or None

    def to_dict(self) -> dict[str, Any]:
        """The whole result as plain values, for `--json`."""
        training = {
            key: value
            for key, value in self.outputs("train").items()
            if not key.startswith(("version", "number", "kind"))
        }
        return {
            "recipe": self.recipe,
            "repo": self.repo,
            "did_nothing": self.did_nothing,
            "seconds": self.seconds,
            "steps": [result.to_dict() for result in self.steps],
            "versions": self.versions,
            "training": training,
            "reports": self.reports,
            "comparison": self.comparison,
            "gate": self.verdict,
            "contamination": self.contamination,
            "clean": self.clean,
            "promotion": self.promotion,
        }


def run(
    recipe: Recipe,
    yard: Yard,
    *,
    workspace: Path,
    runs: Path,
    progress: Progress = ignore,
    resources: Resources | None = None,
    threads: int | None = None,
    offline: bool = False,
    phrases: Mapping[str, Sequence[str]] | None = None,
    until: str | None = None,
) -> RunResult:
    """Run a recipe; steps whose outcome is there already cost nothing.

    Args:
        recipe: The recipe.
        yard: Where everything is committed and recorded.
        workspace: The folder that the recipe's relative paths are relative to.
        runs: A folder of the yard, on its file system: checkpoints, scratch files, locks.
        progress: Told what happens.
        resources: Finds `package:NAME`.
        threads: Compute threads; None leaves the choice to each step.
        offline: Whether a hub may not be asked for anything.
        phrases: Texts that must not occur in the `train` rows or in the `base`'s own corpus, for the contamination check.
        until: Stop after this step; None runs all.

    Raises:
        BusyError: Another process runs this recipe; `details["pid"]` says which.
        GateRefusedError: The gate did not pass; everything before it is kept, and `details["verdict"]` says why.
        NoSpaceError: The disk is full; what was there is untouched.
        YardError: Whatever stopped a step.
    """
    context = Context(
        recipe, yard, workspace, runs, resources or NoResources(), threads, offline, phrases or {}, progress
    )
    started = time.monotonic()
    results = []
    with hold(runs / "locks" / f"{context.label}.lock", f"the recipe `{recipe.name}` of `{recipe.repo}`"):
        context.clear_scratch()
        try:
            steps = steps_of(recipe)
            for index, step in enumerate(steps, start=1):
                results.append(_take(step, index, len(steps), context))
                if step.name == until:
                    break
        finally:
            context.clear_scratch()
            context.fingerprints.save()
    return RunResult(recipe.name, recipe.repo, tuple(results), time.monotonic() - started)


def plan(
    recipe: Recipe,
    yard: Yard,
    *,
    workspace: Path,
    runs: Path,
    resources: Resources | None = None,
    offline: bool = False,
    phrases: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """What `run` would do with the same arguments, without doing it."""
    context = Context(recipe, yard, workspace, runs, resources or NoResources(), offline=offline, phrases=phrases or {})
    found = make_plan(context)
    context.fingerprints.save()
    return found


def _take(step: Step, index: int, count: int, context: Context) -> StepResult:
    """Take a step's recorded outcome, or do its work and record it."""
    started = time.monotonic()
    inputs = step.inputs(context)
    outputs, reason = look(step, inputs, context)
    cached = outputs is not None
    if outputs is None:
        context.progress(StepStarted(step.name, index, count, reason))
        outputs = _work(step, inputs, context, started)
    context.outputs[step.name] = outputs
    context.memory.remember(step.name, str(inputs.key))
    result = StepResult(step.name, str(inputs.key), cached, time.monotonic() - started, step.summary(outputs), outputs)
    context.progress(StepFinished(step.name, cached, result.seconds, result.summary))
    return result


def _work(step: Step, inputs: Inputs, context: Context, started: float) -> Outputs:
    """Do a step's work between the two halves of its record."""
    context.yard.start_run(inputs.key, step=step.name, inputs=inputs.to_dict())
    try:
        outputs = step.run(context, inputs)
    except BaseException as error:
        # Ctrl-C and every failure leave the reason in the record; kill -9 leaves it `running`, which is as true.
        typed = _typed(error, step.name)
        message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(typed) or type(typed).__name__
        try:
            context.yard.fail_run(inputs.key, error=message)
        except (YardError, OSError) as second:
            # The disk may be too full to say so; what matters is the first error.
            typed.add_note(f"the failure could not be recorded: {second}")
        context.progress(StepFailed(step.name, time.monotonic() - started, message))
        if typed is error:
            raise
        raise typed from error
    context.yard.finish_run(inputs.key, outputs=dict(outputs))
    return outputs


def _typed(error: BaseException, step: str) -> BaseException:
    """A full disk as `NoSpaceError`, however a library below dressed it up; anything else as it is."""
    if isinstance(error, YardError):
        return error
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in {errno.ENOSPC, errno.EDQUOT}
        # safetensors and torch raise their own errors, with the system's words inside.
        if full or "No space left on device" in str(seen) or "os error 28" in str(seen):
            return NoSpaceError(
                f"the disk is full: the step `{step}` did not finish",
                hint="free some space and run the same command again",
            )
        seen = seen.__cause__ or seen.__context__
    return error
