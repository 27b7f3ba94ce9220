"""The audit log: every change of a ref, version, gate, report or deployment, in the catalog's own order."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import CTE, Connection, select

from modelyard.catalog.schema import audit, repos

__all__ = ["AuditRecord", "entries"]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change; `detail` is JSON text."""

    seq: int
    at: str
    author: str
    action: str
    repo_type: str | None
    repo: str | None
    ref: str | None
    version_id: str | None
    previous_id: str | None
    detail: str


def entries(
    connection: Connection,
    *,
    repo_id: int | None = None,
    ref: str | None = None,
    line: CTE | None = None,
    limit: int | None = None,
    before: int | None = None,
) -> list[AuditRecord]:
    """Changes, the newest first, with sequence numbers below `before`, at most `limit`.

    Args:
        connection: A transaction.
        repo_id: Of this repo only.
        ref: Of this name only.
        line: Of versions in this `versions.ancestry` only.
        limit: At most so many.
        before: Only those with smaller sequence numbers.
    """
    query = select(audit, repos.c.type, repos.c.name).outerjoin(repos, repos.c.id == audit.c.repo_id)
    if repo_id is not None:
        query = query.where(audit.c.repo_id == repo_id)
    if ref is not None:
        query = query.where(audit.c.ref == ref)
    if line is not None:
        query = query.where(audit.c.version_id.in_(select(line.c.id)))
    if before is not None:
        query = query.where(audit.c.seq < before)
    query = query.order_by(audit.c.seq.desc())
    if limit is not None:
        query = query.limit(limit)
    return [
        AuditRecord(
            row.seq,
            row.at,
            row.author,
            row.action,
            row.type,
            row.name,
            row.ref,
            row.version_id,
            row.previous_id,
            row.detail,
        )
        for row in connection.execute(query)
    ]
