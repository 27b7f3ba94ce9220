"""How far are estimates from what a process takes, and what does it cost to ask?

Eight configurations: four architectures, inference and LoRA training each. The estimate reads the model's folder; then a fresh
process loads the folder with `modelyard.weights.load`, and runs the workload by the libraries alone (transformers' forward
with its cache, PEFT, torch's AdamW)::

    python benchmarks/estimate.py            # some minutes, 2 GB of disk
    python benchmarks/estimate.py --quick    # smaller models: that it works, the figures mean less
    python benchmarks/estimate.py --json

What is compared: the estimate's peak without `overhead` with the process's largest resident set after the load (`VmHWM`, reset
when the model stands) minus its resident set when everything is imported and nothing loaded. The process has the C library's
allocator as users have it: what that keeps of freed memory is part of the estimate.

Then `yard inspect` and `yard estimate` of a 7B-class folder, each a fresh process from its start: headers and sizes are real,
the weights' bytes are holes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import Figure, machine, report

WORK = """
import json, sys
folder, workload, tiny = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
import numpy, peft, torch, transformers
from modelyard.weights.load import load
torch.set_num_threads(2)


def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))


def step(model, sizes, trained):
    batch, length = sizes["batch"], sizes["length"]
    config = model.config
    tokens = torch.ones((batch, length), dtype=torch.long)
    inputs = {"input_ids": tokens}
    if model.main_input_name == "input_features":
        inputs = {"input_features": torch.ones(batch, config.num_mel_bins, 2 * config.max_source_positions, dtype=model.dtype)}
    if trained:
        labels = torch.zeros(batch, dtype=torch.long) if "Classification" in type(model).__name__ else tokens
        if "Classification" not in type(model).__name__ and "input_features" in inputs:
            labels = tokens
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=sizes["rank"], target_modules="all-linear")).train()
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)
        for _ in range(3):
            adapted(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return
    with torch.no_grad():
        if not model.can_generate():
            model(**inputs)
            return
        more = {} if config.is_encoder_decoder else {"logits_to_keep": 1}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = tokens[:, :1]
        out = model(**inputs, use_cache=True, **more)
        for _ in range(sizes["new_tokens"]):
            given = {"decoder_input_ids": tokens[:, :1]} if config.is_encoder_decoder else {"input_ids": tokens[:, :1]}
            if config.is_encoder_decoder:
                given["encoder_outputs"] = (out.encoder_last_hidden_state,)
            out = model(**given, past_key_values=out.past_key_values, use_cache=True, **more)


# Everything that is made on first use is made before the baseline: modules, thread pools, kernels' own tables.
warm = load(tiny["folder"], dtype=tiny["dtype"]).model
step(warm, tiny["sizes"], workload["mode"] == "lora")
del warm
import gc; gc.collect()
base = status("VmRSS")
model = load(folder, dtype=tiny["dtype"]).model
loaded = status("VmHWM") - base
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins again
step(model, workload, workload["mode"] == "lora")
print(json.dumps({"peak": status("VmHWM") - base, "load": loaded, "base": base}))
"""


@dataclass(frozen=True)
class Case:
    """A model's configuration, and the workloads for it."""

    name: str
    config: dict[str, Any]
    inference: dict[str, int]
    lora: dict[str, int]
    tiny: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)


GQA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
SLIDING = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
    "vocab_size": 64000,
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "moe_intermediate_size": 384,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
ENCODER = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 14,
    "num_attention_heads": 16,
    "vocab_size": 30522,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 500}
CASES = (
    Case(
        "Llama, grouped queries",
        GQA,
        {"batch": 4, "length": 1024, "new_tokens": 8},
        {"batch": 2, "length": 256},
        TINY,
    ),
    Case(
        "Gemma 3, sliding windows",
        SLIDING,
        {"batch": 4, "length": 1024, "new_tokens": 8},
        {"batch": 2, "length": 256},
        TINY,
    ),
    Case(
        "Qwen3-MoE, experts",
        EXPERTS,
        {"batch": 2, "length": 512, "new_tokens": 8},
        {"batch": 2, "length": 128},
        TINY | {"moe_intermediate_size": 64},
    ),
    Case(
        "BERT, classifier",
        ENCODER,
        {"batch": 16, "length": 256, "new_tokens": 0},
        {"batch": 4, "length": 256},
        TINY,
    ),
)
RANK = 16
QUICK = {
    "Llama, grouped queries": ("lora", {"batch": 1, "length": 256}),
    "BERT, classifier": ("inference", {"batch": 2, "length": 64, "new_tokens": 0}),
}
"""What `--quick` takes: most of the time of a case is the start of its process."""
SEVEN_B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def make_model(folder: Path, config: dict[str, Any]) -> None:
    """A folder with random weights and a tokenizer, as `save_pretrained` writes it."""
    import transformers
    from tokenizers import Tokenizer, models

    torch_config = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
    model: Any = getattr(transformers, config["architectures"][0])(torch_config)
    model.save_pretrained(folder)
    make: Any = transformers.PreTrainedTokenizerFast
    make(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))).save_pretrained(folder)


def make_hollow(folder: Path, config: dict[str, Any]) -> int:
    """A folder of `config`'s shapes in two shards whose tensors' bytes are holes; the bytes it claims to have."""
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": [v, h], "lm_head.weight": [v, h], "model.norm.weight": [h]}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": [h, h] for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": [f, h] for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": [h, f], f"{prefix}.input_layernorm.weight": [h]}
        shapes[f"{prefix}.post_attention_layernorm.weight"] = [h]
    folder.mkdir(parents=True)
    names, total, home = sorted(shapes), 0, {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file, header, offset = f"model-{number:05d}-of-00002.safetensors", {}, 0
        for name in part:
            size = 2 * shapes[name][0] * (shapes[name][1] if len(shapes[name]) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + size]}
            offset += size
            home[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + offset)
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return total


def measure(folder: Path, tiny: Path, workload: dict[str, Any]) -> dict[str, int]:
    """Bytes that the workload takes in a process of its own."""
    sizes = {"batch": 1, "length": 8, "new_tokens": 1, "rank": 2}
    small = json.dumps({"folder": str(tiny), "dtype": "float32", "sizes": sizes})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORK, str(folder), json.dumps(workload | {"rank": RANK}), small],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: Case, scratch: Path, *, quick: bool) -> list[Figure]:
    """The estimate beside the measured peak, for inference and LoRA."""
    from modelyard.weights.estimate import estimate

    folder, tiny = scratch / case.name, scratch / f"{case.name} tiny"
    make_model(folder, case.config | ({"num_hidden_layers": 2, "vocab_size": 4000} if quick else {}))
    make_model(tiny, case.config | case.tiny)
    figures = []
    asked = {"inference": case.inference, "lora": case.lora}
    for mode, sizes in asked.items() if not quick else [QUICK[case.name]]:
        guess = estimate(folder, mode=mode, rank=RANK, dtype="float32", options=False, **sizes)  # type: ignore[arg-type]
        said = (guess.peak - guess.overhead) / 1e6
        real = measure(folder, tiny, sizes | {"mode": mode})["peak"] / 1e6
        near = abs(said / real - 1) <= 0.10
        figures.append(Figure(f"{case.name}: {mode}", said, "MB", "within 10 %", near, "measured", real, said / real))
    return figures


def ask(arguments: list[str], times: int) -> tuple[float, float]:
    """Seconds and MB of one `yard` command in a process of its own: the best of three, since others use this machine."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        code = "import os, sys; pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); print(os.wait4(pid, 0)[2].ru_maxrss)"
        command = [sys.executable, "-S", "-E", "-c", code, sys.executable, "-m", "modelyard.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append((time.perf_counter() - started, int(done.stdout.splitlines()[-1]) / 1e3))
    return min(found)


def ask_about_seven(scratch: Path, times: int) -> tuple[list[Figure], dict[str, Any]]:
    """What `yard inspect` and `yard estimate` cost on a 7B-class folder."""
    folder = scratch / "seven"
    total = make_hollow(folder, SEVEN_B)
    figures = []
    for name, arguments in (
        ("inspect", ["inspect", str(folder)]),
        ("estimate", ["estimate", str(folder)]),
        ("estimate --mode lora", ["estimate", str(folder), "--mode", "lora"]),
    ):
        seconds, memory = ask(arguments, times)
        figures.append(Figure(f"yard {name}, 7B-class: time", seconds, "s", "< 1 s", seconds < 1))
        figures.append(Figure(f"yard {name}, 7B-class: memory", memory, "MB", "< 200 MB", memory < 200))
    return figures, {"7B-class folder": f"{total / 1e9:.1f} GB of bfloat16 in two shards, holes on disk"}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        figures: list[Figure] = []
        for case in CASES:
            if chosen.only in case.name and (case.name in QUICK or not chosen.quick):
                figures += compare(case, scratch, quick=chosen.quick)
        seven, notes = (
            ask_about_seven(scratch, 1 if chosen.quick else 3) if chosen.only in "7B-class folder" else ([], {})
        )
    where = machine("torch", "transformers", "peft")
    report(where, figures + seven, quick=chosen.quick, as_json=chosen.json, notes=notes)


if __name__ == "__main__":
    main()
