"""The `promote` step: the alias moves to the result, if the gate's verdict is a pass.

The recipe's gate is set on the alias, so that nobody moves it past the same rule by hand. A gate that somebody else set
there stays, and both have to pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import GateRefusedError
from modelyard.recipes import baselines
from modelyard.recipes.keys import Inputs
from modelyard.recipes.steps.compare import gate_values
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from modelyard.recipes.context import Context, Outputs
    from modelyard.recipes.schema import Recipe

__all__ = ["Promote"]


class Promote(Step):
    """See the module."""

    name = "promote"

    def applies(self, recipe: Recipe) -> bool:
        """Whether the recipe moves an alias."""
        return recipe.promote is not None

    def inputs(self, context: Context) -> Inputs:
        """The version, the alias and the gate."""
        if context.recipe.gate is not None:
            context.output("compare")
        return Inputs(
            self.name,
            1,
            config={"repo": context.recipe.repo, "promote": context.recipe.promote, "gate": gate_values(context)},
            inputs={"version": str(baselines.candidate(context).id)},
        )

    def run(self, context: Context, inputs: Inputs) -> Outputs:
        """Set the gate, and move the alias past it."""
        recipe = context.recipe
        alias = str(recipe.promote)
        version = baselines.candidate(context)
        gate = inputs.config["gate"]
        if gate:
            self._set_gate(context, alias, gate)
            verdict = context.output("compare")["verdict"]
            if verdict["decision"] != "pass":
                raise GateRefusedError(
                    f"`{version.name}` is not promoted to `{alias}`: " + "; ".join(verdict["reasons"]),
                    hint=f"everything before is kept; look at the examples with `yard show {version.name}`",
                    reasons=verdict["reasons"],
                    verdict=verdict,
                    version=version.name,
                )
        moved = context.yard.promote(version, to=alias)
        return {
            "alias": alias,
            "version": str(version.id),
            "version_name": version.name,
            "previous": moved.previous.name if moved.moved and moved.previous is not None else None,
            "moved": moved.moved,
        }

    def _set_gate(self, context: Context, alias: str, gate: dict[str, object]) -> None:
        repo = context.recipe.repo
        present = context.yard.gate(repo, alias)
        if present is not None and present != gate and context.memory.gate(alias) != present:
            context.note(
                self.name,
                f"`{alias}` of `{repo}` has a gate that this recipe did not set; it stays, and both have to pass",
                hint=f"yard gate {repo} {alias}",
            )
            return
        if present != gate:
            context.yard.set_gate(repo, alias, gate)
        kept = context.yard.gate(repo, alias)
        if kept is not None:
            # As the yard keeps it, completed: that is what the next run finds there.
            context.memory.remember_gate(alias, kept)

    def holds(self, context: Context, outputs: Outputs) -> bool:
        """Whether the alias is there, or was rolled back by somebody, which running the same recipe does not undo."""
        held = baselines.holder(context)
        if held is not None and held.id == outputs["version"]:
            return True
        move = baselines.last_move(context)
        if held is None or move is None or move.action != "rollback":
            return False
        context.note(
            self.name,
            f"`{outputs['alias']}` was rolled back to `{held.name}` and is left there",
            hint=f"yard promote {outputs['version_name']} --to {outputs['alias']}",
        )
        return True

    def summary(self, outputs: Outputs) -> str:
        """The alias and the version."""
        before = f" (was {outputs['previous']})" if outputs.get("previous") else ""
        return f"{outputs['alias']} is {outputs['version_name']}{before}"
