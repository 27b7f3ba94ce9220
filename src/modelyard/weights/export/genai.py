"""onnxruntime-genai's folder of a model: its own builder writes the graph, from the checkpoint's files.

The builder is a module of the package and a program: it runs as `python -m onnxruntime_genai.models.builder` with no network. Knows how to ask it;
knows no graph.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.certificate import describe_machine
from modelyard.weights.export.formats import supported_architectures
from modelyard.weights.export.manifest import Graph, Manifest
from modelyard.weights.export.samples import sliding_window

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["build", "refuse"]


def build(source: Path, folder: Path, type: str, *, architecture: str) -> Manifest:  # noqa: A002  the name of `export`
    """Write onnxruntime-genai's files for the model of `source` into `folder`.

    Args:
        source: The model's folder, which the builder loads itself.
        folder: Where to.
        type: Of the weights: `int4`, `int8` (blocks of 32 with a scale each) or `fp32`.
        architecture: Its class; `refuse` let it pass.

    Raises:
        ModelError: `not_exportable`: the builder failed; the message has what it said.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(source), "-o", str(folder), "-p", type, "-e", "cpu", "-c", scratch]
        # A cache of the window's size alone fails on a CPU as soon as a prompt is longer than the window.
        command += ["--extra_options", "windowed_kv_cache=false"]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise ModelError(
            f"{architecture} cannot be exported to genai: {lines[-1][:300]}", code="not_exportable", target="genai"
        )
    _keep_window(folder, source)
    config = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
    libraries = describe_machine("onnxruntime-genai", "onnxruntime", "transformers", "torch")["libraries"]
    graph = Graph(config["decoder"]["filename"], ("input_ids", "attention_mask"), ())
    return Manifest(
        "genai",
        type,
        "text-generation",
        architecture,
        {"model": graph},
        int(config["pad_token_id"]),
        libraries,
        "genai",
    )


def _keep_window(folder: Path, source: Path) -> None:
    """Give each layer with a sliding window its window: the builder forgets it for architectures that it does not list as having any."""
    import onnx
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, local_files_only=True)
    window = sliding_window(config)
    if window is None:
        return
    kinds = getattr(config, "layer_types", None)
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        layer = re.search(r"layers\.(\d+)/", node.name)
        if node.op_type != "GroupQueryAttention" or layer is None:
            continue
        if kinds is None or "sliding" in kinds[int(layer[1])]:
            kept = [each for each in node.attribute if each.name != "local_window_size"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("local_window_size", window)])
    onnx.save(graph, path)


def refuse(core: Any, task: str) -> None:
    """Refuse a model that cannot become a folder of onnxruntime-genai.

    Args:
        core: The model of transformers.
        task: What it is for.

    Raises:
        ModelError: `not_exportable`: the builder does not know its architecture, or the kernels cannot compute its sizes.
    """
    name, config = str(core.__class__.__name__), core.config
    known = supported_architectures("genai") or frozenset()
    if name not in known:
        raise ModelError(
            f"{name} cannot be exported to genai: onnxruntime-genai's builder does not know it",
            code="not_exportable",
            hint="export it to onnx or openvino instead",
            target="genai",
        )
    if task != "text-generation":
        raise ModelError(
            f"{name} ({task}) cannot be exported to genai: of what its builder knows, text generators alone are checked here",
            code="not_exportable",
            hint="export it to onnx or openvino instead",
            target="genai",
        )
    # The attention kernel of onnxruntime turns positions in blocks of 16 numbers a head.
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % 16:
        raise ModelError(
            f"{name} with heads of {size} numbers cannot be exported to genai: onnxruntime's GroupQueryAttention takes"
            " multiples of 16",
            code="not_exportable",
            hint="export it to onnx or openvino instead",
            target="genai",
        )
