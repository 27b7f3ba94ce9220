"""What is wrong with a recipe: every problem at once, each with its key, its line and the key that was probably meant.

Translates pydantic's errors; knows the shape of models, not what their fields mean.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from modelyard.errors import RecipeError, near_match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelyard.recipes.document import Document, Location

__all__ = ["Problem", "dotted", "explained_problems", "find_problems", "known_paths", "refuse"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: The key, dotted from the top: `train.lerning_rate`.
        message: What is wrong with it, without the key.
        line: Its line in the file; None where it came from elsewhere or is missing altogether.
        meant: The path that was probably meant, or None.
        source: `--set` where the value came from there, else None.
    """

    path: str
    message: str
    line: int | None = None
    meant: str | None = None
    source: str | None = None

    @property
    def unknown(self) -> bool:
        """Whether the key is no key at all."""
        return self.message.startswith("unknown key")

    def __str__(self) -> str:
        """The problem as one line for people."""
        where = f"line {self.line}: " if self.line else f"{self.source}: " if self.source else ""
        meant = f"; did you mean `{self.meant}`?" if self.meant else ""
        return f"{where}`{self.path}`: {self.message}{meant}" if self.path else f"{where}{self.message}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {"path": self.path, "message": self.message, "line": self.line, "meant": self.meant}


def dotted(location: Location) -> str:
    """A location as text.

    >>> dotted(("train", "targets", 0))
    'train.targets[0]'
    """
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def refuse(label: str, problems: Sequence[Problem]) -> RecipeError:
    """The error that lists every problem of the recipe `label`; `details["problems"]` holds them as plain values."""
    problems = sorted(problems, key=lambda problem: (problem.line or 0, problem.path))
    lines = [str(problem) for problem in problems]
    if len(lines) == 1:
        message = f"`{label}`, {lines[0]}"
    else:
        message = "\n".join([f"`{label}` has {len(lines)} errors:", *(f"  {line}" for line in lines)])
    hint = "docs/reference/recipe.md has every key" if any(problem.unknown for problem in problems) else None
    return RecipeError(message, hint=hint, problems=[problem.to_dict() for problem in problems])


def find_problems(
    error: ValidationError,
    model: type[BaseModel],
    document: Document,
    overridden: set[Location],
    *,
    known: Sequence[Location],
    section: Location = (),
) -> list[Problem]:
    """Every problem that pydantic found in a section.

    Args:
        error: What pydantic raised.
        model: What was validated.
        document: Where the lines are.
        overridden: Locations that came from the command line.
        known: Every location that a recipe knows, for near matches.
        section: Where in the recipe `model` is.
    """
    found: dict[str, Problem] = {}
    for entry in error.errors(include_url=False):
        location = section + _real_location(entry["loc"], model)
        message = _message(dict(entry), location, known)
        meant = _meant(location, known) if entry["type"] == "extra_forbidden" else None
        # A value that fits no branch of a union is one problem, whichever branch complains first.
        found.setdefault(dotted(location), _placed(location, message, meant, document, overridden))
    return list(found.values())


def explained_problems(
    error: RecipeError, document: Document, overridden: set[Location], *, known: Sequence[Location], section: Location
) -> list[Problem]:
    """The problems of a model that raises its own `RecipeError`, with `details["problems"]` as `{key, problem}` maps."""
    found = []
    for entry in error.details.get("problems", [{"key": "", "problem": error.message}]):
        key = str(entry["key"])
        location = (*section, key) if key and key != dotted(section) else section
        unknown = len(location) > len(section) and location not in known
        message = _unknown(location, known) if unknown else str(entry["problem"]).removeprefix(f"`{key}` ")
        meant = _meant(location, known) if unknown else None
        found.append(_placed(location, message, meant, document, overridden))
    return found


def _placed(
    location: Location, message: str, meant: str | None, document: Document, overridden: set[Location]
) -> Problem:
    from_set = any(location[: len(path)] == path for path in overridden)
    line = None if from_set else document.line(location)
    return Problem(dotted(location), message, line, meant, "--set" if from_set else None)


def _unknown(location: Location, known: Sequence[Location]) -> str:
    beside = [str(path[-1]) for path in known if path[:-1] == location[:-1]]
    return f"unknown key (known here: {', '.join(beside)})" if 0 < len(beside) <= 10 else "unknown key"


def known_paths(model: type[BaseModel], prefix: Location = ()) -> Iterator[Location]:
    """Every path that `model` knows, sections before what is in them."""
    for name, info in model.model_fields.items():
        yield (*prefix, name)
        for inner in _models(info.annotation):
            yield from known_paths(inner, (*prefix, name))


def _message(entry: dict[str, Any], location: Location, known: Sequence[Location]) -> str:
    shown = f"{entry.get('input')!r}"[:80]
    text = str(entry["msg"]).removeprefix("Value error, ")
    match entry["type"]:
        case "extra_forbidden":
            return _unknown(location, known)
        case "missing":
            return "is required and was not given"
        case "value_error":
            return text
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"has to be a section of keys, not {shown}"
    return f"{text.removeprefix('Input ')}, not {shown}"


def _real_location(raw: tuple[str | int, ...], model: type[BaseModel]) -> Location:
    """Drop what pydantic adds for the branch of a union: it is in the type, not in the file."""
    location: list[str | int] = []
    current: Any = model
    for part in raw:
        step = _annotation_of(current, part)
        if step is None and _is_branch(current, part):
            continue
        location.append(part)
        current = step
    return tuple(location)


def _annotation_of(annotation: Any, part: str | int) -> Any:
    """The type of what `part` selects in a value of type `annotation`; None when that is not a thing."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            if isinstance(part, str) and part in option.model_fields:
                return option.model_fields[part].annotation
            continue
        container = get_origin(option)
        if container in {dict, list, tuple} and (container is dict) == isinstance(part, str):
            return get_args(option)[-1]
    return None


def _is_branch(annotation: Any, part: str | int) -> bool:
    return isinstance(part, str) and len(_options(annotation)) > 1 and not _models(annotation)


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [inner for option in get_args(annotation) if option is not type(None) for inner in _options(option)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [option for option in _options(annotation) if isinstance(option, type) and issubclass(option, BaseModel)]


def _meant(location: Location, known: Sequence[Location]) -> str | None:
    """The same key in another section, else the near match among the keys beside it, else one anywhere."""
    word = str(location[-1])
    everywhere = {str(path[-1]): path for path in known}
    beside = {str(path[-1]): path for path in known if path[:-1] == location[:-1]}
    if word in everywhere:
        return dotted(everywhere[word])
    if (near := near_match(word, beside)) is not None:
        return dotted(beside[near])
    near = near_match(word, everywhere)
    return dotted(everywhere[near]) if near else None
