"""Loading: a file, or a folder's files of one split, as checked rows.

Knows no tokenizer and no model: whether rows fit a base is decided by `training.preflight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import DataError, NotFoundError, RecipeError, near_match
from modelyard.training.data.files import kind_of, read_records
from modelyard.training.data.formats import Shape, recognise
from modelyard.training.data.rows import Example, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["load_rows"]


def load_rows(
    path: Path,
    *,
    format: str = "auto",  # noqa: A002  # the word of recipes and of the command line
    columns: Mapping[str, str] | None = None,
    split_name: str = "train",
    system: str | None = None,
) -> Rows:
    r"""Read and check training rows.

    Args:
        path: A data file; or a folder, in which `split_name.*`, `split_name-*.*` or `split_name_*.*` are read in order
            of name (also in a subfolder `data`).
        format: `auto` recognises the format by the columns; otherwise a key of `data.formats.FORMATS`.
        columns: Part of a row to the file's column, such as `{"prompt": "text", "completion": "category"}`.
        split_name: Which files of a folder are read; ignored for a file.
        system: A system message for every row that has none of its own.

    Raises:
        NotFoundError: There is no such file, or no such split in the folder.
        RecipeError: `format` or a key of `columns` does not exist.
        DataError: A file or row is not sound; file, row and column are named.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "train.csv"
    >>> _ = file.write_text("text,category\nWhere is my card?,card_arrival\n")
    >>> rows = load_rows(file, columns={"prompt": "text", "completion": "category"})
    >>> rows.examples[0].completion, rows.format
    ('card_arrival', 'prompt-completion')
    """
    files = _split_files(path, split_name) if path.is_dir() else [path]
    examples: list[Example] = []
    shape: Shape | None = None
    seen: dict[str, None] = {}
    for file in files:
        before = len(examples)
        for record in read_records(file):
            if shape is None:
                shape = recognise(list(record.values), record.where, format, columns)
                if shape.format == "text" and system is not None:
                    raise RecipeError("`system` is given, but plain text has no system message")
            examples.append(shape.example(record.values, record.where, system))
            seen |= dict.fromkeys(record.values)
        if len(examples) == before:
            raise DataError(f"{file.name} is empty: it holds no row")
    if shape is None:
        raise DataError(f"{path.name} is empty: it holds no row")
    used = tuple(column for column in seen if shape.reads(column))
    ignored = tuple(column for column in seen if not shape.reads(column))
    return Rows(examples, shape.format, tuple(file.name for file in files), used, ignored)


def _split_files(folder: Path, split: str) -> list[Path]:
    """The data files of one split, by name; a folder that holds a single data file needs no split in its name."""
    data = [
        file
        for place in (folder, folder / "data")
        if place.is_dir()
        for file in sorted(place.iterdir())
        if file.is_file() and kind_of(file) and not file.name.lower().startswith(("readme", "license", "licence"))
    ]
    chosen = [
        file for file in data if file.name.split(".")[0] == split or file.name.startswith((f"{split}-", f"{split}_"))
    ]
    if chosen:
        return chosen
    if len(data) == 1 and split == "train":
        return data
    names = [file.name for file in data]
    meant = near_match(split, [name.split(".")[0] for name in names])
    raise NotFoundError(
        f"{folder}: no data file of the split `{split}`" + (f"; did you mean `{meant}`?" if meant else ""),
        hint="data files there: " + (", ".join(names[:10]) or "none"),
    )
