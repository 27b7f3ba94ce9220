"""The values that cross the registry's border: frozen, plain, printable; none holds a connection or an open file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from modelyard.digest import Digest
from modelyard.registry.reference import RepoType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.catalog.versions import VersionRecord

__all__ = [
    "KINDS",
    "LINEAGE_TYPES",
    "Deletion",
    "Deployment",
    "Edge",
    "FileEntry",
    "Kind",
    "LineageGraph",
    "LineageNode",
    "LineageType",
    "LogEntry",
    "Promotion",
    "Ref",
    "Repo",
    "RepoType",
    "RunRecord",
    "Verdict",
    "Version",
    "moment",
    "version_of",
]

Kind = Literal["base", "finetuned", "adapter", "merged", "quantized", "exported"]
LineageType = Literal["finetuned", "merged", "quantized", "exported", "converted", "trained-on", "imported"]

KINDS: tuple[str, ...] = get_args(Kind)
LINEAGE_TYPES: tuple[str, ...] = get_args(LineageType)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a version. `git_blob` is the SHA-1 that git gives a small file; the Hub's protocol reports it."""

    path: str
    size: int
    blake3: Digest
    sha256: str
    git_blob: str | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """What a version was made from, and how."""

    type: LineageType
    version: Digest


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable commit in a repo. `id` is the digest of its manifest, `number` its place in the repo.

    `derivation` is what the committer says the files were computed by; a hint, and no part of the id.
    """

    repo_type: RepoType
    repo: str
    number: int
    id: Digest
    kind: Kind | None
    parent: Digest | None
    files: tuple[FileEntry, ...] = field(repr=False)
    lineage: tuple[Edge, ...] = field(repr=False)
    inputs: Digest | None = field(repr=False)
    created_at: datetime = field(repr=False)
    author: str = field(repr=False)
    message: str = field(repr=False)
    metadata: dict[str, str] = field(repr=False, hash=False)
    deleted: bool = False
    derivation: dict[str, Any] | None = field(default=None, repr=False, hash=False)

    @property
    def name(self) -> str:
        """The version as a reference: `ns/name@v7`, or `datasets/ns/name@v7`."""
        return f"{self.repo_text}@v{self.number}"

    @property
    def repo_text(self) -> str:
        """The repo as a reference."""
        return f"datasets/{self.repo}" if self.repo_type == "dataset" else self.repo

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The file of this name, or None."""
        return next((entry for entry in self.files if entry.path == path), None)

    def to_dict(self) -> dict[str, Any]:
        """The version as plain JSON values."""
        return {
            "repo_type": self.repo_type,
            "repo": self.repo,
            "name": self.name,
            "number": self.number,
            "id": str(self.id),
            "kind": self.kind,
            "parent": self.parent,
            "size": self.size,
            "files": [
                {"path": f.path, "size": f.size, "blake3": str(f.blake3), "sha256": f.sha256} for f in self.files
            ],
            "lineage": [{"type": edge.type, "version": str(edge.version)} for edge in self.lineage],
            "inputs": self.inputs,
            "created_at": self.created_at.isoformat(),
            "author": self.author,
            "message": self.message,
            "metadata": dict(self.metadata),
            "deleted": self.deleted,
            "derivation": self.derivation,
        }


@dataclass(frozen=True, slots=True)
class Repo:
    """A line of `yard ls`: how many versions, the highest number, and their bytes together (before deduplication)."""

    repo_type: RepoType
    name: str
    versions: int
    latest: int | None
    size: int
    refs: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Ref:
    """A name for a version in a repo."""

    name: str
    type: Literal["branch", "tag", "alias"]
    version: Digest
    number: int


@dataclass(frozen=True, slots=True)
class Promotion:
    """What `promote` or `rollback` did. `moved` is False when the alias was there already."""

    repo_type: RepoType
    repo: str
    alias: str
    version: Version
    previous: Version | None
    moved: bool
    verdict: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One change of a repo, in the catalog's order (`seq`); `version` and `previous` are names such as `ns/name@v7`."""

    seq: int
    at: datetime
    author: str
    action: str
    repo: str | None
    ref: str | None
    version: str | None
    previous: str | None
    detail: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Deletion:
    """What `delete` removed: a version's name or a ref, and the names that went with it."""

    what: Literal["version", "ref"]
    name: str
    released: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LineageNode:
    """A version in a lineage graph; one digest may have several names, and none when the yard does not hold it."""

    id: Digest
    names: tuple[str, ...]
    kind: Kind | None
    repo_type: RepoType | None


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """Versions and how they were made: edges are `(child, type, source)`."""

    root: Digest
    nodes: tuple[LineageNode, ...]
    edges: tuple[tuple[Digest, LineageType, Digest], ...]

    def to_dict(self) -> dict[str, Any]:
        """The graph as plain JSON values."""
        return {
            "root": str(self.root),
            "nodes": [
                {"id": str(n.id), "names": list(n.names), "kind": n.kind, "repo_type": n.repo_type} for n in self.nodes
            ],
            "edges": [{"child": str(child), "type": kind, "source": str(source)} for child, kind, source in self.edges],
        }


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One execution of a recipe step, found by the digest of its inputs."""

    key: str
    step: str
    state: Literal["running", "finished", "failed"]
    attempt: int
    owner: str
    inputs: dict[str, Any] = field(hash=False)
    outputs: dict[str, Any] = field(hash=False)
    error: str | None
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a server keeps loaded. `alive` says whether its process runs, None when it is on another machine."""

    id: str
    reference: str
    version: Digest
    version_name: str
    address: str
    owner: str
    info: dict[str, Any] = field(hash=False)
    started_at: datetime
    heartbeat_at: datetime
    alive: bool | None


class Verdict(Protocol):
    """What a judge says of a candidate."""

    @property
    def decision(self) -> str:
        """`pass`, `fail` or `more` (examples are needed)."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, for people."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        ...


def moment(text: str) -> datetime:
    """A point in time as the catalog keeps it."""
    return datetime.fromisoformat(text)


def version_of(record: VersionRecord) -> Version:
    """A `Version` from the catalog's record."""
    files = tuple(FileEntry(f.path, f.size, Digest(f.blake3), f.sha256, f.git_blob) for f in record.files)
    metadata: Mapping[str, str] = json.loads(record.metadata)
    return Version(
        repo_type=record.repo.type,  # type: ignore[arg-type]  # the table's CHECK allows no other
        repo=record.repo.name,
        number=record.number,
        id=Digest(record.id),
        kind=record.kind,  # type: ignore[arg-type]  # checked when it was committed
        parent=Digest(record.parent) if record.parent else None,
        files=files,
        lineage=tuple(Edge(kind, Digest(target)) for kind, target in record.lineage),  # type: ignore[arg-type]  # likewise
        inputs=Digest(record.inputs) if record.inputs else None,
        created_at=moment(record.created_at),
        author=record.author,
        message=record.message,
        metadata=dict(metadata),
        deleted=record.deleted,
        derivation=json.loads(record.derivation) if record.derivation else None,
    )
