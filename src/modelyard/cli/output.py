"""Rendering: data to stdout, the rest to stderr, nothing that a terminal would obey.

This module knows no model and no yard; it gets plain values and strings.
"""

from __future__ import annotations

import json
import sys
import unicodedata
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelyard.errors import YardError

__all__ = ["clean", "data", "error", "error_json", "human_bytes", "json_object", "note", "table", "warnings_as_notes"]


def clean(text: object) -> str:
    """`text` with control characters escaped, so that a hostile name cannot move the cursor or recolour the screen.

    >>> clean("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Co", "Cs"} else ascii(char)[1:-1]
        for char in str(text)
    )


def data(text: str = "") -> None:
    """One line, or several, of what was asked for, on stdout."""
    click.echo(clean(text))


def json_object(value: Any) -> None:
    """The command's one JSON object, on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def note(text: str) -> None:
    """Something worth knowing that is not the data, on stderr."""
    click.echo(clean(text), err=True)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """What the library warns of inside the block, as notes behind it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                note(f"warning: {warning.message}")


def error(failure: YardError) -> None:
    """An error and its hint, on stderr."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {clean(failure.message)}", err=True)
    for line in _detail_lines(failure.details):
        click.echo(f"  {clean(line)}", err=True)
    if failure.hint:
        click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {clean(failure.hint)}", err=True)


def _detail_lines(details: dict[str, Any]) -> Iterable[str]:
    reasons = details.get("reasons")
    if isinstance(reasons, list | tuple):
        yield from (str(reason) for reason in reasons)


def error_json(plain: dict[str, Any]) -> None:
    """An error as JSON, on stderr: `{"error": {"code", "message", "hint", "exit_code"}}`."""
    click.echo(json.dumps({"error": plain}, ensure_ascii=False, default=str), err=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under headers, columns as wide as their widest cell, never truncated; on stdout."""
    cells = [[clean(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(headers)]
    for index, row in enumerate([list(headers), *cells]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if index == 0 and sys.stdout.isatty() else line)


def human_bytes(size: int) -> str:
    """Bytes for people, in binary units.

    >>> human_bytes(3_812_608)
    '3.6 MiB'
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
