"""How fast, and in how much memory, is a rank-16 LoRA merged into a bf16 Llama and saved, next to PEFT?

Both sides run in a fresh process each, imports included, on the same random model, from the same folder to a new one::

    python benchmarks/merge.py            # a 1.1B-shaped base; some minutes, 7 GB of disk
    python benchmarks/merge.py --quick    # a tiny base: that it works, not how fast it is
    python benchmarks/merge.py --json

PEFT: `AutoModelForCausalLM.from_pretrained`, `PeftModel.from_pretrained`, `merge_and_unload`, `save_pretrained`. Ours makes
its files durable before it ends, PEFT does not. Ours also merges into a base of half the layers, for whether memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = """
import sys
from pathlib import Path
from modelyard.weights import FolderFiles, merge_lora
base, adapter, out = map(Path, sys.argv[1:])
merge_lora(FolderFiles(base), FolderFiles(adapter), out)
"""
PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


PEAK = """
import re
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


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
        return {
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (f, h),
            "mlp.up_proj": (f, h),
            "mlp.down_proj": (h, f),
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
    """One process: seconds on the clock, processor seconds, and the most memory it had, in MB."""

    seconds: float
    processor: float
    memory: float


FULL, TINY = Shape(layers=22), Shape(layers=4, hidden=256, inner=704, key_value=64, vocabulary=1000)


def make_inputs(folder: Path, shape: Shape) -> None:
    """Write a random base and adapter."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.02

    h = shape.hidden
    base = {f"{name}.weight": random(shape.vocabulary, h).bfloat16() for name in ("model.embed_tokens", "lm_head")}
    base["model.norm.weight"] = torch.ones(h, dtype=torch.bfloat16)
    adapter = {}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in shape.modules().items():
            base[f"{prefix}{name}.weight"] = random(rows, columns).bfloat16()
            adapter[f"base_model.model.{prefix}{name}.lora_A.weight"] = random(shape.rank, columns)
            adapter[f"base_model.model.{prefix}{name}.lora_B.weight"] = random(rows, shape.rank)
        for name in ("input_layernorm", "post_attention_layernorm"):
            base[f"{prefix}{name}.weight"] = torch.ones(h, dtype=torch.bfloat16)
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "target_modules": [name.rpartition(".")[2] for name in shape.modules()],
    }
    for name, tensors, stem, config in (
        ("base", base, "model", shape.config()),
        ("adapter", adapter, "adapter_model", lora),
    ):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / f"{stem}.safetensors", {"format": "pt"})
        kind = "config.json" if name == "base" else "adapter_config.json"
        (folder / name / kind).write_text(json.dumps(config))


def run(code: str, folder: Path, out: str) -> Cost:
    """Run one side in a fresh process: time and processor from outside, the memory's peak as the kernel told the process.

    (`wait4` reports a peak that counts what this process had when it forked.)
    """
    command = [sys.executable, "-c", code + PEAK, *(str(folder / name) for name in ("base", "adapter", out))]
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(done.stderr)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(seconds, used, int(done.stdout.split()[-1]) * 1024 / 1e6)


def best(code: str, folder: Path, out: str, repeat: int) -> Cost:
    """The fastest of several runs; each leaves its output for the comparison."""
    costs = [run(code, folder, f"{out}-{number}") for number in range(repeat)]
    return min(costs, key=lambda cost: cost.seconds)


def differing_share(folder: Path) -> float:
    """The share of elements in which the two results differ (both are right: their sums differ in order)."""
    import torch
    from safetensors import safe_open

    different = total = 0
    with (
        safe_open(folder / "ours-0" / "model.safetensors", "pt") as ours,
        safe_open(folder / "peft-0" / "model.safetensors", "pt") as theirs,
    ):
        for name in ours.keys():  # noqa: SIM118  # not a dict
            tensor = ours.get_tensor(name)
            different += int(torch.count_nonzero(tensor != theirs.get_tensor(name)))
            total += tensor.numel()
    return different / total


def figure(
    name: str, value: float, unit: str, *, peer: str, peer_value: float, ratio: float, target: str, holds: bool
) -> dict[str, Any]:
    """One figure as every benchmark of this project reports it."""
    rounded = {"value": round(value, 4), "peer_value": round(peer_value, 4), "ratio": round(ratio, 2)}
    return {"name": name, "unit": unit, "peer": peer, "target": target, "holds": holds, **rounded}


def measure(shape: Shape, repeat: int) -> list[dict[str, Any]]:
    """Run both sides on one shape, and ours on half of it."""
    with tempfile.TemporaryDirectory() as scratch:
        whole, half = Path(scratch, "whole"), Path(scratch, "half")
        make_inputs(whole, shape)
        make_inputs(
            half, Shape(shape.layers // 2, shape.hidden, shape.inner, shape.key_value, shape.vocabulary, shape.rank)
        )
        ours, peft = best(OURS, whole, "ours", repeat), best(PEFT, whole, "peft", repeat)
        smaller = best(OURS, half, "ours", 1)
        different = differing_share(whole)
    peer = "PEFT merge_and_unload + save_pretrained"
    faster, growth = peft.seconds / ours.seconds, ours.memory / smaller.memory
    return [
        figure("merge_seconds", ours.seconds, "s", peer=peer, peer_value=peft.seconds, ratio=faster, target=">= 6x faster", holds=faster >= 6),
        figure(
            "merge_processor_seconds", ours.processor, "s", peer=peer, peer_value=peft.processor,
            ratio=peft.processor / ours.processor, target="reported", holds=True,
        ),
        figure(
            "merge_peak_memory", ours.memory, "MB", peer=peer, peer_value=peft.memory,
            ratio=ours.memory / peft.memory, target="<= 1/4", holds=ours.memory <= peft.memory / 4,
        ),
        figure(
            "merge_memory_growth", ours.memory, "MB", peer="the same with half the layers", peer_value=smaller.memory,
            ratio=growth, target="flat: <= 1.1", holds=growth <= 1.1,
        ),
        figure(
            "elements_that_differ", 100 * different, "%", peer=peer, peer_value=0.0, ratio=0.0,
            target="reported: sums in another order", holds=True,
        ),
    ]  # fmt: skip


def machine() -> dict[str, Any]:
    """Where this ran."""
    import numpy as np
    import peft
    import torch
    import transformers

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny base: whether it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each side; the fastest counts")
    options = parser.parse_args()
    where = machine()
    figures = measure(TINY if options.quick else FULL, 1 if options.quick else options.repeat)
    if options.json:
        print(json.dumps({"machine": where, "quick": options.quick, "figures": figures}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    for row in figures:
        peer = f"{row['peer_value']} {row['unit']} ({row['peer']})"
        held = "holds" if row["holds"] else "MISSED"
        print(f"{row['name']}: {row['value']} {row['unit']}, {peer}, ratio {row['ratio']}; {row['target']}: {held}")


if __name__ == "__main__":
    main()
