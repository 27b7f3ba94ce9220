"""Graphs of a model by transformers' own exporters: which parts there are, what each is traced with, how its inputs are called.

A decoder is one graph that does prefill and decoding alike; an encoder-decoder that writes is three. Runs in the process of
an export (`_worker`): the exporters patch torch and transformers while they run. Knows transformers; runs no graph.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.export.manifest import Graph, Manifest
from modelyard.weights.export.samples import pick_sample, refuse_constant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from modelyard.weights.model import Model
    from modelyard.weights.parity import Batch

__all__ = ["trace"]

Parts = dict[str, tuple[Any, dict[str, Any]]]


def trace(
    model: Model,
    batches: Sequence[Batch],
    folder: Path,
    *,
    target: str,
    type: str,  # noqa: A002  the name of `export`
    tell: Callable[[str], None],
) -> Manifest:
    """Write the graphs of `model` into `folder` as transformers' exporters do, with their `export.json`, and say what they are.

    Args:
        model: In float32.
        batches: Of `samples.make_batches`.
        folder: Where to.
        target: `onnx` or `openvino`.
        type: `fp32`, or of openvino `fp16`, which halves the weights' file.
        tell: Called with what comes next.

    Raises:
        ModelError: `not_exportable`: the exporter cannot trace this model; the message has what it said.
    """
    from transformers.exporters.base import ExportedModel

    core = model.core
    layout = _layout(core, model.task)
    exporter, config = _exporter(target, type, inside=layout == "decoder")
    components, graphs = {}, {}
    try:
        parts = _parts(layout, core, pick_sample(batches, core))
        for role, (module, sample) in parts.items():
            tell(f"trace {role}")
            made = exporter.export(module, sample, config)
            component = components[role] = made.components["model"]
            if target == "onnx":
                name_sizes(component.program.graph)
            graphs[role] = _describe(role, component.program, sample, target)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{_named(core)} cannot be exported to {target}: {explain(error)}", code="not_exportable", target=target
        ) from error
    tell("write")
    ExportedModel(components, exporter.export_format).save_pretrained(folder)
    return Manifest(
        target, type, model.task, _named(core), graphs, _pad(core.config), dict(component.metadata.packages), layout
    )


def explain(error: BaseException) -> str:
    """What a library said, in one line: the innermost cause says what happened, the outer ones where."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return text if len(text) <= 300 else text[:297] + "..."


def _layout(core: Any, task: str) -> str:
    """Which layout of `manifest.Manifest` the model has."""
    if task in {"text2text-generation", "automatic-speech-recognition"}:
        return "encoder-decoder"
    if task == "text-generation":
        return "decoder"
    if task in {"image-text-to-text", "any-to-any", "text-to-audio", "text-to-spectrogram", "rnnt", "tdt"}:
        raise ModelError(
            f"{_named(core)} ({task}) cannot be exported: what joins its parts is Python that no graph holds",
            code="not_exportable",
            hint="export its text model alone, if you have it as a checkpoint of its own",
        )
    return "single"


def _parts(layout: str, core: Any, sample: dict[str, Any]) -> Parts:
    if layout != "encoder-decoder":
        refuse_constant(sample)
    if layout == "single":
        return {"model": (core, sample)}
    if layout == "encoder-decoder":
        return _encoder_decoder(core, sample)
    from transformers.exporters.utils import decompose_for_generation

    # Two tokens behind a cache: the same graph takes one, and a whole prompt behind an empty cache.
    parts = decompose_for_generation(core, sample, multi_token_decode=True)
    return {"model": parts["decode"]}


def _encoder_decoder(core: Any, sample: dict[str, Any]) -> Parts:
    """The encoder, the decoder's first pass (which makes both caches), and every later one."""
    import torch

    inputs = {name: value for name, value in sample.items() if not name.startswith("decoder_")}
    start = sample["decoder_input_ids"]
    encoder = core.get_encoder()
    taken = inspect.signature(encoder.forward).parameters
    encoded = {name: value for name, value in inputs.items() if name in taken}
    own = inspect.signature(core.forward).parameters
    kept = {name: value for name, value in inputs.items() if "mask" in name and name in own}
    with torch.no_grad():
        states = encoder(**encoded, return_dict=True)
        given = {**kept, "encoder_outputs": states, "decoder_input_ids": start, "use_cache": True, "return_dict": True}
        past = core(**given).past_key_values
    later = {**given, "decoder_input_ids": start[:, :2], "past_key_values": past}
    return {"encoder": (encoder, encoded), "prefill": (core, given), "decode": (core, later)}


def _exporter(target: str, type: str, *, inside: bool) -> tuple[Any, Any]:  # noqa: A002  the name of `export`
    """The exporter and its configuration; `inside` keeps a decoder's cache in the graph where the target can."""
    from transformers.exporters import configs, exporter_onnx, exporter_openvino

    make: Any
    if target == "onnx":
        make = exporter_onnx.OnnxExporter
        return make(), configs.OnnxConfig(dynamic=True)
    make = exporter_openvino.OpenVINOExporter
    return make(), configs.OpenVINOConfig(dynamic=True, compress_to_fp16=type == "fp16", stateful=inside)


def _describe(role: str, program: Any, sample: Mapping[str, Any], target: str) -> Graph:
    if target == "onnx":
        names, file = [value.name for value in program.graph.inputs], f"{role}.onnx"
    else:
        names, file = [port.get_any_name() for port in program.inputs], f"openvino_{role}.xml"
    import torch

    given = [name for name, value in sample.items() if isinstance(value, torch.Tensor)]
    return Graph(file, tuple(names), tuple(name for name in given if name not in names))


def name_sizes(graph: Any) -> None:
    """Call the free sizes of an ONNX graph what they are, `batch` and `tokens`, and write fixed ones as numbers.

    torch numbers its symbols (`s44`), and writes the fixed sizes of a cache as text (`"8"`).
    """
    import onnx_ir

    names: dict[str, str] = {}
    for value in graph.inputs:
        words = _SIZES.get(value.name.removeprefix("input."), ("batch", None, "past") if "past" in value.name else ())
        for size, word in zip(value.shape or (), words, strict=False):
            text = getattr(size, "value", None)
            if word is not None and isinstance(text, str) and text.isidentifier():
                names.setdefault(text, word)
    for value in [*graph.inputs, *graph.outputs]:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_size(getattr(size, "value", size), names) for size in value.shape])


_SIZES = {
    "input_ids": ("batch", "tokens"),
    "position_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "total"),
    "decoder_input_ids": ("batch", "tokens"),
    "pixel_values": ("batch",),
    "input_values": ("batch", "samples"),
    "input_features": ("batch",),
}


def _size(size: Any, names: Mapping[str, str]) -> int | str | None:
    if not isinstance(size, str):
        return size  # type: ignore[no-any-return]
    if size.isdigit():
        return int(size)
    return re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), size)


def _named(core: Any) -> str:
    return str(core.__class__.__name__)


def _pad(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else None
