"""What the benchmarks of this project share: figures with targets, the machine, and calls in processes of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Call", "Figure", "call", "machine", "report"]

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Figure:
    """One measured figure; `holds` says whether it meets its target."""

    name: str
    value: float
    unit: str
    target: str
    holds: bool
    peer: str = ""
    peer_value: float = 0.0
    ratio: float = 0.0


@dataclass(frozen=True)
class Call:
    """One call in a process of its own: seconds of the call alone on the clock and of the processor, and its peak memory in MB.

    On a machine that others use as well, the clock says what was left of it; the processor's seconds stay nearly the same.
    """

    seconds: float
    processor: float
    memory: float
    size: int = 0


def call(command: list[str], **environment: str) -> Call:
    """Run a process whose last line of output is a `Call` as JSON."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return Call(**json.loads(done.stdout.splitlines()[-1]))


def machine(*packages: str) -> dict[str, Any]:
    """Where this runs, and on which commit."""
    cpu = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), platform.processor())
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def report(where: dict[str, Any], figures: list[Figure], *, quick: bool, as_json: bool, notes: dict[str, Any]) -> None:
    """Print everything, as JSON or for people."""
    if as_json:
        plain = [{key: _short(value) for key, value in asdict(figure).items()} for figure in figures]
        sys.stdout.write(
            json.dumps({"machine": where, "quick": quick, "notes": notes, "figures": plain}, indent=2) + "\n"
        )
        return
    lines = [", ".join(f"{key} {value}" for key, value in where.items())]
    lines += [f"{key}: {value}" for key, value in notes.items()]
    for figure in figures:
        peer = f", beside {_short(figure.peer_value)} {figure.unit} ({figure.peer}), ratio {_short(figure.ratio)}"
        held = "holds" if figure.holds else "MISSED"
        held = "no verdict" if figure.target.startswith("none") else held
        shown = f"{figure.name}: {_short(figure.value)} {figure.unit}{peer if figure.peer else ''}"
        lines.append(f"{shown}; {figure.target}: {held}")
    sys.stdout.write("\n".join(lines) + "\n")


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
