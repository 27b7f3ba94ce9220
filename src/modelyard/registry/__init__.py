"""The registry: a store and a catalog put together as a `Yard`, and the values that cross its border.

::

    yard = modelyard.open()
    version = yard.commit("out", to="team/intents", kind="merged", from_=["team/base", "team/adapter"])
    yard.promote(version, to="production")

Knows names, versions, history and when an alias may move; not how bytes are kept, what a tensor means, or how good a
model is.
"""

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

__all__ = [
    "Deletion",
    "Deployment",
    "Edge",
    "FileEntry",
    "Judge",
    "Kind",
    "LineageGraph",
    "LineageNode",
    "LineageType",
    "LogEntry",
    "Promotion",
    "Ref",
    "Reference",
    "Repo",
    "RepoType",
    "RunRecord",
    "Verdict",
    "Version",
    "Yard",
]
