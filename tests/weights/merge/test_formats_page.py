"""docs/reference/formats.md is what really happens: each kind of adapter is attached and merged again, and its line is in the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapter_kinds import KINDS
from formats_matrix import EXPORTS, PAGE, STEPS, Row, line, render, run_kind

STALE = "docs/reference/formats.md is stale: run `python scripts/formats_page.py`"


@pytest.mark.parametrize("name", list(KINDS))
def test_the_page_says_what_happens(name: str, tmp_path: Path) -> None:
    """The kind, attached and merged both ways now, gives the line that the page has for it."""
    assert line(run_kind(KINDS[name], tmp_path)) in PAGE.read_text("utf-8").splitlines(), STALE


def test_the_page_has_every_kind_once_and_in_order() -> None:
    """The page is its prose, one line for each kind, and the recorded exports: none is missing, none is left over."""
    empty = [Row(kind.name, kind.group, ("",) * len(STEPS)) for kind in KINDS.values()]
    names = [row.split("`")[1] for row in PAGE.read_text("utf-8").splitlines() if row.startswith("| ") and "` |" in row]
    assert names[: len(KINDS)] == list(KINDS), STALE

    def prose(text: str) -> list[str]:
        kinds = tuple(f"| {row.group} | `{row.kind}` |" for row in empty)
        return [each for each in text.splitlines() if not each.startswith(kinds)]

    assert prose(PAGE.read_text("utf-8")) == prose(render(empty, json.loads(EXPORTS.read_text("utf-8")))), STALE


def test_most_kinds_work_both_ways() -> None:
    """What is not `yes` is the exception, and says why in words."""
    rows = [row.strip("|").split(" | ") for row in PAGE.read_text("utf-8").splitlines() if "` |" in row][: len(KINDS)]
    cells = [cell.strip() for row in rows for cell in row[-len(STEPS) :]]
    assert all(cell == "yes" or len(cell.split()) > 3 for cell in cells)
    assert sum(cell == "yes" for cell in cells) > len(cells) * 0.6
