"""What does it cost to load a model from a yard, every byte hashed, next to `from_pretrained` on a plain folder?

A Llama-like model in bfloat16 is made on the spot, written to a folder and committed to a yard. Then processes take turns,
one kind after the other, on a warm page cache; medians count::

    python benchmarks/load.py             # some minutes, 2 GB of disk for a while
    python benchmarks/load.py --quick     # a small model and one round: that it works
    python benchmarks/load.py --json

Both sides give the model and its tokenizer. Four clocks are read:

- the process: from its start, imports and all, until the model is there. It is what a person waits for, and has the targets;
- the processor's seconds in the same time, all threads together: on a machine that others use as well, they stay nearly the
  same, but hashing counts in full, although it has a core of its own;
- the call until the first token, libraries imported before: `from_pretrained` maps the file and reads nothing of it, so
  that its bytes come from the disk's cache only when the first token is computed;
- the call alone. Its ratio says how much longer hashing takes than mapping, and grows with the size of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import Figure, machine, report

CALLS = str(Path(__file__).with_name("load_calls.py"))
KINDS = ("plain", "yard", "trusted")
TARGETS = {"yard": 1.2, "trusted": 1.05}


def make_model(folder: Path, *, quick: bool) -> int:
    """Write the model and a tokenizer; returns the bytes of its weights."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    size: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 5, "vocab_size": 32000}
    if quick:
        size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1000}
    config = transformers.LlamaConfig(**size, num_attention_heads=16, num_key_value_heads=16, torch_dtype="bfloat16")
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    # Rotary frequencies are no weights: they come back when the class is built again.
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float32).mul_(0.02).to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    size_of_weights = sum(tensor.nbytes for tensor in state.values())
    model.save_pretrained(folder, state_dict=state)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["one two three"], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return size_of_weights


def load(kind: str, where: Path, *, ready: bool) -> dict[str, Any]:
    """One load in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, CALLS, kind, str(where), "ready" if ready else "cold"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, yard: Path, rounds: int, *, warm: bool = True) -> dict[str, dict[str, list[float]]]:
    """Seconds of every load, by kind and clock; the kinds take turns."""
    times: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    tokens = set()
    for number in range(0 if warm else 1, rounds + 1):
        for kind in KINDS:
            where = folder if kind == "plain" else yard
            cold, ready = load(kind, where, ready=False), load(kind, where, ready=True)
            tokens |= {cold["token"], ready["token"]}
            clocks = {
                "process": cold["loaded"],
                "total": cold["total"],
                "first_token": ready["first_token"],
                "call": ready["seconds"],
                "processor": ready["processor"],
                "memory": ready["memory"],
            }
            if number:  # the first round warms the page cache, and the yard lays out its links
                for clock, value in clocks.items():
                    times[kind].setdefault(clock, []).append(value)
    if len(tokens) != 1:
        raise SystemExit(f"the kinds computed different tokens: {tokens}")
    return times


def judge(times: dict[str, dict[str, list[float]]]) -> list[Figure]:
    """Medians beside the peer's, and the median of the ratios of loads that stood side by side."""
    figures = []
    for kind, target in TARGETS.items():
        what = "every byte hashed" if kind == "yard" else "verified by this boot"
        for clock, words in (
            ("process", "process until loaded"),
            ("total", "processor until loaded"),
            ("first_token", "call until the first token"),
            ("call", "call"),
        ):
            ours, peer = times[kind][clock], times["plain"][clock]
            ratio = statistics.median(mine / other for mine, other in zip(ours, peer, strict=True))
            judged = clock == "process"
            figures.append(
                Figure(
                    f"{kind}: {words}, {what}",
                    statistics.median(ours),
                    "s",
                    f"<= {target} of the peer" if judged else "none: the clock above has the target",
                    ratio <= target if judged else True,
                    "from_pretrained on a plain folder",
                    statistics.median(peer),
                    ratio,
                )
            )
    return figures


def main() -> None:
    """Make the model, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one round")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=7, help="loads of each kind (default 7)")
    parser.add_argument("--folder", type=Path, help="work below this folder instead of the temporary one")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="modelyard-load-", dir=given.folder))
    try:
        size = make_model(folder / "plain", quick=given.quick)
        import modelyard

        modelyard.open(folder / "yard", create=True).commit(folder / "plain", to="bench/model", kind="base")
        times = measure(folder / "plain", folder / "yard", 1 if given.quick else given.rounds, warm=not given.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    notes = {"model": f"{size / 1e6:.0f} MB of bfloat16", "rounds": len(times["plain"]["call"])}
    for kind in KINDS:
        middle = {clock: statistics.median(times[kind][clock]) for clock in ("processor", "memory")}
        notes[kind] = f"{middle['processor']:.2f} s of processor in the call, {middle['memory']:.0f} MB at most"
    where = machine("torch", "transformers", "safetensors", "blake3")
    report(where, judge(times), quick=given.quick, as_json=given.json, notes=notes)


if __name__ == "__main__":
    main()
