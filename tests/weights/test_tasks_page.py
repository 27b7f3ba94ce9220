"""docs/reference/tasks.md is what really happens: each task is run again and its lines are found in the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.weights.tasks import TASKS
from task_models.matrix import PAGE, STEPS, Row, lines, render, run_row

STALE = "docs/reference/tasks.md is stale: run `python scripts/tasks_page.py`"


@pytest.mark.parametrize("task", list(TASKS))
def test_the_page_says_what_happens(task: str, tmp_path: Path) -> None:
    """The task, loaded, predicted, saved and reloaded now, gives the lines that the page has for it."""
    page = PAGE.read_text("utf-8").splitlines()
    for line in lines(run_row(task, tmp_path)):
        assert line in page, STALE


def test_the_page_has_every_task_once_and_in_order() -> None:
    """The page is its two headings and two lines for each task of transformers' tables: none is missing, none is left over."""
    page = PAGE.read_text("utf-8")
    found = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert found == [*TASKS, *TASKS], STALE
    empty = render([Row(task, "", ("",) * len(STEPS)) for task in TASKS])

    def prose(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("| `")]

    assert prose(page) == prose(empty), STALE


def test_what_does_not_work_has_a_reason() -> None:
    """A step that the page does not call `yes` stands with words that say why, and only later steps are empty."""
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")][: len(TASKS)]
    works = 0
    for row in rows:
        steps = [cell.strip() for cell in row.strip("|").split("|")][-len(STEPS) :]
        first = next((at for at, step in enumerate(steps) if step != "yes"), len(STEPS))
        works += first == len(STEPS)
        assert first == len(STEPS) or len(steps[first].split()) > 3
        assert steps[first + 1 :] == [""] * len(steps[first + 1 :])
    assert works >= 50
