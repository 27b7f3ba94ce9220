"""A run in a process of its own that kills itself with SIGKILL: `crash_child.py BASE WORK WHERE`; no tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from modelyard.training import Example, Rows, TrainConfig, checkpoints, train

CONFIG = TrainConfig(
    rank=4,
    dropout=0.1,
    epochs=3,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=1e-2,
    save_every=2,
    threads=1,
)
"""Twelve rows: three steps an epoch, nine in all."""

ROWS = Rows(
    [
        Example(
            messages=[
                {"role": "user", "content": "what is the colour " + "of the sky " * (n % 4)},
                {"role": "assistant", "content": "the sky is blue " * (n % 3 + 1)},
            ],
            source=f"rows:{n}",
        )
        for n in range(12)
    ]
)


def die() -> None:
    """What power loss or the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(base: Path, work: Path, where: str) -> None:
    """Train, and die at step 5, or while the checkpoint of step 4 is being written."""

    def progress(entry: dict[str, Any]) -> None:
        if where == "step" and entry["step"] == 5:
            die()

    written = checkpoints.write_manifest

    def write_manifest(folder: Path, **facts: Any) -> None:
        if where == "checkpoint" and facts["step"] == 4:
            die()
        written(folder, **facts)

    checkpoints.write_manifest = write_manifest
    train(base, ROWS, CONFIG, work, progress=progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
