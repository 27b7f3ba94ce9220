"""A recipe's model from the hub, with the commit that it is pinned to. `weights.hub` does the fetching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.weights import hub
from modelyard.weights.hub import open_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

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


def fetch(source: HubSource, *, offline: bool = False, access: Mapping[str, Any] | None = None) -> Snapshot:
    """Fetch what is missing of a hub model; see `weights.hub.fetch`, whose errors it raises.

    Args:
        source: The model.
        offline: Whether nobody may be asked.
        access: `endpoint`, `cache_dir`, `token` and `progress`, where they are not those of `huggingface_hub`.
    """
    folder = hub.fetch(source, **{"progress": True, **(access or {}), "offline": offline})
    return Snapshot(open_folder(folder), source.repo, folder.name)
