"""The registry: a store and a catalog put together as a `Yard`, and the values that cross its border.

::

    yard = modelyard.open()
    version = yard.commit("out", to="team/intents", kind="merged", from_=["team/base", "team/adapter"])
    yard.promote(version, to="production")

Knows names, versions, history and when an alias may move; not how bytes are kept, what a tensor means, or how good a
model is.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modelyard.registry.context import Judge
from modelyard.registry.model import (
    Deletion,
    Deployment,
    Edge,
    FileEntry,
    Kind,
    LineageGraph,
    LineageNode,
    LineageType,
    LogEntry,
    Promotion,
    Ref,
    Repo,
    RepoType,
    RunRecord,
    Verdict,
    Version,
)
from modelyard.registry.reference import Reference
from modelyard.registry.yard import Yard

if TYPE_CHECKING:
    from modelyard.registry.adoption import Adopted
    from modelyard.registry.bundle import Packed
    from modelyard.registry.collection_outcome import Collection
    from modelyard.registry.findings import CheckReport, Finding
    from modelyard.registry.imports import Imported, Skipped
    from modelyard.registry.layout_writing import WrittenLayout
    from modelyard.registry.rebuild import Rebuilt
    from modelyard.registry.savings import Compaction
    from modelyard.registry.signing import Signed
    from modelyard.registry.usage import Usage

__all__ = [
    "Adopted",
    "CheckReport",
    "Collection",
    "Compaction",
    "Deletion",
    "Deployment",
    "Edge",
    "FileEntry",
    "Finding",
    "Imported",
    "Judge",
    "Kind",
    "LineageGraph",
    "LineageNode",
    "LineageType",
    "LogEntry",
    "Packed",
    "Promotion",
    "Rebuilt",
    "Ref",
    "Reference",
    "Repo",
    "RepoType",
    "RunRecord",
    "Signed",
    "Skipped",
    "Usage",
    "Verdict",
    "Version",
    "WrittenLayout",
    "Yard",
]

# What few programs need is imported when it is asked for: listing a yard should not pay for it.
_HOME = {
    "Adopted": "adoption",
    "CheckReport": "findings",
    "Collection": "collection_outcome",
    "Compaction": "savings",
    "Finding": "findings",
    "Imported": "imports",
    "Packed": "bundle",
    "Rebuilt": "rebuild",
    "Signed": "signing",
    "Skipped": "imports",
    "Usage": "usage",
    "WrittenLayout": "layout_writing",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` on first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'modelyard.registry' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modelyard.registry.{home}"), name)
