"""One call of `benchmarks/export.py` in a process of its own; the last line that it prints is JSON.

::

    python benchmarks/export_calls.py export FORMAT TYPE SOURCE TARGET --threads 2
    python benchmarks/export_calls.py speed KIND FOLDER --threads 2 --tokens 48
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = 32


def export_once(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an export, peak memory of the process that does it, bytes of the folder, and its largest relative difference."""
    from modelyard.weights.export import export

    began = time.perf_counter()
    made = export(given.source, given.target, given.format, type=given.type, tolerance=1e9, threads=given.threads)
    seconds = time.perf_counter() - began
    logits = [check for check in made.checks if check["name"].endswith("logits")]
    tokens = [check for check in made.checks if check["tokens"]]
    return {
        "seconds": seconds,
        "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "bytes": sum(path.stat().st_size for path in given.target.iterdir()),
        "difference": max(check["max_difference"] / check["scale"] for check in logits),
        "kl": max(check["kl"] for check in logits),
        "equal_tokens": sum(check["equal_tokens"] for check in tokens) / sum(check["tokens"] for check in tokens),
    }


def measure_speed(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one greedy token of one row behind a prompt, with a cache; and of reading the prompt. The best of three."""
    from modelyard.weights.parity import Batch

    runner = open_runner(given)
    random = np.random.default_rng(0)
    ids = random.integers(10, 1000, (1, PROMPT)).astype(np.int64)
    batch = Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)}, None, "prompt")
    runner.generate(batch, 4)
    first, whole = [], []
    for _ in range(3):
        first.append(timed(runner, batch, 1))
        whole.append(timed(runner, batch, given.tokens + 1))
    return {"prompt": min(first), "token": (min(whole) - min(first)) / given.tokens}


def timed(runner: Any, batch: Any, tokens: int) -> float:
    """Seconds that so many tokens take."""
    began = time.perf_counter()
    runner.generate(batch, tokens)
    return time.perf_counter() - began


def open_runner(given: argparse.Namespace) -> Any:
    """The model in torch (`float32`, `bfloat16`), or an export."""
    if given.kind not in {"float32", "bfloat16"}:
        from modelyard.weights.export import open_export

        return open_export(given.source, threads=given.threads)
    from modelyard.weights.load import load
    from modelyard.weights.parity import TorchRunner

    return TorchRunner(load(given.source, dtype=given.kind, threads=given.threads))


def main() -> None:
    """Do the call and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    calls = parser.add_subparsers(dest="call", required=True)
    exporting = calls.add_parser("export")
    exporting.add_argument("format")
    exporting.add_argument("type")
    exporting.add_argument("source", type=Path)
    exporting.add_argument("target", type=Path)
    speed = calls.add_parser("speed")
    speed.add_argument("kind")
    speed.add_argument("source", type=Path)
    speed.add_argument("--tokens", type=int, default=48)
    for each in (exporting, speed):
        each.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    found = export_once(given) if given.call == "export" else measure_speed(given)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
