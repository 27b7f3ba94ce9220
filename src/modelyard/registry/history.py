"""The log: commits, moves of refs, gates, reports and deletions of a repo, in the catalog's own order, newest first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from modelyard.catalog import audit, refs, versions
from modelyard.registry.model import LogEntry, Version, moment
from modelyard.registry.reference import Reference
from modelyard.registry.resolve import find_record, find_repo

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelyard.catalog.audit import AuditRecord
    from modelyard.catalog.repos import RepoRecord
    from modelyard.catalog.versions import Ancestor
    from modelyard.registry.context import Context

__all__ = ["log"]


def log(context: Context, reference: str | Version, *, limit: int | None, before: int | None) -> list[LogEntry]:
    """See `Yard.log`."""
    text = reference.name if isinstance(reference, Version) else reference
    parsed = Reference.parse(text)
    with context.catalog.read() as connection:
        repo = find_repo(connection, parsed)
        numbers = versions.parents(connection, repo.id)
        if "@" not in text:
            found = audit.entries(connection, repo_id=repo.id, limit=limit, before=before)
        else:
            found = _about(connection, repo, parsed, limit=limit, before=before)
    names = _names(repo, numbers)
    return [_entry(record, names) for record in found]


def _about(
    connection: Connection, repo: RepoRecord, reference: Reference, *, limit: int | None, before: int | None
) -> list[AuditRecord]:
    """Changes of one ref, or of a version and those before it on its branch."""
    ref = refs.find(connection, repo.id, reference.rev)
    everything = audit.entries(connection, repo_id=repo.id, before=before)
    if ref is not None and ref.type != "branch":
        kept = [record for record in everything if record.ref == ref.name]
    else:
        line = _ancestry(connection, repo, find_record(connection, repo, reference).id)
        kept = [record for record in everything if record.version_id in line]
    return kept if limit is None else kept[:limit]


def _ancestry(connection: Connection, repo: RepoRecord, digest: str) -> set[str]:
    """A version and its parents, back to the first commit of the branch."""
    known = versions.parents(connection, repo.id)
    line: set[str] = set()
    at: str | None = digest
    while at is not None and at not in line:
        line.add(at)
        at = known[at].parent if at in known else None
    return line


def _names(repo: RepoRecord, numbers: dict[str, Ancestor]) -> dict[str, str]:
    prefix = "datasets/" if repo.type == "dataset" else ""
    return {digest: f"{prefix}{repo.name}@v{found.number}" for digest, found in numbers.items()}


def _entry(record: AuditRecord, names: dict[str, str]) -> LogEntry:
    prefix = "datasets/" if record.repo_type == "dataset" else ""
    return LogEntry(
        seq=record.seq,
        at=moment(record.at),
        author=record.author,
        action=record.action,
        repo=f"{prefix}{record.repo}" if record.repo else None,
        ref=record.ref,
        version=names.get(record.version_id or "", record.version_id),
        previous=names.get(record.previous_id or "", record.previous_id),
        detail=json.loads(record.detail),
    )
