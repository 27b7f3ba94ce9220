"""How much memory the device has, now and in all. Reads the system's counters; never the environment."""

from __future__ import annotations

from pathlib import Path

from modelyard.weights.estimate.workload import Machine

__all__ = ["HEAP_BLOCK", "KEPT", "OVERHEAD", "find_machine"]

OVERHEAD = {"cpu": 430 << 20, "cuda": 600 << 20}
"""Bytes before any model. cpu: what a process holds with torch 2.13, transformers 5.23 and PEFT imported (400 to 460 MiB
measured, `benchmarks/estimate.py`). cuda: the device's context and the matrix libraries' workspace."""

HEAP_BLOCK = 32 << 20
"""Bytes from which on glibc takes a block from the system and gives it back when it is freed. Smaller ones come from its heap,
once some of them were freed: there, what is freed between two blocks that live stays."""

KEPT = 0.6
"""How much of a step's blocks below `HEAP_BLOCK` a CPU process holds besides, freed and kept by the C library: 0.3 to 0.8 of
them in `benchmarks/estimate.py`, by model and mode. It depends on the order of sizes; no run tells it beforehand."""

_CGROUP = Path("/sys/fs/cgroup")


def find_machine(device: str) -> Machine | None:
    """The memory of `device`; None where it cannot be asked for (no such device here).

    For a CPU what a process may still take: what the system has available, within the control group's limit.
    """
    if device == "cpu":
        return _host()
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return Machine(device, int(total), int(free))


def _host() -> Machine:
    import psutil  # type: ignore[import-untyped]  # publishes no types

    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file():
        said = limit.read_text("ascii").strip()
        if said != "max":
            total = min(total, int(said))
            available = min(available, max(int(said) - int(used.read_text("ascii")), 0))
    return Machine("cpu", total, available)
