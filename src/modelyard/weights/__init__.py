"""Model folders: what is in them, whether they are sound, and exact ways to make new ones.

Everything here works on a `Files` value (names to readable files), never on a reference, and knows nothing of repos,
stores or servers. Nothing heavy is imported before it is needed, so that `modelyard.weights` itself costs milliseconds.

>>> from modelyard.weights import FolderFiles, check_weights
>>> from modelyard.weights.inspect import inspect

`load`, `create` and `inspect` are named like the modules that define them: take them from there (`modelyard.weights.load.load`),
since a package's attribute cannot be both.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modelyard.weights.files import Files, FolderFiles

if TYPE_CHECKING:
    from modelyard.weights.certificate import Certificate
    from modelyard.weights.checks import check_model, check_weights
    from modelyard.weights.convert import cast, convert_pickle, plan_rewrite, rewrite, to_bin
    from modelyard.weights.doctor import Finding, diagnose
    from modelyard.weights.generation.completions import Completion
    from modelyard.weights.generation.loop import GenerationParams
    from modelyard.weights.generation.vocabulary import Piece
    from modelyard.weights.headers import Header, TensorInfo, read_header
    from modelyard.weights.inspect import Inspection
    from modelyard.weights.loading.configs import load_config, save_config
    from modelyard.weights.loading.plan import LoadPlan, plan_load
    from modelyard.weights.loading.preprocessors import load_preprocessor, save_preprocessor
    from modelyard.weights.merge import MergeCertificate, merge_lora
    from modelyard.weights.merge.combination import combine
    from modelyard.weights.merge.extraction import extract
    from modelyard.weights.merge.mergekit import read_mergekit
    from modelyard.weights.merge.models import merge_models
    from modelyard.weights.merge.several import merge_adapters
    from modelyard.weights.model import Model
    from modelyard.weights.untrained import Untrained, UntrainedWarning, find_untrained

__all__ = [
    "Certificate",
    "Completion",
    "Files",
    "Finding",
    "FolderFiles",
    "GenerationParams",
    "Header",
    "Inspection",
    "LoadPlan",
    "MergeCertificate",
    "Model",
    "Piece",
    "TensorInfo",
    "Untrained",
    "UntrainedWarning",
    "cast",
    "check_model",
    "check_weights",
    "combine",
    "convert_pickle",
    "diagnose",
    "extract",
    "find_untrained",
    "load_config",
    "load_preprocessor",
    "merge_adapters",
    "merge_lora",
    "merge_models",
    "plan_load",
    "plan_rewrite",
    "read_header",
    "read_mergekit",
    "rewrite",
    "save_config",
    "save_preprocessor",
    "to_bin",
]

_HOME = {
    "Certificate": "certificate",
    "Completion": "generation.completions",
    "Finding": "doctor",
    "GenerationParams": "generation.loop",
    "Header": "headers",
    "Inspection": "inspect",
    "LoadPlan": "loading.plan",
    "MergeCertificate": "merge",
    "Model": "model",
    "Piece": "generation.vocabulary",
    "TensorInfo": "headers",
    "Untrained": "untrained",
    "UntrainedWarning": "untrained",
    "cast": "convert",
    "check_model": "checks",
    "check_weights": "checks",
    "combine": "merge.combination",
    "convert_pickle": "convert",
    "diagnose": "doctor",
    "extract": "merge.extraction",
    "find_untrained": "untrained",
    "load_config": "loading.configs",
    "load_preprocessor": "loading.preprocessors",
    "merge_adapters": "merge.several",
    "merge_lora": "merge",
    "merge_models": "merge.models",
    "plan_load": "loading.plan",
    "plan_rewrite": "convert",
    "read_header": "headers",
    "read_mergekit": "merge.mergekit",
    "rewrite": "convert",
    "save_config": "loading.configs",
    "save_preprocessor": "loading.preprocessors",
    "to_bin": "convert",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` on first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'modelyard.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modelyard.weights.{home}"), name)
