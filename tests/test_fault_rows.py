"""Every fault that the design lists has a test that says so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_row_has_a_test() -> None:
    """Each row of docs/design/faults.md is named by the `row` mark of some test, and no mark names a row that is not there."""
    rows = {
        int(number)
        for number in re.findall(r"^\| (\d+) \|", (ROOT / "docs/design/faults.md").read_text(), re.MULTILINE)
    }
    marked: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for numbers in re.findall(r"mark\.row\(([\d, ]+)\)", path.read_text()):
            marked |= {int(number) for number in numbers.split(",")}
    assert rows == set(range(1, 54))
    assert marked == rows, f"no test for {sorted(rows - marked)}; no row for {sorted(marked - rows)}"
