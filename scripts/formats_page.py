"""Write `docs/reference/formats.md` by merging every kind of adapter; `tests/weights/merge/test_formats_page.py` does so again.

::

    python scripts/formats_page.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run every kind in a folder of its own and write the page."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    from adapter_kinds import KINDS
    from formats_matrix import PAGE, render, run_kind

    torch.set_num_threads(1)
    rows = []
    for kind in KINDS.values():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run_kind(kind, Path(folder)))
    PAGE.write_text(render(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
