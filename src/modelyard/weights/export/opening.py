"""`open_export`: what `export` wrote, ready to compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.weights.export.formats import check_request
from modelyard.weights.export.manifest import Manifest

if TYPE_CHECKING:
    from modelyard.weights.export.genai_runner import GenaiRunner
    from modelyard.weights.export.runners import OnnxRunner, OpenVinoRunner

__all__ = ["open_export"]


def open_export(folder: Path | str, *, threads: int | None = None) -> OnnxRunner | OpenVinoRunner | GenaiRunner:
    """A runner of an exported folder: `outputs(batch)` and, where it writes text, `generate(batch, tokens)`.

    Args:
        folder: What `export` wrote for `onnx`, `openvino` or `genai`.
        threads: Compute threads; None is the runtime's own choice.

    Raises:
        ModelError: `not_an_export`; `missing_package`: its runtime is not installed; `export_broken`: the runtime
            refuses the graph.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    check_request(manifest.target, manifest.type)
    if manifest.target == "genai":
        from modelyard.weights.export.genai_runner import GenaiRunner

        return GenaiRunner(folder, threads)
    from modelyard.weights.export.runners import OnnxRunner, OpenVinoRunner

    return (OnnxRunner if manifest.target == "onnx" else OpenVinoRunner)(folder, threads)
