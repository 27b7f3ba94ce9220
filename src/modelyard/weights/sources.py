"""How the place of a model is written: a path, a hub's id, or a yard's reference. Reads text only; touches nothing.

>>> [source_form(text) for text in ("./model", "hf://org/name", "team/model@v1")]
['path', 'hub', 'reference']
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["is_path", "source_form"]


def is_path(text: str) -> bool:
    """Whether `text` is written as a path: it begins with `./`, `../`, `/` or `~`, or is `.` or `..`.

    >>> is_path("./model"), is_path("model")
    (True, False)
    """
    return text in {".", "..", "~"} or text.startswith(("./", "../", "/", "~/"))


def source_form(source: str | Path) -> Literal["path", "hub", "reference"]:
    """Which of the three forms `source` has; a `Path` is a path however it is written."""
    if isinstance(source, Path) or is_path(source):
        return "path"
    return "hub" if source.startswith("hf:") else "reference"
