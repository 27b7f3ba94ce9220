"""The `train` step: rows and a base in, an adapter version with its lineage out.

Training works in a folder named by the step's key, so a killed run is continued by the same command, and only by one
that would give the same weights. Checkpoints go when the adapter is committed.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from modelyard.errors import NotFoundError, YardError
from modelyard.recipes import rows
from modelyard.recipes.context import Context, Outputs, made
from modelyard.recipes.keys import Inputs, installed
from modelyard.recipes.steps.step import Step
from modelyard.registry.locks import hold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.registry import Version
    from modelyard.training import TrainConfig, TrainResult

__all__ = ["BRANCH", "Train", "deciding"]

BRANCH = "adapter"
"""The branch of the recipe's repo that adapters are committed to."""

_CURVE_POINTS = 200
_INCIDENTAL = {"save_every", "threads"}


def deciding(config: TrainConfig) -> dict[str, Any]:
    """The options that decide the weights: how often a checkpoint is written and by how many threads does not."""
    return config.model_dump(exclude=_INCIDENTAL)


class Train(Step):
    """See the module."""

    name = "train"

    def inputs(self, context: Context) -> Inputs:
        """The base, the bytes and the view of the training file, the options, and what computes."""
        data = context.output("data")
        entry = context.version("data").file(data["train"])
        return Inputs(
            self.name,
            1,
            config={
                "repo": context.recipe.repo,
                "the base's name": context.version("base").repo,
                "train": deciding(context.recipe.train),
                "data": {"train": rows.view(context.recipe.data, "train")},
            },
            inputs={
                "base": context.output("base")["version"],
                "data.train": str(entry.blake3) if entry is not None else "",
            },
            packages=installed("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "numpy"),
        )

    def run(self, context: Context, inputs: Inputs) -> Outputs:
        """Train, commit the adapter, and remove the checkpoints."""
        workdir = context.runs / str(inputs.key)
        with hold(context.runs / "locks" / f"{inputs.key}.lock", "this very training"):
            done = _committed(context, inputs.key)
            if done is None:
                result = self._train(context, workdir)
                done = self._commit(context, inputs, result)
                figures: dict[str, Any] = {"steps": result.steps, "seconds": result.seconds, "loss": result.loss}
                figures |= {"resumed_from": result.resumed_from, "curve": _curve(result.log), "metrics": result.metrics}
            else:
                figures = {"loss": float(done.metadata["loss"]), "steps": int(done.metadata["steps"])}
            shutil.rmtree(workdir, ignore_errors=True)
        return made(done, **figures)

    def _train(self, context: Context, workdir: Path) -> TrainResult:
        from modelyard.training import train

        recipe = context.recipe
        config = recipe.train
        if config.threads is None and context.threads is not None:
            config = config.model_copy(update={"threads": context.threads})

        def listen(state: Mapping[str, Any]) -> None:
            said = f"step {state['step']} of {state['steps']}, loss {state['loss']:.3f}"
            context.report(self.name, state["step"] / state["steps"], said)

        file = context.folder(context.version("data")) / context.output("data")["train"]
        train_rows = rows.read(file, recipe.data, "train")
        base = context.version("base")
        try:
            return train(context.folder(base), train_rows, config, workdir, progress=listen, base_name=base.repo)
        except YardError as error:
            if error.code != "interrupted":
                raise
            # Training turned the signal into an error to save its state first; to the caller it is Ctrl-C as ever.
            context.note(self.name, error.message, error.hint)
            raise KeyboardInterrupt(error.message) from error

    def _commit(self, context: Context, inputs: Inputs, result: TrainResult) -> Version:
        base, data = context.version("base"), context.version("data")
        return context.yard.commit(
            result.adapter,
            context.recipe.repo,
            branch=BRANCH,
            kind="adapter",
            from_=[("finetuned", base), ("trained-on", data)],
            message=f"trained by the recipe {context.recipe.name}",
            metadata={
                "recipe": context.recipe.name,
                "method": context.recipe.train.method,
                "steps": str(result.steps),
                "loss": repr(float(result.loss)),
                "seconds": f"{result.seconds:.1f}",
            },
            inputs=inputs.key,
        )

    def summary(self, outputs: Outputs) -> str:
        """The adapter, its steps and its loss."""
        resumed = f", resumed from step {outputs['resumed_from']}" if outputs.get("resumed_from") else ""
        return f"{outputs['version_name']} ({outputs['steps']} steps, loss {outputs['loss']:.3f}{resumed})"


def _committed(context: Context, key: Digest) -> Version | None:
    """The adapter that a run killed before it could be recorded has committed already, or None."""
    try:
        versions = context.yard.versions(context.recipe.repo, "model")
    except NotFoundError:
        return None
    return next((version for version in versions if version.inputs == key and version.kind == "adapter"), None)


def _curve(log: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The loss by step, thinned out to at most `_CURVE_POINTS` points, the last kept."""
    points = [[entry["step"], float(entry["loss"])] for entry in log]
    if len(points) <= _CURVE_POINTS:
        return points
    stride = -(-len(points) // (_CURVE_POINTS - 1))
    return [*points[:-1:stride], points[-1]]
