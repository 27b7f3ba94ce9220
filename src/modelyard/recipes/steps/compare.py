"""The `compare` step: the result against the base, example by example, and the gate's verdict on those very reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.digest import digest_json
from modelyard.recipes import baselines
from modelyard.recipes.keys import Inputs
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.recipes.context import Context, Outputs
    from modelyard.recipes.schema import Recipe

__all__ = ["Compare", "gate_values"]

_WORDS = {"evaluate": "result", "evaluate-base": "base", "evaluate-baseline": "baseline"}


def gate_values(context: Context) -> dict[str, Any]:
    """The recipe's gate, with the task and the dataset version that its evidence has to be about."""
    recipe = context.recipe
    if recipe.gate is None or recipe.evaluate is None:
        return {}
    values = recipe.gate.model_dump(exclude_none=True)
    return {"task": recipe.evaluate.name, "dataset": context.output("data")["version"], **values}


class Compare(Step):
    """See the module."""

    name = "compare"

    def applies(self, recipe: Recipe) -> bool:
        """Whether there is something to compare with or a gate to judge."""
        return recipe.evaluate is not None and (recipe.evaluate_base or recipe.gate is not None)

    def inputs(self, context: Context) -> Inputs:
        """The reports and the gate."""
        read = {"evaluate": context.output("evaluate")["report"]}
        for step in ("evaluate-base", "evaluate-baseline"):
            report = context.output(step).get("report") if _has(context.recipe, step) else None
            if report is not None:
                read[step] = report
        compared = baselines.baseline(context)
        if compared is not None:
            read["baseline"] = str(compared.id)
        flagged = _flagged(context)
        if flagged:
            read["contaminated rows"] = str(digest_json(flagged))
        return Inputs(self.name, 2, config={"gate": gate_values(context)}, inputs=read)

    def run(self, context: Context, inputs: Inputs) -> Outputs:
        """Compare with the base, and judge the gate."""
        from modelyard.evaluation import compare, judge

        read = {name: digest for name, digest in inputs.inputs.items() if name.startswith("evaluate")}
        reports = {name: context.yard.report(digest) for name, digest in read.items()}
        result = reports["evaluate"]
        flagged = set(_flagged(context))
        clean = {_WORDS[name]: _without(report, flagged) for name, report in reports.items()} if flagged else None
        comparison = compare(reports["evaluate-base"], result).to_dict() if "evaluate-base" in reports else None
        gate = inputs.config["gate"]
        if not gate:
            return {"comparison": comparison, "verdict": None, "clean": clean}
        verdict = judge(
            gate,
            candidate=result["model"],
            reports=[result],
            baseline=inputs.inputs.get("baseline"),
            baseline_reports=[report for name, report in reports.items() if name != "evaluate"],
        )
        return {"comparison": comparison, "verdict": verdict.to_dict(), "clean": clean}

    def holds(self, context: Context, outputs: Outputs) -> bool:  # noqa: ARG002  # it is about reports, which are immutable
        """A comparison of two reports cannot change."""
        return True

    def summary(self, outputs: Outputs) -> str:
        """The difference, and the verdict."""
        said = []
        found = outputs["comparison"]
        if found is not None:
            said.append(f"{found['a_accuracy']:.3f} to {found['b_accuracy']:.3f}, p = {found['p_value']:.3g}")
        if outputs["clean"] is not None:
            result = outputs["clean"]["result"]
            share = "nothing" if result["accuracy"] is None else f"{result['accuracy']:.3f}"
            said.append(f"{share} on the {result['n']} rows that are not in the training data")
        if outputs["verdict"] is not None:
            said.append(f"gate: {outputs['verdict']['decision']}")
        return ", ".join(said)


def _flagged(context: Context) -> list[str]:
    """Ids of the test rows that occur in the training data; a row's id is its number, from 1."""
    found = context.output("preflight")["contamination"].get("train", {})
    return [str(row + 1) for row in found.get("contaminated_rows", ())]


def _without(report: Mapping[str, Any], flagged: set[str]) -> dict[str, Any]:
    """A report's accuracy over the examples that are not flagged; None where every one is."""
    scores = [example["score"] for example in report["examples"] if example["id"] not in flagged]
    return {"n": len(scores), "accuracy": sum(scores) / len(scores) if scores else None}


def _has(recipe: Recipe, step: str) -> bool:
    from modelyard.recipes.steps.evaluate import EvaluateBase, EvaluateBaseline

    return (EvaluateBase() if step == "evaluate-base" else EvaluateBaseline()).applies(recipe)
