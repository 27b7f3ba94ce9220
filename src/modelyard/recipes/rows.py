"""The recipe's view of a data file: its format, columns, system message, and which rows when there is a limit.

A limited view draws rows by `data.seed` and keeps their order: the first N rows of a file sorted by label would hold one
label. Knows files and rows; knows no yard.
"""

from __future__ import annotations

import dataclasses
import json
import random
from typing import TYPE_CHECKING, Any, Literal

from modelyard.evaluation import Example, from_rows
from modelyard.recipes.schema import DataSection
from modelyard.training.data import Example as Row
from modelyard.training.data import Rows, load_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Rows", "Split", "described", "examples", "read", "recovered", "text_of_row", "view"]

Split = Literal["train", "test"]

_KEY = "modelyard.data"


def view(data: DataSection, split: Split) -> dict[str, Any]:
    """What decides which rows a file's bytes become, for a step's key."""
    limit = getattr(data.limit, split)
    drawn = {"limit": limit, "seed": data.seed} if limit is not None else {}
    return {"format": data.format, "columns": data.columns or {}, "system": data.system, **drawn}


def described(data: DataSection) -> dict[str, str]:
    """How the files are read, as a dataset version's metadata: `recovered` makes the section again."""
    return {_KEY: data.model_dump_json(include={"format", "columns", "system", "limit", "seed"}, exclude_none=True)}


def recovered(metadata: Mapping[str, str], file: str) -> DataSection:
    """The section that `described` wrote, about `file`; the defaults where nothing was written."""
    said = json.loads(metadata.get(_KEY, "{}"))
    return DataSection.model_validate({**said, "train": f"./{file}", "test": f"./{file}"})


def read(path: Path, data: DataSection, split: Split) -> Rows:
    """Read, check and limit the rows of a file.

    Raises:
        NotFoundError: There is no such file.
        DataError: A row is not usable; file and row are named.
        RecipeError: `data.format` or `data.columns` does not exist.
    """
    rows = load_rows(path, format=data.format, columns=data.columns, split_name=split, system=data.system)
    limit = getattr(data.limit, split)
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(random.Random(f"{split}/{data.seed}").sample(range(len(rows)), limit))  # noqa: S311  # no secret
    return dataclasses.replace(rows, examples=[rows.examples[index] for index in chosen])


def examples(rows: Rows) -> list[Example]:
    """Evaluation examples of rows, numbered in order.

    Raises:
        DataError: A row has no question with an answer.
    """
    return from_rows(rows)


def text_of_row(row: Row) -> str:
    """A training row as plain text without system messages, for the contamination check.

    A system message stands in every row of both files, and would make each look like a copy of the others.
    """
    if row.messages is None:
        return row.text or ""
    return "\n".join(str(message["content"]) for message in row.messages if message["role"] != "system")
