"""What the steps of one execution share: the recipe, the yard, folders to work in, and what earlier steps made.

Knows no step.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modelyard.digest import Digest
from modelyard.errors import IntegrityError, NotFoundError
from modelyard.recipes.events import Note, Progress, StepProgress, ignore
from modelyard.recipes.fingerprints import Fingerprints
from modelyard.recipes.memory import Memory
from modelyard.recipes.resources import NoResources, Resources

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.recipes.schema import Recipe
    from modelyard.registry import Version, Yard

__all__ = ["Context", "Outputs", "Waiting"]

Outputs = Mapping[str, Any]
"""What a step made, as plain values: version ids, report digests, figures. It is what a run's record keeps."""


class Waiting(Exception):  # noqa: N818  # not an error: a plan stops here, because an earlier step has not run
    """An input is not known yet, because the step that makes it has to run first."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


@dataclass
class Context:
    """One execution of one recipe.

    Attributes:
        recipe: The recipe.
        yard: Where versions, reports and run records live.
        workspace: The recipe file's folder: what its relative paths are relative to.
        runs: A folder of the yard for checkpoints, scratch files and locks.
        resources: Finds `package:NAME`.
        threads: Compute threads; None leaves the choice to each step.
        offline: Whether a hub may not be asked for anything.
        phrases: Texts that must not occur in the `train` rows or in the `base`'s own corpus, for the contamination check.
        progress: Told what happens.
        outputs: What the steps so far made, by step.
    """

    recipe: Recipe
    yard: Yard
    workspace: Path
    runs: Path
    resources: Resources = field(default_factory=NoResources)
    threads: int | None = None
    offline: bool = False
    phrases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    progress: Progress = ignore
    outputs: dict[str, Outputs] = field(default_factory=dict)

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Digests of files, remembered between runs."""
        return Fingerprints(self.runs / "fingerprints.json")

    @cached_property
    def memory(self) -> Memory:
        """What this recipe did last."""
        return Memory(self.runs / "recipes" / f"{self.label}.json")

    @property
    def label(self) -> str:
        """The recipe and its repo as one file name; two recipes of one name and repo are the same recipe."""
        return f"{self.recipe.repo.replace('/', '--')}--{self.recipe.name}"

    def output(self, step: str) -> Outputs:
        """What `step` made; raises `Waiting` when it has not run."""
        if step not in self.outputs:
            raise Waiting(step)
        return self.outputs[step]

    def version(self, step: str) -> Version:
        """The version that `step` made."""
        return self.yard.resolve(self.output(step)["version_name"])

    def note(self, step: str, message: str, hint: str | None = None) -> None:
        """Say something that stops nothing."""
        self.progress(Note(step, message, hint))

    def report(self, step: str, fraction: float | None, detail: str) -> None:
        """Say how far a step is."""
        self.progress(StepProgress(step, fraction, detail))

    @property
    def scratch(self) -> Path:
        """A folder for this recipe's temporary files; whoever holds the recipe's lock owns it."""
        return self.runs / "scratch" / self.label

    def clear_scratch(self) -> None:
        """Remove what this run, or a killed one before it, left in `scratch`."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def folder(self, version: Version) -> Path:
        """A version's files in a folder, verified now, by hard link: read them only."""
        return self.yard.folder(version)


def is_there(yard: Yard, name: str | None, digest: str | None) -> bool:
    """Whether the version that a record names still is what it was: it may have been deleted since."""
    if name is None or digest is None:
        return False
    try:
        return yard.resolve(name).id == Digest(digest)
    except (NotFoundError, IntegrityError):
        return False


def made(version: Version, **more: Any) -> dict[str, Any]:
    """The outputs of a step that made `version`."""
    return {
        "version": str(version.id),
        "version_name": version.name,
        "number": version.number,
        "kind": version.kind,
        **more,
    }
