"""The machine: what its processor is good at, and how much memory and disk there is now.

Knows nothing of models. Reads the operating system's counters; never the environment.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Literal

__all__ = ["Arithmetic", "available_memory", "choose_dtype", "choose_threads", "free_disk", "has_fast_bfloat16"]

Arithmetic = Literal["float32", "bfloat16"]

_SMALL = 50_000_000
"""Below this many parameters a step is spent in dispatch, not in arithmetic, and bfloat16 gains nothing."""

_CGROUP = Path("/sys/fs/cgroup")


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX-512 BF16 or AMX); without, it is many times slower."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_dtype(asked: str, parameters: int) -> Arithmetic:
    """The dtype to compute in: as asked, or, for `auto`, bfloat16 where it is faster and float32 elsewhere."""
    if asked == "auto":
        return "bfloat16" if parameters >= _SMALL and has_fast_bfloat16() else "float32"
    return "bfloat16" if asked == "bfloat16" else "float32"


def choose_threads(asked: int | None, hidden: int, tokens: int) -> int:
    """How many compute threads are fastest now, by trying.

    On a busy machine all cores can be many times slower than one, since every kernel waits for its slowest thread.
    Takes some 50 ms and leaves torch's thread count as it was.

    Args:
        asked: A count to be used as it is; None to measure.
        hidden: Width of the model; with `tokens`, the size of the matrices that are tried.
        tokens: Tokens in a batch.
    """
    import torch

    if asked is not None:
        return asked
    before = torch.get_num_threads()
    if before == 1:
        return 1
    left, right = torch.ones(min(max(tokens, 64), 2048), hidden), torch.ones(hidden, hidden * 2)
    medians: dict[int, float] = {}
    try:
        for threads in sorted({1, max(1, before // 2), before}):
            torch.set_num_threads(threads)
            seconds = []
            for _ in range(9):
                start = time.perf_counter()
                torch.nn.functional.silu(left @ right).sum()
                seconds.append(time.perf_counter() - start)
            medians[threads] = statistics.median(seconds)
    finally:
        torch.set_num_threads(before)
    # One thread leaves the others their cores; more must be clearly worth it.
    return min(medians, key=lambda threads: medians[threads] * (1.0 if threads == 1 else 1.1))


def available_memory() -> int:
    """Bytes that a process may still take: free on the machine, and under the control group's limit."""
    import psutil  # type: ignore[import-untyped]  # publishes no types

    available = int(psutil.virtual_memory().available)
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text("ascii").strip()
        if text.isdecimal():
            available = min(available, max(0, int(text) - int(used.read_text("ascii"))))
    return available


def free_disk(folder: Path) -> int | None:
    """Bytes free where `folder` is or will be; None when that cannot be told."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    return None
