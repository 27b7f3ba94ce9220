"""Strict parsing of options: a pydantic error becomes a `RecipeError` that names the key and the near match.

Knows no tasks and no gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from modelyard.errors import RecipeError, near_match

Parsed = TypeVar("Parsed", bound=BaseModel)


def parse(model: type[Parsed], values: Mapping[str, Any], what: str) -> Parsed:
    """Validate `values` as `model`.

    Args:
        model: A strict pydantic model that forbids extra keys.
        values: What was given, usually from YAML or JSON: a list stands for a tuple.
        what: What the values are, for messages: "the gate", "task `label`".

    Raises:
        RecipeError: For the first key that is unknown, missing or has a wrong value; `details["field"]` is its path.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{what} must be a mapping of options, not {type(values).__name__}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise _explain(model, first, what) from error


def _explain(model: type[BaseModel], first: Mapping[str, Any], what: str) -> RecipeError:
    path = ".".join(str(part) for part in first["loc"])
    known = sorted(model.model_fields)
    if first["type"] == "extra_forbidden":
        meant = near_match(path, known)
        hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(known)}"
        return RecipeError(f"unknown key `{path}` in {what}", hint=hint, field=path)
    if first["type"] == "missing":
        return RecipeError(f"{what} lacks `{path}`", hint=f"add `{path}:`", field=path)
    said = str(first["msg"]).removeprefix("Value error, ")
    if not path:
        return RecipeError(f"{what}: {said}", field=path)
    return RecipeError(f"`{path}` in {what} is {first['input']!r}: {said}", field=path)
