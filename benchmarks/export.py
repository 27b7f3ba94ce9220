"""What does an export cost and give on a CPU: seconds and memory to make it, its size, how exact it is, and tokens a second beside torch?

Each export is made in a fresh process and run in another, on two models::

    python benchmarks/export.py            # both models; about 20 minutes and 8 GB of memory
    python benchmarks/export.py --small    # the trained model only; about 3 minutes
    python benchmarks/export.py --quick    # two targets on the trained model: that it works
    python benchmarks/export.py --json

- *trained*: the base that this package ships, trained here (1.9 million parameters).
- *135M*: a Llama of the shape of SmolLM-135M with random weights, bfloat16, large enough that the time goes into the weights. What rounding to
  4 and 8 bits does is exaggerated by random weights: the trained model's differences are the ones to read.

Tokens a second are of greedy decoding of one row behind 32 tokens, with a cache, by the runners of `weights.export`; torch is transformers' own `generate`.
Memory is the largest resident set of the process that makes the graph, its libraries included. Differences are relative to the largest logit in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import Figure, machine, report
from quantize import make_large

CALLS = str(Path(__file__).with_name("export_calls.py"))
TARGETS = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("genai", "fp32"),
    ("genai", "int8"),
    ("genai", "int4"),
)
QUICK = (("openvino", "fp32"), ("genai", "int8"))
TORCH = ("float32", "bfloat16")
EXACT = 1e-4


def call(*words: str, threads: int) -> dict[str, Any]:
    """One call in a fresh process."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, CALLS, *words, "--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    name: str, source: Path, folder: Path, targets: tuple[tuple[str, str], ...], given: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Every target and torch on one model."""
    tokens = "16" if given.quick else "64" if name == "trained" else "32"
    rows: dict[str, dict[str, Any]] = {}
    for kind in TORCH:
        rows[f"torch {kind}"] = call("speed", kind, str(source), "--tokens", tokens, threads=given.threads)
    for target, number in targets:
        out = folder / f"{name}-{target}-{number}"
        row = call("export", target, number, str(source), str(out), threads=given.threads)
        rows[f"{target} {number}"] = row | call("speed", target, str(out), "--tokens", tokens, threads=given.threads)
        shutil.rmtree(out)
        sys.stderr.write(f"{name}: {target} {number}: {json.dumps(rows[f'{target} {number}'])}\n")
    return rows


def judge(name: str, rows: dict[str, dict[str, Any]], *, quick: bool) -> list[Figure]:
    """Exactness of what is in float32, and tokens a second beside torch."""
    figures = []
    plain = 1 / rows["torch float32"]["token"]
    for kind, row in rows.items():
        if "difference" in row:
            held = kind.endswith("fp32")
            target = f"at most {EXACT:g}" if held else "none: rounded weights"
            holds = not held or row["difference"] <= EXACT
            figures.append(Figure(f"{name}, {kind}: largest difference", row["difference"], "", target, holds))
            figures.append(Figure(f"{name}, {kind}: export", row["seconds"], "s", "none: a cost", True))
            figures.append(Figure(f"{name}, {kind}: peak memory", row["memory"] / 1e6, "MB", "none: a cost", True))
        if kind != "torch float32":
            speed = 1 / row["token"]
            target = "none: quick" if quick else "none: the reader's choice"
            figures.append(
                Figure(
                    f"{name}, {kind}: tokens a second",
                    speed,
                    "1/s",
                    target,
                    True,
                    "torch float32",
                    plain,
                    speed / plain,
                )
            )
    return figures


def main() -> None:
    """Measure, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two targets on the trained model")
    parser.add_argument("--small", action="store_true", help="the trained model only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    parser.add_argument("--folder", type=Path, help="work below this folder instead of the temporary one")
    given = parser.parse_args()
    import modelyard

    trained = Path(modelyard.__file__).parent / "quickstart" / "base"
    folder = Path(tempfile.mkdtemp(prefix="modelyard-export-", dir=given.folder))
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        tables["trained"] = measure("trained", trained, folder, QUICK if given.quick else TARGETS, given)
        if not given.quick and not given.small:
            large = folder / "large"
            make_large(large)
            for path in trained.glob("tokenizer*"):
                shutil.copy(path, large)
            tables["135M"] = measure("135M", large, folder, TARGETS, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = [each for name, rows in tables.items() for each in judge(name, rows, quick=given.quick)]
    where = machine("torch", "transformers", "onnxruntime", "openvino", "onnxruntime-genai")
    notes = {"threads": given.threads} | tables
    report(where, figures, quick=given.quick, as_json=given.json, notes=notes)
    if not all(figure.holds for figure in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
