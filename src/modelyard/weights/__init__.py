"""Model folders: what is in them, whether they are sound, and exact ways to make new ones.

Everything here works on a `Files` value (names to readable files), never on a reference, and knows nothing of repos,
stores or servers. Nothing heavy is imported before it is needed, so that `modelyard.weights` itself costs milliseconds.

>>> from modelyard.weights import FolderFiles, check_weights
>>> from modelyard.weights.inspect import inspect

`load` and `inspect` are named like the modules that define them: take them from there (`modelyard.weights.load.load`), since a
package's attribute cannot be both.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modelyard.weights.files import Files, FolderFiles

if TYPE_CHECKING:
    from modelyard.weights.casting import cast
    from modelyard.weights.checks import check_model, check_weights
    from modelyard.weights.convert import convert_pickle
    from modelyard.weights.doctor import Finding, diagnose
    from modelyard.weights.generation import GenerationParams
    from modelyard.weights.headers import Header, TensorInfo, read_header
    from modelyard.weights.inspect import Inspection
    from modelyard.weights.merge import MergeCertificate, merge_lora
    from modelyard.weights.model import Model

__all__ = [
    "Files",
    "Finding",
    "FolderFiles",
    "GenerationParams",
    "Header",
    "Inspection",
    "MergeCertificate",
    "Model",
    "TensorInfo",
    "cast",
    "check_model",
    "check_weights",
    "convert_pickle",
    "diagnose",
    "merge_lora",
    "read_header",
]

_HOME = {
    "Finding": "doctor",
    "GenerationParams": "generation",
    "Header": "headers",
    "Inspection": "inspect",
    "MergeCertificate": "merge",
    "Model": "model",
    "TensorInfo": "headers",
    "cast": "casting",
    "check_model": "checks",
    "check_weights": "checks",
    "convert_pickle": "convert",
    "diagnose": "doctor",
    "merge_lora": "merge",
    "read_header": "headers",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` on first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'modelyard.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modelyard.weights.{home}"), name)
