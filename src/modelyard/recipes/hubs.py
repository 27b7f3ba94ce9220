"""A recipe's model from the hub, with the commit that it is pinned to. `weights.hub` does the fetching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.weights import hub
from modelyard.weights.hub import open_folder

if TYPE_CHECKING:
    from typing import Any

    from modelyard.registry import Yard
    from modelyard.weights.files import Files
    from modelyard.weights.hub import HubSource

__all__ = ["Snapshot", "fetch", "open_folder"]


@dataclass(frozen=True)
class Snapshot:
    """A model's files at one commit of the hub.

    Attributes:
        files: The files.
        repo: `org/name`.
        commit: The hub's commit id, 40 hex digits.
    """

    files: Files
    repo: str
    commit: str


def fetch(source: HubSource, *, yard: Yard | None = None, offline: bool = False) -> Snapshot:
    """Fetch what is missing of a hub's model; see `weights.hub.fetch`, whose errors it raises.

    Args:
        source: The model.
        yard: Knows what the surroundings say about the hub; without one, `huggingface_hub` is left to find that out.
        offline: Whether nobody may be asked.
    """
    asked: dict[str, Any] = {"progress": True, **({"offline": True} if offline else {})}
    folder = yard.fetch(str(source), **asked) if yard is not None else hub.fetch(source, **asked)
    return Snapshot(open_folder(folder), source.repo, folder.name)
