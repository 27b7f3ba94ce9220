"""Every architecture exported to every target: what came of it, for docs/reference/exports.json and the page made of it.

`ARCHITECTURES[name](folder)` writes a tiny model, `EXPORTS` are the targets with the type that is tried, `run_pair` exports one and gives
`pass` or the reason why not. `python tests/export_matrix.py [ARCHITECTURE ...]` runs pairs and writes the data; tests/weights/export/test_export_matrix.py
runs them again.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["ARCHITECTURES", "DATA", "EXPORTS", "FAST", "read_rows", "run_pair", "tasks_of"]

DATA = Path(__file__).parents[1] / "docs" / "reference" / "exports.json"

EXPORTS: dict[str, str] = {"onnx": "fp32", "openvino": "fp32", "genai": "fp32", "gguf": "F32"}
"""Target to the type that is tried: the exact one, by which a graph that is wrong shows."""

FAST = (("Llama", "onnx"), ("BERT, classification", "onnx"), ("BERT, classification", "openvino"), ("Llama", "genai"))
"""Pairs that the normal suite exports, and compares with the data."""


def _causal(kind: str, name: str = "", **values: Any) -> Callable[[Path], Path]:
    """A decoder: hidden size 32, 2 layers, heads of 16 numbers (the fewest that onnxruntime-genai takes), a context of 128."""

    def write(folder: Path) -> Path:
        import tiny_models
        from task_models import text

        shape = {
            "vocab_size": tiny_models.VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        return text.save(
            folder, name or f"{kind}ForCausalLM", text.config(kind, **shape | values), tiny_models.make_tokenizer()
        )

    return write


def _task(module: str, task: str, kind: str) -> Callable[[Path], Path]:
    """One of `task_models`."""

    def write(folder: Path) -> Path:
        import importlib

        made: Path = importlib.import_module(f"task_models.{module}").ARCHITECTURES[task][kind](folder)
        return made

    return write


_MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}

_ROWS: tuple[tuple[str, str, Callable[[Path], Path]], ...] = (
    ("Llama", "text-generation", _causal("Llama")),
    ("Mistral, sliding window", "text-generation", _causal("Mistral", sliding_window=8)),
    ("Qwen2", "text-generation", _causal("Qwen2")),
    ("Qwen3", "text-generation", _causal("Qwen3")),
    ("Qwen3-MoE", "text-generation", _causal("Qwen3Moe", **_MOE)),
    (
        "Gemma 3",
        "text-generation",
        _causal("Gemma3Text", "Gemma3ForCausalLM", sliding_window=8, query_pre_attn_scalar=16),
    ),
    ("Phi-3", "text-generation", _causal("Phi3", original_max_position_embeddings=128)),
    ("GPT-2", "text-generation", _task("text", "text-generation", "gpt2")),
    ("OLMo 2", "text-generation", _causal("Olmo2")),
    ("Mamba", "text-generation", _causal("Mamba", state_size=8)),
    ("BERT, classification", "text-classification", _task("text", "text-classification", "bert")),
    ("BERT, embeddings", "feature-extraction", _task("text", "feature-extraction", "bert")),
    ("BERT, masked words", "fill-mask", _task("text", "fill-mask", "bert")),
    ("RoBERTa, tokens", "token-classification", _task("text", "token-classification", "roberta")),
    ("BERT, questions", "question-answering", _task("text", "question-answering", "bert")),
    ("T5", "text2text-generation", _task("text", "text2text-generation", "t5")),
    ("BART", "text2text-generation", _task("text", "text2text-generation", "bart")),
    ("ViT", "image-classification", _task("vision", "image-classification", "vit")),
    ("ResNet", "image-classification", _task("vision", "image-classification", "resnet")),
    ("SegFormer", "semantic-segmentation", _task("vision", "semantic-segmentation", "segformer")),
    ("YOLOS", "object-detection", _task("vision", "object-detection", "yolos")),
    ("Wav2Vec2, CTC", "ctc", _task("audio", "ctc", "wav2vec2")),
    ("AST", "audio-classification", _task("audio", "audio-classification", "audio-spectrogram-transformer")),
    ("Whisper", "automatic-speech-recognition", _task("audio", "automatic-speech-recognition", "whisper")),
    ("CLIP", "zero-shot-image-classification", _task("multimodal", "zero-shot-image-classification", "clip")),
    ("LLaVA", "image-text-to-text", _task("multimodal", "image-text-to-text", "llava")),
)

ARCHITECTURES: dict[str, Callable[[Path], Path]] = {name: write for name, _, write in _ROWS}
"""Architecture, with its task where there are several, to what writes a tiny model of it."""


def tasks_of() -> dict[str, str]:
    """Architecture to its task."""
    return {name: task for name, task, _ in _ROWS}


def run_pair(architecture: str, target: str, folder: Path) -> dict[str, Any]:
    """Export one architecture to one target.

    Returns:
        `architecture`, `target`, `type`, `task`, `class`; `result`: `pass`, or the exporter's reason; and where it passed `difference`, the
        largest one relative to the source's output, with two digits.
    """
    from modelyard.errors import YardError
    from modelyard.weights.export import export

    source = folder / "model"
    if not source.exists():
        ARCHITECTURES[architecture](source)
    config = json.loads((source / "config.json").read_text("utf-8"))
    row: dict[str, Any] = {
        "architecture": architecture,
        "target": target,
        "type": EXPORTS[target],
        "task": tasks_of()[architecture],
    }
    row["class"] = (config.get("architectures") or [""])[0]
    try:
        made = export(source, folder / target, target, task=row["task"], type=EXPORTS[target], threads=1)
    except YardError as error:
        said = error.message.replace(f"`{source}`", "it").replace(str(source), "it").replace(str(folder), "")
        return row | {"result": " ".join(said.split())}
    shares = [each["max_difference"] / each["scale"] for each in made.checks if each.get("scale")]
    return row | {"result": "pass", "difference": float(f"{max(shares, default=0.0):.2g}")}


def read_rows() -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of docs/reference/exports.json by architecture and target."""
    rows = json.loads(DATA.read_text("utf-8"))["rows"] if DATA.exists() else []
    return {(row["architecture"], row["target"]): row for row in rows}


def write_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Write the data, in the order of `ARCHITECTURES` and `EXPORTS`, with the versions that made it."""
    from modelyard.weights.certificate import describe_machine

    found = {(row["architecture"], row["target"]): row for row in rows}
    ordered = [found[name, target] for name in ARCHITECTURES for target in EXPORTS if (name, target) in found]
    names = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai", "openvino", "gguf")
    data = {"libraries": describe_machine(*names)["libraries"], "rows": ordered}
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(chosen: list[str]) -> None:
    """Run the pairs of some architectures, all by default, in this one process, and put them into the data."""
    from modelyard.weights.export import exporting, steps

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = read_rows()
    with mock.patch.object(exporting, "run_in_process", steps.run_job):
        for name in chosen or list(ARCHITECTURES):
            with tempfile.TemporaryDirectory() as folder:
                for target in EXPORTS:
                    row = rows[name, target] = run_pair(name, target, Path(folder))
                    sys.stderr.write(f"{name} -> {target}: {row['result']} {row.get('difference', '')}\n")
            write_rows(rows.values())


if __name__ == "__main__":
    main(sys.argv[1:])
