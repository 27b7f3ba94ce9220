"""The log: commits, moves of refs, gates, reports and deletions of a repo, in the catalog's own order, newest first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from modelyard.catalog import audit, refs, versions
from modelyard.registry.model import LogEntry, Version, moment
from modelyard.registry.reference import Reference
from modelyard.registry.resolve import find_record, find_repo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from modelyard.catalog.audit import AuditRecord
    from modelyard.catalog.repos import RepoRecord
    from modelyard.registry.context import Context

__all__ = ["log"]

_PAGE = 1000  # entries read at a time


def log(
    context: Context,
    reference: str | Version,
    *,
    limit: int | None,
    before: int | None,
    where: Mapping[str, str] | None = None,
) -> list[LogEntry]:
    """See `Yard.log`."""
    text = reference.name if isinstance(reference, Version) else reference
    parsed = Reference.parse(text)
    with context.catalog.read() as connection:
        repo = find_repo(connection, parsed)
        concerns = _scope(connection, repo, parsed) if "@" in text else None
        wanted = {record.id for record in versions.in_repo(connection, repo.id, where=where)} if where else None
        found: list[AuditRecord] = []
        while limit is None or len(found) < limit:
            page = audit.entries(connection, repo_id=repo.id, limit=_PAGE, before=before)
            found += [
                record
                for record in page
                if (wanted is None or record.version_id in wanted) and (concerns is None or concerns(record))
            ]
            if len(page) < _PAGE:
                break
            before = page[-1].seq
        found = found[:limit]
        digests = {digest for record in found for digest in (record.version_id, record.previous_id) if digest}
        numbers = versions.numbers(connection, repo.id, digests)
    names = {digest: f"{parsed.repo_text}@v{number}" for digest, number in numbers.items()}
    return [_entry(record, names) for record in found]


def _scope(connection: Connection, repo: RepoRecord, reference: Reference) -> Callable[[AuditRecord], bool]:
    """Which entries a REV asks for: what moved a ref, also by the deletion of a version; of a branch or version, its line."""
    ref = refs.find(connection, repo.id, reference.rev)
    name = ref.name if ref is not None else _former_name(connection, repo, reference)
    line: set[str | None] = set()
    if name is None or (ref is not None and ref.type == "branch"):
        start = ref.version_id if ref is not None else find_record(connection, repo, reference).id
        ancestry = versions.ancestry(repo.id, start)
        line = {record.version_id for record in audit.entries(connection, repo_id=repo.id, line=ancestry)}

    def concerns(record: AuditRecord) -> bool:
        if record.version_id in line:
            return True
        if name is None:
            return False
        return record.ref == name or (record.action == "delete" and name in json.loads(record.detail)["refs"])

    return concerns


def _former_name(connection: Connection, repo: RepoRecord, reference: Reference) -> str | None:
    """The REV, where it was a ref's name once and is none now."""
    if reference.number is not None or reference.prefix is not None or reference.rev == "latest":
        return None
    return reference.rev if audit.entries(connection, repo_id=repo.id, ref=reference.rev, limit=1) else None


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
