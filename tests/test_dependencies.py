"""Every package that the source imports is asked for by name: in the dependencies, or in an extra; and nothing is pinned twice."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

OURS = {"modelyard"}
# The other half of a package that asks for exactly one version of it.
HALVES = {"pydantic-core": "pydantic", "botocore": "boto3"}


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements: list[str]) -> set[str]:
    """The distributions that requirements name."""
    return {canonical(found[0]) for each in requirements if (found := re.match(r"[A-Za-z0-9._-]+", each))}


def declared() -> set[str]:
    """What the project asks for: its dependencies and extras, but for those that only developers need."""
    extras = [each for name, group in PROJECT["optional-dependencies"].items() if name != "dev" for each in group]
    return names_of([*PROJECT["dependencies"], *extras])


def imported() -> dict[str, set[str]]:
    """Top-level modules that the source imports, anywhere in a file, and the files that do."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in OURS | set(sys.stdlib_module_names)}


def test_every_import_is_declared() -> None:
    """Each third-party module that src imports belongs to a distribution that pyproject.toml names."""
    homes = importlib.metadata.packages_distributions()
    asked = declared()
    missing = {
        name: sorted(files)[:3]
        for name, files in imported().items()
        if not {HALVES.get(canonical(each), canonical(each)) for each in homes.get(name, [name])} & asked
    }
    assert not missing


def test_developers_get_every_extra_that_tests_need() -> None:
    """What the extras that tests use ask for is in `dev` too, with the same bounds."""
    extras = PROJECT["optional-dependencies"]
    for name in ("export", "quantize", "signing", "postgres", "s3"):
        assert set(extras[name]) <= set(extras["dev"]), name


@pytest.mark.parametrize("name", sorted(names_of(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])))
def test_every_dependency_is_pinned_for_the_build(name: str) -> None:
    """constraints/py311.txt has one version of each package that a build for development installs."""
    pins = (ROOT / "constraints" / "py311.txt").read_text("utf-8").split()
    found = [each for each in pins if canonical(each.partition("==")[0]) == name]
    assert len(found) == 1
