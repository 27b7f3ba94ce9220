"""The `merge` step: base and adapter become one model, by the exact operation `lora/1`.

The same base and adapter give the same bytes on every machine, so nothing else decides the outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.recipes.context import Context, Outputs, made
from modelyard.recipes.keys import Inputs
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from modelyard.recipes.schema import Recipe

__all__ = ["OPERATION", "Merge"]

OPERATION = "lora/1"


class Merge(Step):
    """See the module."""

    name = "merge"

    def applies(self, recipe: Recipe) -> bool:
        """Whether the recipe merges."""
        return recipe.merge

    def inputs(self, context: Context) -> Inputs:
        """The base, the adapter and the operation."""
        return Inputs(
            self.name,
            1,
            config={"repo": context.recipe.repo, "operation": OPERATION},
            inputs={"adapter": context.output("train")["version"], "base": context.output("base")["version"]},
        )

    def run(self, context: Context, inputs: Inputs) -> Outputs:
        """Merge into a scratch folder and commit it."""
        done = context.yard.merge(
            context.version("train"),
            context.recipe.repo,
            base=context.version("base"),
            inputs=inputs.key,
            message=f"merged by the recipe {context.recipe.name}",
            threads=context.threads,
            progress=lambda done, total: context.report(
                self.name, done / total if total else None, f"{done} of {total}"
            ),
        )
        assert done.version is not None  # noqa: S101  a repo was asked for
        return made(done.version, certificate=done.certificate.to_dict())

    def summary(self, outputs: Outputs) -> str:
        """The merged version."""
        return f"{outputs['version_name']} ({OPERATION})"
