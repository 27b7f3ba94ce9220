"""Step keys: the digest of everything that decides a step's outcome, and what changed between two of them.

Floats, booleans and nothing are written as JSON text inside strings, so that `1`, `"1"` and `1.0` stay different and the
whole is canonical JSON. Knows no steps.

>>> a = Inputs("train", 1, config={"rank": 8}, inputs={"base": "ab" * 32})
>>> b = Inputs("train", 1, config={"rank": 16}, inputs={"base": "ab" * 32})
>>> a.key == b.key, changes(a.to_dict(), b.to_dict())
(False, ['rank was 8, is 16'])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any

from modelyard.digest import Digest, digest_json
from modelyard.errors import InternalError

__all__ = ["Inputs", "changes", "installed"]


@dataclass(frozen=True)
class Inputs:
    """What decides a step's outcome.

    Attributes:
        step: The step's name.
        version: Raised when the step does something else with the same inputs.
        config: What the recipe says about it: plain values, nested as they come.
        inputs: Name to digest of what it reads: files, versions, reports.
        packages: Name to version of the packages that compute.
    """

    step: str
    version: int
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As integers and strings, ready for canonical JSON; this is what a run's record keeps."""
        return {
            "step": self.step,
            "version": self.version,
            "config": dict(_flat(self.config)),
            "inputs": dict(self.inputs),
            "packages": dict(self.packages),
        }

    @cached_property
    def key(self) -> Digest:
        """The digest of all of it."""
        return digest_json(self.to_dict())


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        path = f"{prefix}{name}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{path}.")
        else:
            try:
                yield path, json.dumps(item, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InternalError(f"a step's `{path}` is no plain value: {item!r}") from error


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two `Inputs.to_dict()`, in words, the recipe's own values first."""
    found = []
    if before.get("version") != after.get("version"):
        found.append("the step itself changed with modelyard")
    for part, say in (("config", _said_value), ("inputs", _said_input), ("packages", _said_package)):
        old, new = dict(before.get(part, {})), dict(after.get(part, {}))
        found += [say(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]
    return found


def _said_value(name: str, old: str | None, new: str | None) -> str:
    return f"{name} was {_short(old)}, is {_short(new)}"


def _said_input(name: str, old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return f"{name} is {'new' if old is None else 'gone'}"
    return f"{name} changed"


def _said_package(name: str, old: str | None, new: str | None) -> str:
    return f"{name} was {old or 'not installed'}, is {new or 'not installed'}"


def _short(text: str | None) -> str:
    if text is None:
        return "not given"
    return text if len(text) <= 60 else f"{text[:57]}..."


def installed(*packages: str) -> dict[str, str]:
    """Name to installed version, without importing any; a package that is not installed is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
