"""What a commit accepts: folders, files and streams become a list of safe names, and edges become digests that exist.

Nothing here writes to the yard. Knows names and links, not tensors; `modelyard.weights` judges those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.catalog import versions
from modelyard.digest import Digest
from modelyard.errors import InputError, NotFoundError
from modelyard.registry.model import KINDS, LINEAGE_TYPES, Edge, Kind, LineageType, Version, version_of
from modelyard.registry.names import check_paths
from modelyard.registry.resolve import record_of
from modelyard.registry.streams import Content, Contents, spool_folder
from modelyard.weights.files import Files, FolderFiles, SingleFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from modelyard.registry.reference import RepoType

__all__ = [
    "Content",
    "Contents",
    "Origin",
    "check_kind",
    "derivation_text",
    "edges_of",
    "open_source",
    "recognised_kind",
    "source_names",
]

Origin = str | Version | Edge | tuple[LineageType, str | Version]
"""What `from_` takes: a reference or version, whose edge follows from the kind, or the edge itself."""

_EDGE_OF_KIND: dict[str | None, LineageType] = {
    "finetuned": "finetuned",
    "adapter": "finetuned",
    "merged": "merged",
    "quantized": "quantized",
    "exported": "exported",
    "base": "converted",
    None: "imported",
}


@contextmanager
def open_source(source: Path | Files | Mapping[str, Content], spool: Path | None = None) -> Iterator[Files]:
    """A folder, a single file, a `Files`, or contents by name as `Files`, while the block runs.

    Streams are written to a temporary folder in `spool` (best on the store's own file system), when they are first asked for.

    Raises:
        InputError: There is nothing at the path, or it is neither a folder nor a regular file.
    """
    if isinstance(source, Mapping):
        with spool_folder(spool) as folder:
            yield Contents(source, folder)
    elif not isinstance(source, Path):
        yield source
    elif source.is_dir():
        yield FolderFiles(source)
    elif source.is_symlink() or source.is_file():
        yield SingleFile(source)
    elif source.exists():
        raise InputError(f"`{source}` is neither a folder nor a regular file")
    else:
        raise InputError(f"there is nothing at `{source}`", hint="give a folder with the files of the version")


def source_names(files: Files) -> list[str]:
    """The names to commit, sorted by their bytes.

    Raises:
        InputError: There are none, or one is a link, a special file, hostile, or the same as another on some system.
    """
    names = files.names()
    if not names:
        raise InputError(f"`{files.label}` holds no file", hint="give a folder with the files of the version")
    check_paths(names)
    return sorted(names, key=str.encode)


def check_kind(repo_type: RepoType, kind: str | None) -> None:
    """Refuse a kind that is not one, or any kind for a dataset."""
    if kind is None:
        return
    if repo_type == "dataset":
        raise InputError("a dataset has no kind", hint="leave `kind` out")
    if kind not in KINDS:
        raise InputError(f"`{kind}` is not a kind", hint=f"kinds are {', '.join(KINDS)}")


def derivation_text(derivation: Mapping[str, Any] | None) -> str | None:
    """What the committer says the files were computed by, as it is kept; None where nothing is said.

    Raises:
        InputError: It names no operation, or holds what JSON cannot.
    """
    if derivation is None:
        return None
    if not isinstance(derivation.get("operation"), str):
        raise InputError("a derivation names its `operation`", hint='for example derivation={"operation": "lora/1"}')
    try:
        return json.dumps(dict(derivation), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the derivation cannot be kept as JSON: {error}") from error


def recognised_kind(names: Iterable[str], *, has_sources: bool) -> Kind | None:
    """The kind of a first commit that names none: None unless the files are a complete model or adapter.

    >>> recognised_kind(["config.json", "model.safetensors"], has_sources=False)
    'base'
    """
    found = set(names)
    weights = any(name.endswith(".safetensors") and "/" not in name for name in found)
    if not weights:
        return None
    if "adapter_config.json" in found:
        return "adapter"
    if "config.json" not in found:
        return None
    return "finetuned" if has_sources else "base"


def edges_of(
    connection: Connection, origins: str | Version | Edge | Iterable[Origin], kind: Kind | None
) -> tuple[Edge, ...]:
    """Lineage edges, without repetition, in order of type and version.

    Raises:
        InputError: An edge's type is not one.
        NotFoundError: Its version is not in this yard.
    """
    if isinstance(origins, str | Version | Edge):
        origins = (origins,)
    found = {_edge(connection, origin, kind) for origin in origins}
    return tuple(sorted(found, key=lambda edge: (edge.type, edge.version)))


def _edge(connection: Connection, origin: Origin, kind: Kind | None) -> Edge:
    if isinstance(origin, Edge):
        if not versions.by_digest(connection, [origin.version]):
            raise NotFoundError(
                f"no version with the id {origin.version.short} is in this yard", hint="commit it first"
            )
        return Edge(_edge_type(origin.type), origin.version)
    if isinstance(origin, tuple):
        edge_type, source = origin
        return Edge(_edge_type(edge_type), Digest(record_of(connection, source).id))
    source_version = version_of(record_of(connection, origin))
    trained_on = source_version.repo_type == "dataset"
    return Edge("trained-on" if trained_on else _EDGE_OF_KIND[kind], source_version.id)


def _edge_type(text: str) -> LineageType:
    if text not in LINEAGE_TYPES:
        raise InputError(f"`{text}` is not a type of lineage", hint=f"types are {', '.join(LINEAGE_TYPES)}")
    return text  # type: ignore[return-value]  # just checked
