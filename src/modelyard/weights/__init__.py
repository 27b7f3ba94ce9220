"""Model folders: what is in them, whether they are sound, and exact ways to make new ones.

Everything here works on a `Files` value (names to readable files), never on a reference, and knows nothing of repos,
stores or servers. Nothing heavy is imported before it is needed, so that `modelyard.weights` itself costs milliseconds.

>>> from modelyard.weights import FolderFiles, check_weights
>>> from modelyard.weights.inspect import inspect

`load`, `inspect` and `cast` are named like, or live beside, the module that defines them; take those from their module
(`modelyard.weights.load.load`), since a package attribute cannot be both.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modelyard.weights.files import Files, FolderFiles

if TYPE_CHECKING:
    from modelyard.weights.checks import check_model, check_weights
    from modelyard.weights.doctor import Finding, diagnose
    from modelyard.weights.headers import Header, TensorInfo, read_header
    from modelyard.weights.inspect import Inspection
    from modelyard.weights.merge import MergeCertificate, merge_lora

__all__ = [
    "Files",
    "Finding",
    "FolderFiles",
    "Header",
    "Inspection",
    "MergeCertificate",
    "TensorInfo",
    "check_model",
    "check_weights",
    "diagnose",
    "merge_lora",
    "read_header",
]

_HOME = {
    "Finding": "doctor",
    "Header": "headers",
    "Inspection": "inspect",
    "MergeCertificate": "merge",
    "TensorInfo": "headers",
    "check_model": "checks",
    "check_weights": "checks",
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
