"""The `evaluate*` steps: one version's answers to the test rows become a report with every example's score.

The result, the base and whatever the gate compares with are evaluated by the same code on the same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import NotFoundError
from modelyard.recipes import baselines, rows
from modelyard.recipes.context import Context, Outputs, Waiting
from modelyard.recipes.keys import Inputs, installed
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.evaluation import TaskConfig
    from modelyard.recipes.schema import DataSection, Recipe
    from modelyard.registry import Version, Yard

__all__ = ["PACKAGES", "Evaluate", "EvaluateBase", "EvaluateBaseline", "evaluate_version", "evaluation_inputs"]

PACKAGES = ("torch", "transformers", "tokenizers", "peft")


def evaluation_inputs(model: Version, dataset: Version, file: str, data: DataSection, task: TaskConfig) -> Inputs:
    """What decides a report: one key for one version, whatever its part in whatever recipe.

    The dataset's version and not only its file, because the report names it and a gate may ask for it. How many prompts
    are decoded together decides nothing.
    """
    return Inputs(
        "evaluate",
        1,
        config={
            "evaluate": task.model_dump(mode="json", exclude={"batch_size"}),
            "data": {"test": rows.view(data, "test")},
        },
        inputs={"model": str(model.id), "dataset": str(dataset.id), "file": file},
        packages=installed(*PACKAGES),
    )


class Evaluate(Step):
    """Evaluates what the recipe would promote: the merged version, or the adapter where it does not merge."""

    name = "evaluate"

    def applies(self, recipe: Recipe) -> bool:
        """Whether the recipe evaluates."""
        return recipe.evaluate is not None

    def subject(self, context: Context) -> Version | None:
        """The version to evaluate; None where there is none, which is fine."""
        return baselines.candidate(context)

    def inputs(self, context: Context) -> Inputs:
        """The version, the dataset version, the view of its test file, the task, and what computes."""
        recipe, data = context.recipe, context.output("data")
        if recipe.evaluate is None:
            raise Waiting(self.name)
        subject = self.subject(context)
        if subject is None:
            return Inputs(self.name, 1)
        return evaluation_inputs(subject, context.version("data"), data["test"], recipe.data, recipe.evaluate)

    def run(self, context: Context, inputs: Inputs) -> Outputs:  # noqa: ARG002  # the key is all that inputs are for
        """Evaluate, and keep the report."""
        recipe, data = context.recipe, context.output("data")
        subject = self.subject(context)
        if subject is None or recipe.evaluate is None:
            return {"report": None}
        dataset = context.version("data")
        found = rows.examples(rows.read(context.folder(dataset) / data["test"], recipe.data, "test"))
        return evaluate_version(
            context.yard,
            subject,
            found,
            recipe.evaluate,
            dataset=dataset,
            file=data["test"],
            threads=context.threads,
            progress=lambda done, total: context.report(self.name, done / total, f"{done} of {total} examples"),
        )

    def holds(self, context: Context, outputs: Outputs) -> bool:
        """Whether the report is still there."""
        digest = outputs.get("report")
        if digest is None:
            return True
        try:
            context.yard.report(digest)
        except NotFoundError:
            return False
        return True

    def summary(self, outputs: Outputs) -> str:
        """The accuracy with its interval."""
        if outputs.get("report") is None:
            return "there is no such version yet"
        low, high = outputs["interval"]
        return (
            f"{outputs['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {outputs['n']} examples, {outputs['model_name']}"
        )


class EvaluateBase(Evaluate):
    """Evaluates the base, for the comparison."""

    name = "evaluate-base"

    def applies(self, recipe: Recipe) -> bool:
        """Whether the recipe evaluates, and the base too."""
        return recipe.evaluate is not None and recipe.evaluate_base

    def subject(self, context: Context) -> Version | None:
        """The base."""
        return context.version("base")


class EvaluateBaseline(Evaluate):
    """Evaluates what the gate compares with, where that is not the base."""

    name = "evaluate-baseline"

    def applies(self, recipe: Recipe) -> bool:
        """Whether the gate compares with something other than the base."""
        return recipe.evaluate is not None and recipe.gate is not None and recipe.gate.better_than not in {None, "base"}

    def subject(self, context: Context) -> Version | None:
        """The gate's baseline: the alias's holder or a version by name."""
        return baselines.baseline(context)


def evaluate_version(
    yard: Yard,
    version: Version,
    examples: list[Any],
    task: TaskConfig,
    *,
    dataset: Version | None,
    file: str,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Load a version, evaluate it, store the report; returns the step's outputs."""
    from modelyard.evaluation import evaluate

    options: dict[str, Any] = {} if threads is None else {"threads": threads}
    model = yard.load(f"{version.repo_text}@{version.id}", **options)
    report = evaluate(model, examples, task, progress=progress)
    report = {**report, "model": str(version.id), "dataset": str(dataset.id) if dataset else "", "file": file}
    digest = yard.add_report(version, report)
    return {
        "report": str(digest),
        "model": str(version.id),
        "model_name": version.name,
        "accuracy": report["metrics"]["accuracy"],
        "metrics": report["metrics"],
        "interval": report["interval"]["accuracy"],
        "n": report["n"],
    }
