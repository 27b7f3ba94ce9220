"""Recipes: a YAML file describes a lifecycle, and running it does only what is not done yet.

    recipe = load_recipe(Path("banking77.yaml"), overrides=["train.epochs=2"], variables={"DATA": "/data/banking77"})
    result = run(recipe, yard, workspace=Path("."), runs=home / "runs", progress=print)
    result.versions["merged"]["name"], result.verdict["decision"], result.did_nothing

Steps check inputs out of the yard and commit outputs to it; each is keyed by the digests of what it reads, so a second
run does nothing, a changed value reruns what depends on it, and a killed run goes on where it was. `operations` has the
single steps as functions. This package does not know where a yard's folder is, and prints nothing.
"""

from __future__ import annotations

from modelyard.recipes.events import Event, Note, Progress, StepFailed, StepFinished, StepProgress, StepStarted
from modelyard.recipes.overrides import Surroundings
from modelyard.recipes.plan import Plan, PlannedStep
from modelyard.recipes.resources import NoResources, Resources
from modelyard.recipes.runner import RunResult, StepResult, plan, run
from modelyard.recipes.schema import DataSection, Limit, Recipe, Variable, load_recipe, parse_recipe

__all__ = [
    "DataSection",
    "Event",
    "Limit",
    "NoResources",
    "Note",
    "Plan",
    "PlannedStep",
    "Progress",
    "Recipe",
    "Resources",
    "RunResult",
    "StepFailed",
    "StepFinished",
    "StepProgress",
    "StepResult",
    "StepStarted",
    "Surroundings",
    "Variable",
    "load_recipe",
    "parse_recipe",
    "plan",
    "run",
]
