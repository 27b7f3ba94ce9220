"""The steps of a lifecycle, in order, one file each.

Data comes first because checking it is cheap and fetching a base may not be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.recipes.steps.base import Base
from modelyard.recipes.steps.compare import Compare
from modelyard.recipes.steps.data import Data
from modelyard.recipes.steps.evaluate import Evaluate, EvaluateBase, EvaluateBaseline
from modelyard.recipes.steps.merge import Merge
from modelyard.recipes.steps.preflight import Preflight
from modelyard.recipes.steps.promote import Promote
from modelyard.recipes.steps.step import Step
from modelyard.recipes.steps.train import Train

if TYPE_CHECKING:
    from modelyard.recipes.schema import Recipe

__all__ = ["STEPS", "Step", "steps_of"]

STEPS: tuple[Step, ...] = (
    Data(),
    Base(),
    Preflight(),
    Train(),
    Merge(),
    EvaluateBase(),
    Evaluate(),
    EvaluateBaseline(),
    Compare(),
    Promote(),
)


def steps_of(recipe: Recipe) -> list[Step]:
    """The steps that this recipe has, in order."""
    return [step for step in STEPS if step.applies(recipe)]
