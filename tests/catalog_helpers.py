"""Rows for catalogs in tests: a time, digests, and versions that need no store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from modelyard.catalog import repos, versions
from modelyard.catalog.versions import FileRecord

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from modelyard.catalog import Catalog, Transaction
    from modelyard.catalog.repos import RepoRecord

__all__ = ["NOW", "add", "digest", "write"]

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def write(catalog: Catalog) -> AbstractContextManager[Transaction]:
    """A write transaction of `ana`, always at the same time."""
    return catalog.write(author="ana", at=NOW)


def digest(number: int) -> str:
    """A digest that no bytes have."""
    return f"{number:064x}"


def add(
    tx: Transaction,
    repo: RepoRecord,
    digest: str,
    *,
    edges: tuple[tuple[str, str], ...] = (),
    files: int = 1,
    metadata: str = "{}",
    derivation: str | None = None,
) -> int:
    """A version with this digest, whose files all have it too; returns its `seq`."""
    return versions.save(
        tx,
        repo,
        number=repos.next_number(tx, repo.id),
        digest=digest,
        kind=None,
        parent=None,
        inputs=None,
        message="",
        metadata=metadata,
        files=[FileRecord(f"f{at}", 10, digest, digest, None) for at in range(files)],
        edges=edges,
        derivation=derivation,
    )
