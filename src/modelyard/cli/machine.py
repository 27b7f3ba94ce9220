"""What `yard doctor` says about this machine and the yard. It looks and never changes anything.

Versions come from package metadata, so that nothing heavy is imported to print a number.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelyard.cli.output import human_bytes
from modelyard.errors import YardError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.settings import Settings
    from modelyard.weights.doctor import Finding

__all__ = ["examine"]

_PACKAGES = ("torch", "transformers", "peft", "trl", "safetensors", "huggingface_hub")
_LOW_SPACE = 5 << 30


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order a person would make them."""
    return [*_packages(), *_processor(), *_sqlite(), *_disk(settings.home), *_yard(settings), *_network(settings)]


def _finding(level: Literal["error", "warning", "info"], code: str, message: str, hint: str | None = None) -> Finding:
    from modelyard.weights.doctor import Finding

    return Finding(level, code, message, hint)


def _packages() -> Iterator[Finding]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield _finding("error", "package_missing", f"{name} is not installed", "pip install modelyard")
    yield _finding("info", "packages", f"Python {platform.python_version()}, " + ", ".join(found))


def _processor() -> Iterator[Finding]:
    flags = _cpu_flags()
    fast = sorted(flags & {"avx512_bf16", "amx_bf16"})
    yield _finding(
        "info",
        "processor",
        f"{os.cpu_count()} logical cores; bfloat16 in hardware: {', '.join(fast) if fast else 'no, float32 is used'}",
    )


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _sqlite() -> Iterator[Finding]:
    # The WAL-reset race (fixed in 3.51.3, and in 3.44.6 and 3.50.7) can lose commits; the catalog avoids WAL then.
    number = tuple(int(part) for part in sqlite3.sqlite_version.split("."))
    safe = (
        number >= (3, 51, 3)
        or (number[:2] == (3, 44) and number >= (3, 44, 6))
        or (number[:2] == (3, 50) and number >= (3, 50, 7))
    )
    mode = "" if safe else "; it has the WAL-reset race, so the catalog uses journal_mode=TRUNCATE"
    yield _finding("info", "sqlite", f"SQLite {sqlite3.sqlite_version}{mode}")


def _disk(home: Path) -> Iterator[Finding]:
    import shutil

    where = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(where).free
    low = free < _LOW_SPACE
    yield _finding(
        "warning" if low else "info",
        "free_space",
        f"{human_bytes(free)} free at {where}",
        "a fine-tune of a small model needs a few GiB" if low else None,
    )
    try:
        cost = _fsync_cost(where)
    except OSError as error:
        yield _finding(
            "error", "not_writable", f"{where} cannot be written: {error.strerror}", "choose another with --yard"
        )
        return
    slow = cost > 0.05
    yield _finding(
        "warning" if slow else "info",
        "fsync",
        f"a durable write takes {cost * 1000:.1f} ms",
        "commits will be slow: a network file system?" if slow else None,
    )


def _fsync_cost(folder: Path) -> float:
    """Median seconds of five small durable writes."""
    costs = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".yard-doctor-") as file:
        for _ in range(5):
            started = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            costs.append(time.perf_counter() - started)
    return statistics.median(costs)


def _yard(settings: Settings) -> Iterator[Finding]:
    from modelyard.app import open_yard

    if not (settings.home / "format").is_file():
        yield _finding("warning", "no_yard", f"no yard at {settings.home}", "make one with `yard init`")
        return
    try:
        yard = open_yard(settings)
    except YardError as error:
        yield _finding("error", error.code, error.message, error.hint)
        return
    repos = yard.repos()
    yield _finding(
        "info", "yard", f"yard at {settings.home}: {len(repos)} repos, {sum(r.versions for r in repos)} versions"
    )


def _network(settings: Settings) -> Iterator[Finding]:
    yield _finding(
        "info",
        "offline",
        "hubs are not asked (HF_HUB_OFFLINE)" if settings.offline else "hubs are asked only for hf:// ids",
    )
