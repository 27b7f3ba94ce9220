"""The log: commits, moves of refs, gates, reports and deletions of a repo, in the catalog's own order, newest first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from modelyard.catalog import audit, refs, versions
from modelyard.registry.model import LogEntry, Version, moment
from modelyard.registry.reference import Reference
from modelyard.registry.resolve import find_record, find_repo

if TYPE_CHECKING:
    from sqlalchemy import CTE, Connection

    from modelyard.catalog.audit import AuditRecord
    from modelyard.catalog.repos import RepoRecord
    from modelyard.registry.context import Context

__all__ = ["log"]


def log(context: Context, reference: str | Version, *, limit: int | None, before: int | None) -> list[LogEntry]:
    """See `Yard.log`."""
    text = reference.name if isinstance(reference, Version) else reference
    parsed = Reference.parse(text)
    with context.catalog.read() as connection:
        repo = find_repo(connection, parsed)
        ref, line = _scope(connection, repo, parsed) if "@" in text else (None, None)
        found = audit.entries(connection, repo_id=repo.id, ref=ref, line=line, limit=limit, before=before)
        digests = {digest for record in found for digest in (record.version_id, record.previous_id) if digest}
        numbers = versions.numbers(connection, repo.id, digests)
    names = {digest: f"{parsed.repo_text}@v{number}" for digest, number in numbers.items()}
    return [_entry(record, names) for record in found]


def _scope(connection: Connection, repo: RepoRecord, reference: Reference) -> tuple[str | None, CTE | None]:
    """What a REV asks for: the moves of one tag or alias, or a version with those before it on its branch."""
    ref = refs.find(connection, repo.id, reference.rev)
    if ref is not None and ref.type != "branch":
        return ref.name, None
    return None, versions.ancestry(repo.id, find_record(connection, repo, reference).id)


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
