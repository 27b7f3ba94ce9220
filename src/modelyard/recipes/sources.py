"""Where a recipe's base and data come from: the four written forms, and the path behind a path.

::

    base   ./folder | hf://org/name[@rev] | ns/name[@rev] | package:NAME
    data   ./file   | datasets/ns/name[@rev]:file         | package:NAME

This module reads the text and touches nothing: whether the thing exists is found out by the step that uses it.

>>> parse_base("hf://org/small@main")
HubSource(repo='org/small', revision='main', file=None)
>>> parse_data("datasets/team/banking@v2:train.csv")
VersionFile(reference='datasets/team/banking@v2', file='train.csv')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from modelyard.errors import RefError
from modelyard.registry.reference import Reference
from modelyard.weights import hub
from modelyard.weights.hub import HubSource
from modelyard.weights.sources import is_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BaseSource",
    "DataSource",
    "HubSource",
    "PackageSource",
    "PathSource",
    "VersionFile",
    "VersionSource",
    "is_path",
    "located",
    "parse_base",
    "parse_data",
    "slug",
]


@dataclass(frozen=True)
class PathSource:
    """A file or folder, as written; `located` gives the path."""

    path: str


@dataclass(frozen=True)
class VersionSource:
    """A version of the open yard, by reference."""

    reference: str


@dataclass(frozen=True)
class VersionFile:
    """One file of a dataset version of the open yard."""

    reference: str
    file: str


@dataclass(frozen=True)
class PackageSource:
    """Something that ships with modelyard, by name; a `Resources` value finds it."""

    name: str


BaseSource: TypeAlias = PathSource | HubSource | VersionSource | PackageSource
DataSource: TypeAlias = PathSource | VersionFile | PackageSource


def parse_base(text: str) -> BaseSource:
    """Read the written form of a base.

    Raises:
        RefError: It is none of the forms; the hint has the nearest one.
    """
    if is_path(text):
        return PathSource(text)
    if text.startswith("package:"):
        return _package(text)
    if text.startswith("hf:"):
        source = hub.parse(text)
        if source.file is not None:
            raise RefError(
                f"`{text}` is a GGUF file, not a base",
                hint=f"take the model's safetensors: `hf://{source.repo}`",
            )
        return source
    if "/" not in text:
        forms = f"a folder is written `./{text}`, a hub id `hf://org/name`, a version `ns/name@v1`"
        raise RefError(f"`{text}` is not a base", hint=forms)
    if Reference.parse(text).repo_type == "dataset":
        raise RefError(f"`{text}` is a dataset, not a model", hint="give a model as the base")
    return VersionSource(text)


def parse_data(text: str) -> DataSource:
    """Read the written form of a data file.

    Raises:
        RefError: It is none of the forms; the hint has the nearest one.
    """
    if is_path(text):
        return PathSource(text)
    if text.startswith("package:"):
        return _package(text)
    if text.startswith("datasets/"):
        reference, colon, file = text.partition(":")
        Reference.parse(reference)
        if not colon or not file:
            raise RefError(f"`{text}` names no file", hint=f"add the file of that dataset: `{reference}:train.jsonl`")
        return VersionFile(reference, file)
    raise RefError(
        f"`{text}` is not a data file",
        hint=f"a path is written `./{text}`, a file of a dataset `datasets/ns/name@v1:file`",
    )


def _package(text: str) -> PackageSource:
    name = text.removeprefix("package:")
    if not name:
        raise RefError("`package:` names nothing", hint="`package:base` is the model that ships with modelyard")
    return PackageSource(name)


def located(source: PathSource, folder: Path) -> Path:
    """The path behind a path source; a relative one is below `folder`, the recipe's own.

    Raises:
        RefError: It begins with `~`, which only a command line can resolve.
    """
    if source.path.startswith("~"):
        raise RefError(f"`{source.path}`: the home directory is not known here", hint="write the path in full")
    return folder / source.path


def slug(text: str) -> str:
    """`text` as a name part: letters, digits, `.`, `_` and `-` only.

    >>> slug("My Model (v2)")
    'My-Model-v2'
    """
    return re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._]+", "-", text)).strip("-.")[:96] or "model"
