"""What does int4 or int8 cost and give on a CPU: tokens a second and perplexity against bfloat16, for every method there is?

Each method is measured in a process of its own, on two models in bfloat16::

    python benchmarks/quantize.py             # some minutes
    python benchmarks/quantize.py --quick     # three methods on the small model: that it works
    python benchmarks/quantize.py --json

- *trained*: the base that this package ships, trained here (1.9 million parameters, 9.9 million tokens). Perplexity is of 400
  documents of the generator that it learned from, of a seed that it never saw.
- *135M*: a Llama of the shape of SmolLM-135M with random weights, large enough that the time goes into the weights. Tokens a second
  are of greedy decoding of one row behind 32 tokens, with a cache; reading is of a prompt of 128 tokens.

A method is not offered where another one is faster, predicts no worse, and takes no more memory: the verdicts follow from the table,
and the script fails where `modelyard.weights.quantize.METHODS` offers something else. Methods that have a form on disk (`folder`) are
judged among one another; those that quantize while loading (`load`) among all. A difference of 3 % of the time or of the memory is
none, nor is one of the loss below twice its standard error over the documents, each of which every method reads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import Figure, machine, report

CALLS = str(Path(__file__).with_name("quantize_calls.py"))
FOLDER = ("torchao-int8", "bnb-4bit", "bnb-8bit", "torchao-int8-activations", "torchao-int4-grouped")
"""Methods whose weights transformers writes and reads."""
LOAD = ("int8-dynamic", "torchao-int4")
"""Methods that quantize while loading only."""
QUICK = ("bfloat16", "torchao-int8", "bnb-4bit")
SAME = 0.97


def make_large(folder: Path) -> None:
    """Write the 135M shape with random weights in bfloat16."""
    import torch
    import transformers

    config: Any = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def measure(kind: str, folder: Path, threads: int, *, tokens: int, documents: int = 0) -> dict[str, Any]:
    """One method in a fresh process."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, CALLS, kind, str(folder), "--threads", str(threads)]
    command += ["--tokens", str(tokens), "--documents", str(documents)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def perplexity(row: dict[str, Any]) -> float:
    """Of all documents together."""
    return math.exp(sum(row["losses"]) / sum(row["tokens"]))


def is_worse(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a method predicts the documents worse than another, by more than chance would have it."""
    differences = [mine - its for mine, its in zip(row["losses"], other["losses"], strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return bool(statistics.mean(differences) > 2 * error)


def find_better(kind: str, table: dict[str, dict[str, Any]]) -> str | None:
    """A method that is faster, no worse and no larger, among those that could be taken instead; None where there is none."""
    row = table[kind]
    rivals = [other for other in table if other not in {kind, "bfloat16"} and (kind in LOAD or other in FOLDER)]
    for other in sorted(rivals, key=lambda each: table[each]["token"]):
        rival = table[other]
        faster, larger = rival["token"] < SAME * row["token"], SAME * rival["bytes"] > row["bytes"]
        if faster and not larger and not is_worse(rival, row):
            return other
    return None


def judge(table: dict[str, dict[str, Any]], offered: set[str]) -> list[Figure]:
    """Tokens a second and perplexity of every method beside bfloat16, and whether what is offered follows from them."""
    base, figures = table["bfloat16"], []
    for kind, row in table.items():
        if kind == "bfloat16":
            continue
        better = find_better(kind, table)
        kept = kind in offered or kind in LOAD
        where = "folder" if kind in FOLDER else "load"
        verdict = f"not offered: {better} is faster, no worse and no larger" if better else "offered"
        speed, plain = 1 / row["token"], 1 / base["token"]
        figures.append(
            Figure(
                f"{kind} ({where}): tokens a second", speed, "1/s", verdict, (better is None) == kept,
                "bfloat16", plain, speed / plain,
            )
        )  # fmt: skip
        figures.append(
            Figure(
                f"{kind} ({where}): perplexity", perplexity(row), "", "none: the row above is judged", True,
                "bfloat16", perplexity(base), perplexity(row) / perplexity(base),
            )
        )  # fmt: skip
    return figures


def shorten(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its documents: seconds, bytes, and the perplexity."""
    plain = {key: value for key, value in row.items() if key not in {"losses", "tokens"}}
    return plain | {"perplexity": round(perplexity(row), 4), "tokens": sum(row["tokens"])}


def main() -> None:
    """Measure, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three methods on the small model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    parser.add_argument("--folder", type=Path, help="work below this folder instead of the temporary one")
    given = parser.parse_args()
    import modelyard
    from modelyard.weights.quantize import METHODS

    trained = Path(modelyard.__file__).parent / "quickstart" / "base"
    folder = Path(tempfile.mkdtemp(prefix="modelyard-quantize-", dir=given.folder))
    table: dict[str, dict[str, Any]] = {}
    try:
        if not given.quick:
            make_large(folder / "large")
        for kind in QUICK if given.quick else ("bfloat16", *FOLDER, *LOAD):
            tokens, documents = (16, 20) if given.quick else (64, 400)
            small = measure(kind, trained, given.threads, tokens=tokens, documents=documents)
            large = small if given.quick else measure(kind, folder / "large", given.threads, tokens=48)
            table[kind] = large | {key: small[key] for key in ("losses", "tokens")} | {"token_small": small["token"]}
            sys.stderr.write(f"{kind}: {json.dumps(shorten(table[kind]))}\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = judge(table, set(METHODS))
    if given.quick:  # so small a model says nothing about speed
        figures = [replace(figure, target="none: quick", holds=True) for figure in figures]
    notes: dict[str, Any] = {"threads": given.threads}
    notes |= {kind: shorten(row) for kind, row in table.items()}
    where = machine("torch", "transformers", "torchao", "bitsandbytes")
    report(where, figures, quick=given.quick, as_json=given.json, notes=notes)
    if not all(figure.holds for figure in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
