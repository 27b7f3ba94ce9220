"""Lineage: what versions were made from, walked level by level, one query each. Knows edges, not operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modelyard.catalog import versions
from modelyard.digest import Digest
from modelyard.errors import ConflictError, NotFoundError
from modelyard.registry.model import LineageGraph, LineageNode, Version, version_of
from modelyard.registry.resolve import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["Direction", "adapter_base", "base_beside", "base_record", "graph"]

Direction = Literal["up", "down", "both"]

_EdgeSet = set[tuple[str, str, str]]


def graph(context: Context, reference: str | Version, direction: Direction) -> LineageGraph:
    """The graph around a version; see `Yard.lineage`."""
    with context.catalog.read() as connection:
        root = record_of(connection, reference)
        edges: _EdgeSet = set()
        if direction != "down":
            edges |= _up(connection, [root.id])
        if direction != "up":
            edges |= _down(connection, [root.id])
        digests = {root.id, *(child for child, _, _ in edges), *(source for _, _, source in edges)}
        records = versions.load(connection, versions.by_digest(connection, digests))
    by_digest: dict[str, list[VersionRecord]] = {digest: [] for digest in digests}
    for record in records:
        by_digest[record.id].append(record)
    order = sorted(by_digest.items(), key=lambda item: (min((record.seq for record in item[1]), default=0), item[0]))
    return LineageGraph(
        root=Digest(root.id),
        nodes=tuple(_node(digest, found) for digest, found in order),
        edges=tuple((Digest(child), kind, Digest(source)) for child, kind, source in sorted(edges)),  # type: ignore[misc]  # checked at commit
    )


def _node(digest: str, records: list[VersionRecord]) -> LineageNode:
    live = [version_of(record) for record in records if not record.deleted]
    known = [version_of(record) for record in records]
    kind = known[0].kind if known else None
    return LineageNode(
        Digest(digest), tuple(version.name for version in live), kind, known[0].repo_type if known else None
    )


def _up(connection: Connection, start: Iterable[str]) -> _EdgeSet:
    """Every edge from these versions to what they were made from, and so on."""
    edges: _EdgeSet = set()
    seen, level = set(start), set(start)
    while level:
        found = versions.load(connection, versions.by_digest(connection, level))
        new: _EdgeSet = {(record.id, kind, target) for record in found for kind, target in record.lineage}
        edges |= new
        level = {target for _, _, target in new} - seen
        seen |= level
    return edges


def _down(connection: Connection, start: Iterable[str]) -> _EdgeSet:
    """Every edge to these versions from what was made from them, and so on."""
    edges: _EdgeSet = set()
    seen, level = set(start), set(start)
    while level:
        new = set(versions.children(connection, level))
        edges |= new
        level = {child for child, _, _ in new} - seen
        seen |= level
    return edges


def base_record(connection: Connection, record: VersionRecord) -> VersionRecord:
    """The nearest version of kind `base` that this one was made from; on the same level, the one committed first.

    Raises:
        NotFoundError: There is none in its lineage.
    """
    seen, level = {record.id}, {record.id}
    while level:
        found = versions.load(connection, versions.by_digest(connection, level))
        bases = [candidate for candidate in found if candidate.kind == "base"]
        if bases:
            return bases[0]
        level = {target for each in found for _, target in each.lineage} - seen
        seen |= level
    name = version_of(record).name
    raise NotFoundError(f"the lineage of `{name}` holds no version of kind `base`", hint=f"yard lineage {name}")


def adapter_base(context: Context, version: Version) -> Version:
    """The model that an adapter was fine-tuned on, by its `finetuned` edge.

    Raises:
        NotFoundError: No such edge, or its version is not in this yard.
        ConflictError: Several edges lead to different models.
    """
    targets = sorted({edge.version for edge in version.lineage if edge.type == "finetuned"})
    with context.catalog.read() as connection:
        found = [version_of(record) for record in versions.load(connection, versions.by_digest(connection, targets))]
    models = {
        candidate.id: candidate
        for candidate in reversed(found)
        if candidate.repo_type == "model" and candidate.kind != "adapter"
    }
    if not models:
        raise NotFoundError(
            f"adapter `{version.name}` does not say which base it was fine-tuned on",
            hint="commit it with from_=[BASE], which makes a `finetuned` edge",
        )
    if len(models) > 1:
        names: list[str] = sorted(candidate.name for candidate in models.values())
        raise ConflictError(
            f"adapter `{version.name}` has several bases: {', '.join(names)}",
            hint="merge it, and load the merged version",
        )
    return next(iter(models.values()))


def base_beside(context: Context, version: Version, wanted: bool | None) -> Version | None:
    """The base that an adapter is checked out with: None for what is no adapter, where none is wanted, or none is known.

    Raises:
        NotFoundError, ConflictError: As `adapter_base`, where one was asked for.
    """
    if version.kind != "adapter" or wanted is False:
        return None
    try:
        return adapter_base(context, version)
    except (NotFoundError, ConflictError):
        if wanted:
            raise
        return None
