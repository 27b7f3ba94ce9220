"""Which files a compaction takes up, and why a version's files stay whole.

Cold files in the order in which they were committed, so that a base comes before what was made from it; then whole files that
no live version has and that stay only because something is made from their segments. Knows the catalog's rows; reads no bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.catalog import counters, deployments, liveness, refs, segments, versions
from modelyard.catalog import files as files_table
from modelyard.catalog.usage import first_versions
from modelyard.errors import ConflictError
from modelyard.registry.model import version_of
from modelyard.registry.resolve import record_of
from modelyard.registry.settlement import KEPT_RAW

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from modelyard.catalog.files import FileRow
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.model import Version

__all__ = ["Group", "Selection", "is_settled", "select", "why_hot"]


@dataclass
class Group:
    """Files that are taken up with one version's lineage in view; `orphan` when no live version has them."""

    record: VersionRecord
    orphan: bool = False
    files: list[FileRow] = field(default_factory=list)


@dataclass(frozen=True)
class Selection:
    """What a compaction takes up.

    Attributes:
        groups: Files by version, in order.
        cold: Every file that it may take the whole form from: segments in other whole files stay where they are.
        collections: The counter of collections before anything was looked at.
    """

    groups: tuple[Group, ...]
    cold: frozenset[str]
    collections: int

    @property
    def size(self) -> int:
        """Bytes of the files that are taken up."""
        return sum(row.size for group in self.groups for row in group.files)


def is_settled(encoding: str | None, params: str) -> bool:
    """Whether a segment is as compaction would leave it."""
    return encoding in {"packed", "delta", "derived"} or (encoding == "raw" and params == KEPT_RAW)


def select(connection: Connection, references: Sequence[str | Version], *, used_since: str) -> Selection:
    """The files to take up: all cold ones, or those of these versions.

    Raises:
        NotFoundError, RefError: As resolving a reference does.
        ConflictError: A version that is named is hot; the message says why, and nothing is done.
    """
    collections = counters.current(connection, "collections")
    cold = liveness.cold_files(connection, used_since=used_since)
    named = [record_of(connection, reference) for reference in references]
    hot = liveness.hot_versions(connection, used_since=used_since) if named else set()
    for record in named:
        if record.seq in hot:
            reasons = why_hot(connection, record, used_since)
            raise ConflictError(
                f"`{version_of(record).name}` stays whole, because it is in use: {'; '.join(reasons)}",
                hint="yard compact takes what is not in use; it may be compacted once these names are gone",
                reasons=reasons,
            )
    orphans = _orphans(connection)
    wanted = {entry.blake3 for record in named for entry in record.files}
    chosen = [file for file in cold if not named or file in wanted]
    groups = [*_grouped(connection, chosen, live=True), *_grouped(connection, [] if named else orphans, live=False)]
    return Selection(tuple(groups), frozenset(cold) | frozenset(orphans), collections)


def _orphans(connection: Connection) -> list[str]:
    """Whole files of no live version that are needed for some of their segments."""
    return sorted(liveness.needed_files(connection) - liveness.live_files(connection))


def _grouped(connection: Connection, names: Sequence[str], *, live: bool) -> list[Group]:
    """Files that are not settled yet, by the first version that has them, in the order of those versions."""
    open_ = _unsettled(connection, names)
    first = first_versions(connection, open_, live=live)
    first |= first_versions(connection, open_.keys() - first.keys(), live=False)
    groups = {
        record.seq: Group(record, orphan=not live) for record in versions.load(connection, sorted(set(first.values())))
    }
    for name, row in open_.items():
        if name in first:
            groups[first[name]].files.append(row)
    return list(groups.values())


def _unsettled(connection: Connection, names: Sequence[str]) -> dict[str, FileRow]:
    """Of these files, in order, those that are whole or have a raw segment that nobody looked at."""
    rows = files_table.find(connection, names)
    scattered = [name for name in names if name in rows and not rows[name].whole]
    done: set[str] = set()
    for start in range(0, len(scattered), 100):
        pieces = files_table.pieces_of(connection, scattered[start : start + 100])
        found = segments.find(connection, {piece.segment for those in pieces.values() for piece in those})
        for name, those in pieces.items():
            if not any(_is_open(found.get(piece.segment)) for piece in those):
                done.add(name)
    return {name: rows[name] for name in names if name in rows and rows[name].size and name not in done}


def _is_open(row: segments.SegmentRow | None) -> bool:
    """Whether a segment of a file that is not whole lies raw in a pack, as a commit left it."""
    return row is not None and row.encoding is not None and not is_settled(row.encoding, row.params)


def why_hot(connection: Connection, record: VersionRecord, used_since: str) -> list[str]:
    """Why a version is hot, in words."""
    reasons = [f"{ref.type} `{ref.name}`" for ref in refs.names_of(connection, record.seq)]
    reasons += [f"rollback of `{alias}`" for alias in refs.former_holders(connection, record.seq)]
    reasons += [f"deployment `{found}`" for found in deployments.of_version(connection, record.seq)]
    used = [row.used_at for row in _rows(connection, record) if row.used_at is not None and row.used_at >= used_since]
    if used:
        reasons.append(f"used at {max(used)[:19]}")
    return reasons or ["an adapter in use was trained on it, or somebody works with it now"]


def _rows(connection: Connection, record: VersionRecord) -> Iterable[FileRow]:
    return files_table.find(connection, [entry.blake3 for entry in record.files]).values()
