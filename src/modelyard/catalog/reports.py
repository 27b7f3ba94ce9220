"""Reports as rows: which were made of which version, with their headline figures. The reports themselves are in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, insert, select

from modelyard.catalog.schema import reports, versions

if TYPE_CHECKING:
    from modelyard.catalog.transaction import Transaction

__all__ = ["ReportRecord", "of_version", "save"]


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """A report's digest and headline; `metrics` is JSON text."""

    seq: int
    digest: str
    dataset: str | None
    task: str
    n: int
    metrics: str
    created_at: str


def save(
    tx: Transaction, version_seq: int, digest: str, *, dataset: str | None, task: str, n: int, metrics: str
) -> bool:
    """Note a report of a version; False when it was noted before."""
    known = select(reports.c.seq).where(reports.c.version_seq == version_seq, reports.c.digest == digest)
    if tx.connection.execute(known).scalar_one_or_none() is not None:
        return False
    row = {
        "seq": tx.next("report"),
        "version_seq": version_seq,
        "digest": digest,
        "dataset": dataset,
        "task": task,
        "n": n,
    }
    tx.connection.execute(insert(reports).values(**row, metrics=metrics, created_at=tx.at))
    return True


def of_version(connection: Connection, version_seq: int) -> list[ReportRecord]:
    """A version's reports in the order they were made, whichever repo they were made in.

    A report is about an id: the same files with the same lineage may be committed to several repos.
    """
    same = select(versions.c.id).where(versions.c.seq == version_seq).scalar_subquery()
    rows = connection.execute(
        select(reports)
        .join(versions, versions.c.seq == reports.c.version_seq)
        .where(versions.c.id == same)
        .order_by(reports.c.seq)
    )
    found = {
        row.digest: ReportRecord(row.seq, row.digest, row.dataset, row.task, row.n, row.metrics, row.created_at)
        for row in reversed(rows.all())
    }
    return list(reversed(found.values()))
