"""The `merge` step: base and adapter become one model, by the exact operation `lora/1`.

The same base and adapter give the same bytes on every machine, so nothing else decides the outcome.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelyard.recipes.context import Context, Outputs, made
from modelyard.recipes.keys import Inputs
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.recipes.schema import Recipe
    from modelyard.registry import Version, Yard
    from modelyard.weights.merge import MergeCertificate

__all__ = ["OPERATION", "Merge", "merge_versions"]

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
        version, certificate = merge_versions(
            context.yard,
            base=context.version("base"),
            adapter=context.version("train"),
            to=context.recipe.repo,
            out=context.scratch / "merged",
            inputs=inputs.key,
            message=f"merged by the recipe {context.recipe.name}",
            threads=context.threads,
            progress=lambda done, total: context.report(
                self.name, done / total if total else None, f"{done} of {total}"
            ),
        )
        return made(version, certificate=certificate.to_dict())

    def summary(self, outputs: Outputs) -> str:
        """The merged version."""
        return f"{outputs['version_name']} ({OPERATION})"


def merge_versions(
    yard: Yard,
    *,
    base: Version,
    adapter: Version,
    to: str,
    out: Path,
    inputs: Digest | None,
    message: str,
    progress: Callable[[int, int], None] | None = None,
    branch: str = "main",
    threads: int | None = None,
) -> tuple[Version, MergeCertificate]:
    """Merge two versions into the folder `out`, commit it as the head of `to`'s branch, and remove the folder."""
    from modelyard.weights.merge import merge_lora

    shutil.rmtree(out, ignore_errors=True)
    # What is read stays stored until it is read, whoever deletes it meanwhile.
    with ExitStack() as stack:
        stack.enter_context(yard.lease("merge"))
        stack.callback(shutil.rmtree, out, ignore_errors=True)
        certificate = merge_lora(yard.files(base), yard.files(adapter), out, progress=progress, threads=threads)
        version = yard.commit(
            out,
            to,
            branch=branch,
            kind="merged",
            from_=[("merged", adapter), ("merged", base)],
            message=message,
            metadata={"operation": OPERATION},
            inputs=inputs,
        )
    return version, certificate
