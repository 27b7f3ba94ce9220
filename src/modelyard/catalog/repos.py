"""Repos: their names, types and the counter that numbers their versions. Knows nothing of what versions hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, and_, bindparam, func, insert, select, tuple_, update

from modelyard.catalog.schema import refs, repos, versions

if TYPE_CHECKING:
    from modelyard.catalog.transaction import Transaction

__all__ = ["RepoRecord", "RepoSummary", "ensure", "find", "names", "next_number", "summaries"]


# Built once: a statement costs more to put together than to run.
_BY_NAME = select(repos.c.id).where(repos.c.type == bindparam("repo_type"), repos.c.name == bindparam("repo_name"))


@dataclass(frozen=True, slots=True)
class RepoRecord:
    """A repo: its row, `model` or `dataset`, and `namespace/name`."""

    id: int
    type: str
    name: str

    @property
    def key(self) -> tuple[int, str, str]:
        """What `Transaction.record` wants to know of a repo."""
        return (self.id, self.type, self.name)


@dataclass(frozen=True, slots=True)
class RepoSummary:
    """A line of a listing: versions that are not deleted, the highest number, its bytes and moment, and the refs."""

    type: str
    name: str
    created_at: str
    versions: int
    latest: int | None
    size: int
    updated_at: str
    refs: int


def find(connection: Connection, repo_type: str, name: str) -> RepoRecord | None:
    """The repo of this type and name, or None."""
    row = connection.execute(_BY_NAME, {"repo_type": repo_type, "repo_name": name}).one_or_none()
    return RepoRecord(row.id, repo_type, name) if row else None


def ensure(tx: Transaction, repo_type: str, name: str) -> RepoRecord:
    """The repo of this type and name, created when there is none."""
    found = find(tx.connection, repo_type, name)
    if found is not None:
        return found
    record = RepoRecord(tx.next("repo"), repo_type, name)
    tx.connection.execute(
        insert(repos).values(id=record.id, type=repo_type, name=name, last_number=0, created_at=tx.at)
    )
    return record


def next_number(tx: Transaction, repo_id: int) -> int:
    """Take the repo's next version number: 1, 2, 3 in order of commit."""
    query = (
        update(repos)
        .where(repos.c.id == repo_id)
        .values(last_number=repos.c.last_number + 1)
        .returning(repos.c.last_number)
    )
    return int(tx.connection.execute(query).scalar_one())


def names(connection: Connection) -> list[tuple[str, str]]:
    """Type and name of every repo, in order; what near matches are looked for in."""
    return [
        (row.type, row.name)
        for row in connection.execute(select(repos.c.type, repos.c.name).order_by(repos.c.type, repos.c.name))
    ]


def summaries(
    connection: Connection,
    repo_type: str | None = None,
    *,
    limit: int | None = None,
    after: tuple[str, str] | None = None,
) -> list[RepoSummary]:
    """Repos in order of name and type, at most `limit`, those after the given `(name, type)`; two queries, however many there are."""
    page = select(repos).order_by(repos.c.name, repos.c.type)
    if repo_type is not None:
        page = page.where(repos.c.type == repo_type)
    if after is not None:
        page = page.where(tuple_(repos.c.name, repos.c.type) > after)
    if limit is not None:
        page = page.limit(limit)
    chosen = page.subquery()
    live = and_(versions.c.repo_id == chosen.c.id, versions.c.deleted == 0)
    counted = (
        select(
            chosen.c.id,
            func.count(versions.c.number).label("versions"),
            func.max(versions.c.number).label("latest"),
            func.coalesce(func.sum(versions.c.size), 0).label("bytes"),
            func.coalesce(func.max(versions.c.created_at), chosen.c.created_at).label("updated_at"),
        )
        .select_from(chosen.outerjoin(versions, live))
        .group_by(chosen.c.id, chosen.c.created_at)
        .subquery()
    )
    refs_of = select(refs.c.repo_id, func.count().label("refs")).group_by(refs.c.repo_id).subquery()
    query = (
        select(
            chosen.c.type, chosen.c.name, chosen.c.created_at, counted, func.coalesce(refs_of.c.refs, 0).label("refs")
        )
        .select_from(
            chosen.join(counted, counted.c.id == chosen.c.id).outerjoin(refs_of, refs_of.c.repo_id == chosen.c.id)
        )
        .order_by(chosen.c.name, chosen.c.type)
    )
    return [
        RepoSummary(
            row.type, row.name, row.created_at, row.versions, row.latest, int(row.bytes), row.updated_at, row.refs
        )
        for row in connection.execute(query)
    ]
