"""Write `docs/reference/tasks.md` by running every task; `tests/weights/test_tasks_page.py` runs each again and compares.

::

    python scripts/tasks_page.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run every task in a folder of its own and write the page."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.path.insert(0, str(ROOT / "tests"))
    from modelyard.weights.tasks import TASKS
    from task_models.matrix import PAGE, render, run_row

    rows = []
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run_row(task, Path(folder)))
    PAGE.write_text(render(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
