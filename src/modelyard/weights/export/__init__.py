"""A model in the form of another runtime, checked against the source before it is there: ONNX, OpenVINO, onnxruntime-genai, GGUF.

`export` writes a folder that runs by itself (its graph, preprocessors, generation_config) and a certificate with the measured
differences; `open_export` opens one. The graph is made in a process of its own, so that its memory comes back and what the
exporters patch in torch and transformers stays there.

>>> from pathlib import Path
>>> from modelyard.weights.export import export, open_export                     # doctest: +SKIP
>>> export(Path("model"), Path("model-onnx"), "onnx").checks[0]["holds"]         # doctest: +SKIP
True
>>> open_export(Path("model-onnx")).generate(batch, 20)                          # doctest: +SKIP

Knows folders; knows no references, stores or servers.
"""

from __future__ import annotations

from modelyard.weights.export.exporting import export
from modelyard.weights.export.formats import FORMATS, TYPES, default_tolerance, supported_architectures
from modelyard.weights.export.opening import open_export

__all__ = ["FORMATS", "TYPES", "default_tolerance", "export", "open_export", "supported_architectures"]
