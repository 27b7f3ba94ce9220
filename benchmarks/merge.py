"""How fast, and in how much memory, is a rank-16 LoRA of all linear layers merged into a bf16 Llama and saved, next to PEFT?

Each side runs in a fresh process, imports included, on the same random model, from the same folder to a new one::

    python benchmarks/merge.py            # bases of 0.3B, 1.1B and 3B parameters; some minutes, 18 GB of disk
    python benchmarks/merge.py --quick    # tiny bases: that it works, not how fast it is
    python benchmarks/merge.py --only exact | memory | peft | digests
    python benchmarks/merge.py --json

PEFT: `AutoModelForCausalLM.from_pretrained`, `PeftModel.from_pretrained`, `merge_and_unload`, `save_pretrained`. Ours makes its files durable before it ends,
PEFT does not. Memory is anonymous memory (`RssAnon`, sampled every 5 ms from outside): what a process has of its own, without pages of files. The
digests are of whole merged files: threads, block sizes, vector instructions and dtypes of the base are varied.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import Figure, machine, report

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = """
import sys
from pathlib import Path
from modelyard.weights import FolderFiles
from modelyard.weights.merge import merge
base, adapter, out = map(Path, sys.argv[1:4])
options = dict(zip(("mode", "threads", "block_elements"), sys.argv[4:]))
merge(FolderFiles(base), FolderFiles(adapter), out, check=False, **{
    key: value if key == "mode" else int(value) for key, value in options.items()
})
"""
PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
PEER = "PEFT load + merge_and_unload + save_pretrained"
DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    layers: int
    hidden: int = 2048
    inner: int = 5632
    key_value: int = 256
    vocabulary: int = 32000
    rank: int = 16

    def modules(self) -> dict[str, tuple[int, int]]:
        """Each linear layer of a block: name to (out, in)."""
        h, f, kv = self.hidden, self.inner, self.key_value
        attention = {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}
        mlp = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
        return {f"self_attn.{name}": size for name, size in attention.items()} | {
            f"mlp.{name}": size for name, size in mlp.items()
        }

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.key_value // 64,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True)
class Cost:
    """One process: seconds on the clock and of the processor, and the most memory that it had, anonymous and in all, in MB."""

    seconds: float
    processor: float
    anonymous: float
    resident: float


SMALL = Shape(layers=24, hidden=1024, inner=2816)
FULL = Shape(layers=22)
LARGE = Shape(layers=28, hidden=3072, inner=8192, key_value=1024)
TINY = [Shape(layers=layers, hidden=256, inner=704, key_value=64, vocabulary=1000) for layers in (2, 4, 8)]
DIGESTED = Shape(layers=1, hidden=512, inner=1408, key_value=128, vocabulary=1000)


def write_inputs(folder: Path, shape: Shape, dtype: str = "BF16") -> Path:
    """Write a random base and adapter, tensor by tensor."""
    import numpy as np

    from modelyard.weights.shards import ShardWriter, TensorSpec

    pool = np.random.default_rng(0).normal(0, 0.02, 1 << 23).astype(np.float32)
    base = [
        TensorSpec(f"{name}.weight", dtype, (shape.vocabulary, shape.hidden))
        for name in ("model.embed_tokens", "lm_head")
    ]
    base.append(TensorSpec("model.norm.weight", dtype, (shape.hidden,)))
    adapter = []
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in shape.modules().items():
            base.append(TensorSpec(f"{prefix}{name}.weight", dtype, (rows, columns)))
            module = f"base_model.model.{prefix}{name}"
            adapter.append(TensorSpec(f"{module}.lora_A.weight", "F32", (shape.rank, columns)))
            adapter.append(TensorSpec(f"{module}.lora_B.weight", "F32", (rows, shape.rank)))
        norms = (f"{prefix}{name}.weight" for name in ("input_layernorm", "post_attention_layernorm"))
        base += [TensorSpec(name, dtype, (shape.hidden,)) for name in norms]
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "target_modules": [name.rpartition(".")[2] for name in shape.modules()],
    }
    for name, specs, stem, config in (
        ("base", base, "model", shape.config()),
        ("adapter", adapter, "adapter_model", lora),
    ):
        (folder / name).mkdir(parents=True)
        with ShardWriter(folder / name / f"{stem}.safetensors", specs) as writer:
            for number, spec in enumerate(specs):
                for part in _random_bytes(pool, spec.dtype, spec.size, number):
                    writer.write(part)
        kind = "config.json" if name == "base" else "adapter_config.json"
        (folder / name / kind).write_text(json.dumps(config))
    return folder


def _random_bytes(pool: Any, dtype: str, size: int, number: int) -> Iterator[bytes]:
    """`size` bytes of numbers out of the pool, from another place for each tensor."""
    import numpy as np

    raw = {"F32": pool, "F16": pool.astype(np.float16), "BF16": (pool.view("<u4") >> 16).astype("<u2")}[dtype].view(
        np.uint8
    )
    start = number * 100_003 * 4 % raw.size
    while size:
        part = raw[start : start + size]
        yield part.tobytes()
        size, start = size - part.size, 0


def run(code: str, folder: Path, out: str, *options: str, **environment: str) -> Cost:
    """Run one side in a fresh process, and measure it from outside."""
    shutil.rmtree(folder / out, ignore_errors=True)
    command = [sys.executable, "-c", code, *(str(folder / name) for name in ("base", "adapter", out)), *options]
    start, before = time.perf_counter(), os.times()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment, stdout=subprocess.DEVNULL, stderr=said
        )
        peaks = _watch(child)
        if child.wait():
            said.seek(0)
            raise SystemExit(said.read().decode()[-4000:])
    seconds, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(seconds, used, peaks["RssAnon"] * 1024 / 1e6, peaks["VmHWM"] * 1024 / 1e6)


def _watch(child: subprocess.Popen[bytes]) -> dict[str, int]:
    """The largest values of the process's memory until it ended, in kB."""
    peaks = {"RssAnon": 0, "VmHWM": 0}

    def sample() -> None:
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            try:
                lines = status.read_text("ascii", "replace").splitlines()
            except OSError:
                break
            for line in lines:
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]))
            time.sleep(0.005)

    thread = threading.Thread(target=sample)
    thread.start()
    thread.join()
    return peaks


def best(code: str, folder: Path, out: str, repeat: int, *options: str) -> Cost:
    """The fastest of several runs; the last one's output stays."""
    return min((run(code, folder, out, *options) for _ in range(repeat)), key=lambda cost: cost.seconds)


def differing(folder: Path, one: str, other: str) -> tuple[int, int]:
    """In how many elements of how many two merged models differ."""
    import torch
    from safetensors import safe_open

    different = total = 0
    with (
        safe_open(folder / one / "model.safetensors", "pt") as ours,
        safe_open(folder / other / "model.safetensors", "pt") as theirs,
    ):
        for name in ours.keys():  # noqa: SIM118  # not a dict
            tensor = ours.get_tensor(name)
            different += int(torch.count_nonzero(tensor.view(torch.int16) != theirs.get_tensor(name).view(torch.int16)))
            total += tensor.numel()
    return different, total


def measure_speed(scratch: Path, shape: Shape, repeat: int, *, peft_mode: bool) -> list[Figure]:
    """Exact merges, and mode `peft`, beside PEFT on one shape."""
    folder = write_inputs(scratch / "whole", shape)
    ours, theirs = best(OURS, folder, "ours", repeat, "exact"), best(PEFT, folder, "peft", repeat)
    faster, memory = theirs.seconds / ours.seconds, ours.anonymous / theirs.anonymous
    different, total = differing(folder, "ours", "peft")
    made = [
        Figure("merge exact", ours.seconds, "s", ">= 6x faster", faster >= 6, PEER, theirs.seconds, faster),
        Figure("merge exact, processor", ours.processor, "s", "none: reported", True, PEER, theirs.processor, theirs.processor / ours.processor),
        Figure("merge exact, anonymous memory", ours.anonymous, "MB", "<= 1/4", memory <= 0.25, PEER, theirs.anonymous, memory),
        Figure("merge exact, resident memory", ours.resident, "MB", "none: reported", True, PEER, theirs.resident, ours.resident / theirs.resident),
        Figure("exact: elements that differ from PEFT's", 100 * different / total, "%", "none: sums in another order", True),
    ]  # fmt: skip
    if peft_mode:
        shutil.rmtree(folder / "ours")
        same = best(OURS, folder, "ours", repeat, "peft")
        faster, (different, total) = theirs.seconds / same.seconds, differing(folder, "ours", "peft")
        made += [
            Figure("merge peft", same.seconds, "s", ">= 2x faster", faster >= 2, PEER, theirs.seconds, faster),
            Figure("merge peft, processor", same.processor, "s", "none: reported", True, PEER, theirs.processor, theirs.processor / same.processor),
            Figure("merge peft, anonymous memory", same.anonymous, "MB", "none: reported", True, PEER, theirs.anonymous, same.anonymous / theirs.anonymous),
            Figure("peft: elements that differ from PEFT's", different, f"of {total}", "0", different == 0),
        ]  # fmt: skip
    shutil.rmtree(folder)
    return made


def measure_memory(scratch: Path, shapes: list[Shape]) -> list[Figure]:
    """Whether anonymous memory stays the same from the smallest to the largest model."""
    costs = []
    for number, shape in enumerate(shapes):
        folder = write_inputs(scratch / f"memory-{number}", shape)
        costs.append(run(OURS, folder, "ours", "exact"))
        shutil.rmtree(folder)
    least, most = (pick(cost.anonymous for cost in costs) for pick in (min, max))
    shown = ", ".join(f"{cost.anonymous:.0f}" for cost in costs)
    growth = most / least
    return [
        Figure("merge exact, memory from 0.3B to 3B", most, "MB", "the same but for wider layers' factors: <= 1.2x", growth <= 1.2, f"smallest of {shown}", least, growth)
    ]  # fmt: skip


def measure_digests(scratch: Path) -> list[Figure]:
    """How many digests the merged files have when nothing that may vary shows: one for each dtype of the base."""
    made = []
    plain: dict[str, str] = {}
    slow = {"NPY_DISABLE_CPU_FEATURES": _extensions(), "ATEN_CPU_CAPABILITY": "default"}
    for dtype in DTYPES:
        folder = write_inputs(scratch / f"digests-{dtype}", DIGESTED, dtype)
        digests = set()
        for threads, block, vectors in itertools.product(("1", "2"), ("1000", "65536", "1000000"), (plain, slow)):
            run(OURS, folder, "ours", "exact", threads, block, **vectors)
            digests.add(_digest(folder / "ours" / "model.safetensors"))
        made.append(Figure(f"exact {dtype}: digests of 12 merges", len(digests), "", "1", len(digests) == 1))
        shutil.rmtree(folder)
    return made


def _extensions() -> str:
    """The optional vector extensions that numpy uses here, as its variable takes them."""
    import numpy as np

    features: Any = np._core._multiarray_umath  # type: ignore[attr-defined]  # noqa: SLF001
    return " ".join(name for name in features.__cpu_dispatch__ if features.__cpu_features__.get(name))


def _digest(path: Path) -> str:
    from modelyard.weights.output import hash_file

    return str(hash_file(path))


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny bases: whether it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=("exact", "memory", "peft", "digests"), help="one part of it")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each side; the fastest counts")
    parser.add_argument("--scratch", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    where = machine("numpy", "torch", "transformers", "peft")
    repeat, only = 1 if options.quick else options.repeat, options.only
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as made:
        scratch = Path(made)
        if only in {None, "exact", "peft"}:
            figures += measure_speed(scratch, TINY[1] if options.quick else FULL, repeat, peft_mode=only != "exact")
        if only in {None, "memory"}:
            figures += measure_memory(scratch, TINY if options.quick else [SMALL, FULL, LARGE])
        if only in {None, "digests"}:
            figures += measure_digests(scratch)
    notes = {"cuda": "not used: `lora/1` is computed by numpy"}
    report(where, figures, quick=options.quick, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
