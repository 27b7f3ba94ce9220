"""Small models, really trained, for measuring what stored models cost; made once and kept in a build folder.

The base is the one that the package ships: a Llama decoder of 1.9 million parameters, pretrained on 9.9 million tokens of the
generated corpus (its `recipe.json` says how). From it, on other text - this project's own pages and source code -

* `finetuned`: every weight, AdamW in binary32 with a cosine rate, from the base's bfloat16 weights and rounded back to bfloat16;
* `adapter`: a LoRA of rank 16 on all seven linear layers of each block, trained and saved by PEFT;
* `merged`: that adapter merged into the base by `modelyard.weights.merge_lora`.

`write_model` writes files of any size, not trained: for times and memory, which do not depend on what the bytes say.

Seeds and thread counts are fixed. `changes` says how far the fine-tune went, which is what its delta's size depends on.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["QUICK", "Training", "changes", "make_models", "write_model"]

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Training:
    """How the fine-tune and the adapter are trained."""

    steps: int = 150
    rows: int = 8
    length: int = 128
    full_rate: float = 3e-5
    lora_rate: float = 1e-3
    rank: int = 16
    seed: int = 0
    threads: int = 2


QUICK = Training(steps=16, full_rate=5e-4)
"""Whether it works: a few steps at a high rate."""


def make_models(folder: Path, training: Training) -> dict[str, Any]:
    """The folders `base`, `finetuned`, `adapter` and `merged` under `folder`, and what was seen while training them.

    Made again only when `training` is another; a folder that was not finished is not used.
    """
    record = folder / "training.json"
    if record.is_file():
        seen: dict[str, Any] = json.loads(record.read_text("utf-8"))
        if seen["training"] == asdict(training):
            return seen
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    import torch

    torch.set_num_threads(training.threads)
    with resources.as_file(resources.files("modelyard.quickstart").joinpath("base")) as shipped:
        shutil.copytree(shipped, folder / "base")
    seen = {"training": asdict(training)}
    seen["finetuned_loss"] = _train(folder, "finetuned", training)
    seen["adapter_loss"] = _train(folder, "adapter", training)
    from modelyard.weights import FolderFiles, merge_lora

    merge_lora(
        FolderFiles(folder / "base"), FolderFiles(folder / "adapter"), folder / "merged", threads=training.threads
    )
    record.write_text(json.dumps(seen, indent=1), "utf-8")
    return seen


def _text() -> str:
    """This project's pages and code, in the order of their names."""
    paths = sorted([*_ROOT.glob("docs/**/*.md"), *_ROOT.glob("src/**/*.py")])
    return "\n".join(path.read_text("utf-8") for path in paths)[:2_000_000]


def _train(folder: Path, name: str, training: Training) -> list[float]:
    """Train one model from the base and save it; the loss of the first and the last tenth of the steps."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(training.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    rate = training.full_rate
    if name == "adapter":
        from peft import LoraConfig, get_peft_model

        rate = training.lora_rate
        layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(r=training.rank, lora_alpha=2 * training.rank, target_modules=layers, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    ids = torch.tensor(tokenizer(_text(), add_special_tokens=False)["input_ids"])
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / training.steps))
        starts = torch.randint(len(ids) - training.length, (training.rows,), generator=generator)
        batch = torch.stack([ids[start : start + training.length] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    if name == "finetuned":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    tenth = max(training.steps // 10, 1)
    return [sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth]


def changes(base: Path, other: Path) -> tuple[float, float]:
    """How far a fine-tune went: the median relative change of an element, and the share of elements whose bits changed."""
    import numpy as np

    relative, changed, count = [], 0, 0
    before, after = _tensors(base), _tensors(other)
    for name, old in before.items():
        new = after[name]
        changed += int(np.count_nonzero(old != new))
        count += old.size
        with np.errstate(divide="ignore", invalid="ignore"):
            relative.append(np.abs(_floats(new) - _floats(old)) / np.abs(_floats(old)))
    return float(np.median(np.nan_to_num(np.concatenate(relative), posinf=1e9))), changed / count


def _floats(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    import numpy as np

    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _tensors(folder: Path) -> dict[str, NDArray[np.uint16]]:
    """Every tensor's bits, flat."""
    import torch
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).view(torch.uint16).numpy().reshape(-1) for name in sorted(file.keys())}


def write_model(folder: Path, count: int, tensor_bytes: int, *, prefix: str = "model", seed: int = 0) -> Path:
    """A safetensors file of `count` bf16 tensors that all differ: one random block, shifted by the tensor's number."""
    folder.mkdir(parents=True)
    rows = tensor_bytes // 2 // 64
    spans = {
        f"{prefix}.layers.{i}.weight": {"dtype": "BF16", "shape": [rows, 64], "data_offsets": [i * rows * 128, (i + 1) * rows * 128]}
        for i in range(count)
    }  # fmt: skip
    import numpy as np

    header = json.dumps(spans, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    # Random below the exponent's top, so that no element is a NaN.
    block = np.random.default_rng(seed).integers(0, 0x3F00, rows * 64, np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for i in range(count):
            file.write((block + np.uint16(i % 64) ^ np.uint16(i // 64 % 8192)).tobytes())
    return folder
