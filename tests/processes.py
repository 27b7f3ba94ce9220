"""The `yard` command in processes of its own, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

YARD = [sys.executable, "-m", "modelyard.cli.main"]


@dataclass(frozen=True)
class Quickstart:
    """A finished `yard quickstart`: the yard's folder, what `--json` printed, and the environment it ran in."""

    home: Path
    result: dict[str, Any]
    environment: dict[str, str]

    def yard(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `yard` in a process of its own on this yard."""
        return subprocess.run(
            [*YARD, *arguments], env=self.environment, capture_output=True, text=True, check=False, **options
        )
