"""A model from the hub, into the cache that every Hugging Face tool shares: only what a model needs, pinned to a commit.

Knows no yard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import AuthError, InputError, NotFoundError
from modelyard.weights.files import Files, FolderFiles

if TYPE_CHECKING:
    from modelyard.recipes.sources import HubSource

__all__ = ["Snapshot", "fetch", "open_folder"]

PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*",
    "chat_template*",
    "LICENSE*",
    "README.md",
)
"""What is fetched. Weights in a pickle and code are not among them: neither would be loaded."""


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


def open_folder(folder: Path) -> Files:
    """A model folder as `Files`; a snapshot in a hub cache, whose files are links into it, too."""
    is_snapshot = folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir()
    return FolderFiles(folder, links_within=folder.parent.parent if is_snapshot else None)


def fetch(source: HubSource, *, offline: bool = False) -> Snapshot:
    """Fetch what is missing of a hub model; with everything in the cache only the revision is asked for.

    With `offline` nobody is asked, and everything has to be in the cache.

    Raises:
        NotFoundError: The hub has no such model or revision, or this process is offline and the cache has none.
        AuthError: The model is gated or private.
        InputError: The hub cannot be reached, or the model has no safetensors weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"hf://{source.repo}" + (f"@{source.revision}" if source.revision else "")
    try:
        folder = Path(
            snapshot_download(
                source.repo, revision=source.revision, allow_patterns=list(PATTERNS), local_files_only=offline
            )
        )
    except GatedRepoError as error:
        raise AuthError(f"`{name}` is gated", hint="accept its terms on the hub, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise NotFoundError(
            f"`{name}`: the hub has no such revision", hint="leave out `@...` for the default"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(f"`{name}`: the hub has no such model, or it is private", hint="check the id") from error
    except LocalEntryNotFoundError as error:
        raise NotFoundError(f"`{name}` is not in the local cache, and {_cause(offline)}", hint=_OFFLINE_HINT) from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"`{name}` could not be fetched: {str(error).splitlines()[0]}", hint=_OFFLINE_HINT) from error
    files = open_folder(folder)
    if not any(file.endswith(".safetensors") for file in files.names()):
        raise InputError(
            f"`{name}` has no safetensors weights",
            hint="fetch it by hand and run `yard convert`; weights in a pickle are never loaded",
        )
    return Snapshot(files, source.repo, folder.name)


_OFFLINE_HINT = "use a folder on this machine (`base: ./folder`) or a version of the yard, or go online"


def _cause(offline: bool) -> str:
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if offline or constants.HF_HUB_OFFLINE else "the hub cannot be reached"
