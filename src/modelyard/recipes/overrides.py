"""What the command line adds to a recipe: `--set key=value`, and values for the recipe's variables.

A recipe may declare variables and use them in any text::

    variables:
      DATA: folder with train.csv and test.csv, published at example.org/banking77
    data:
      train: ${DATA}/train.csv

Values go into the parsed tree, never into the YAML text, so that a value cannot add keys. `$${` is a literal `${`.
A relative path given on the command line (`./`, `../`) is relative to where the command was given, not to the recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import RecipeError, near_match
from modelyard.recipes.document import Document, Location, read_value
from modelyard.recipes.problems import Problem, dotted
from modelyard.recipes.sources import is_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["VARIABLE", "Surroundings", "apply_overrides", "fill_variables"]

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_USE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_PATH_KEYS: frozenset[Location] = frozenset({("base",), ("data", "train"), ("data", "test")})


@dataclass(frozen=True)
class Surroundings:
    """Where a command was given: what `./` and `~` mean in its arguments. None: such a path is left as written."""

    folder: Path | None = None
    home: Path | None = None

    def absolute(self, text: str) -> str:
        """`text` made absolute when it is written as a relative or home path."""
        if not is_path(text):
            return text
        if text.startswith("~"):
            return str(self.home / text[2:]) if self.home else text
        return str(self.folder / text) if self.folder and not text.startswith("/") else text


def apply_overrides(
    document: Document, pairs: Sequence[str], surroundings: Surroundings
) -> tuple[set[Location], dict[str, str]]:
    """Put `key=value` pairs into the document; return the locations set, and the values given to variables.

    A pair whose key is one of the recipe's variables gives that variable. Values are read as YAML; a later pair wins.

    Raises:
        RecipeError: A pair has no `=`, or a key goes through something that is no section.
    """
    declared = _declared(document.tree)
    touched: set[Location] = set()
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not key or not equals:
            raise RecipeError(f"`--set {pair}` is not of the form KEY=VALUE", hint="for example `--set train.epochs=2`")
        if key in declared:
            given[key] = text
            continue
        location = tuple(key.split("."))
        value = read_value(text, f"--set {key}")
        if location in _PATH_KEYS and isinstance(value, str):
            value = surroundings.absolute(value)
        _put(document.tree, location, value)
        touched.add(location)
    return touched, given


def _put(tree: dict[str, Any], location: tuple[str, ...], value: Any) -> None:
    current = tree
    for depth, part in enumerate(location[:-1], start=1):
        if current.get(part) is None:
            current[part] = {}
        if not isinstance(current[part], dict):
            held = dotted(location[:depth])
            raise RecipeError(f"`--set {dotted(location)}`: `{held}` is a value, not a section")
        current = current[part]
    current[location[-1]] = value


def fill_variables(document: Document, values: Mapping[str, str], surroundings: Surroundings) -> list[Problem]:
    """Replace `${NAME}` in every text of the document, in place; return what is wrong.

    Raises:
        RecipeError: A value is given for a variable that the recipe does not declare.
    """
    declared = _declared(document.tree)
    for name in values:
        if name not in declared:
            meant = near_match(name, declared)
            known = f"it has: {', '.join(declared)}" if declared else "it has none"
            raise RecipeError(
                f"`{document.label}` has no variable `{name}`", hint=f"did you mean `{meant}`?" if meant else known
            )
    given = {name: surroundings.absolute(text) for name, text in values.items()}
    known_values = {name: given.get(name, default) for name, (_, default) in declared.items()}
    filler = _Filler(document, known_values, {name: text for name, (text, _) in declared.items()})
    for key in document.tree:
        if key != "variables":
            document.tree[key] = filler.fill(document.tree[key], (key,))
    return filler.problems


class _Filler:
    def __init__(self, document: Document, values: Mapping[str, str | None], descriptions: Mapping[str, str]) -> None:
        self._document = document
        self._values = values
        self._descriptions = descriptions
        self.problems: list[Problem] = []

    def fill(self, value: Any, location: Location) -> Any:
        if isinstance(value, dict):
            return {key: self.fill(item, (*location, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, (*location, index)) for index, item in enumerate(value)]
        if isinstance(value, str):
            return _USE.sub(lambda match: self._replace(match, location), value)
        return value

    def _replace(self, match: re.Match[str], location: Location) -> str:
        name = match[1]
        if name is None:
            return "${"
        value = self._values.get(name)
        if value is not None:
            return value
        line = self._document.line(location)
        if name not in self._values:
            meant = near_match(name, self._values)
            message = f"`${{{name}}}` is not declared under `variables`"
            self._note(Problem(dotted(location), message, line, f"${{{meant}}}" if meant else None))
        else:
            message = f"needs the variable {name} ({self._descriptions[name]}); give it with `-v {name}=...`"
            self._note(Problem(dotted(location), message, line))
        return match[0]

    def _note(self, problem: Problem) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _declared(tree: Mapping[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Name to (description, default) of every well-formed declaration; the schema reports the others."""
    section = tree.get("variables")
    found: dict[str, tuple[str, str | None]] = {}
    for name, entry in section.items() if isinstance(section, dict) else ():
        if isinstance(entry, str):
            found[name] = (entry, None)
        elif isinstance(entry, dict) and isinstance(entry.get("description"), str):
            default = entry.get("default")
            found[name] = (entry["description"], default if isinstance(default, str) else None)
    return found
