"""What a step is: inputs that give its key, work that gives its outputs, and a check that recorded outputs still hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from modelyard.recipes.context import Context, Outputs, is_there

if TYPE_CHECKING:
    from modelyard.recipes.keys import Inputs
    from modelyard.recipes.schema import Recipe

__all__ = ["Step"]


class Step(ABC):
    """One step of a lifecycle.

    Attributes:
        name: What people, events and records call it.
    """

    name: str

    def applies(self, recipe: Recipe) -> bool:  # noqa: ARG002  # most steps always apply
        """Whether this recipe has the step."""
        return True

    @abstractmethod
    def inputs(self, context: Context) -> Inputs:
        """Everything that decides the outcome.

        Raises:
            Waiting: An earlier step has to run first.
            YardError: Something the recipe names is not there.
        """

    @abstractmethod
    def run(self, context: Context, inputs: Inputs) -> Outputs:
        """Do the work. It may be repeated after a crash at any point, and then ends with the same outputs."""

    def holds(self, context: Context, outputs: Outputs) -> bool:
        """Whether recorded outputs are still there: a version may have been deleted since."""
        return is_there(context.yard, outputs.get("version_name"), outputs.get("version"))

    @abstractmethod
    def summary(self, outputs: Outputs) -> str:
        """The outcome in a few words."""
