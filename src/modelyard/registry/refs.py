"""Tags and branches by hand, and listings. Aliases move in `promotion`; branches by `commit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.catalog import refs, repos, versions
from modelyard.errors import ConflictError
from modelyard.registry.model import Ref, Repo, Version, moment, version_of
from modelyard.registry.names import check_ref_name
from modelyard.registry.reference import RepoType, repo_of
from modelyard.registry.resolve import find_repo, record_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.registry.context import Context

__all__ = ["branch", "list_refs", "list_repos", "list_versions", "tag"]


def list_repos(
    context: Context, repo_type: RepoType | None, *, limit: int | None, after: tuple[str, RepoType] | None
) -> list[Repo]:
    """See `Yard.repos`."""
    with context.catalog.read() as connection:
        found = repos.summaries(connection, repo_type, limit=limit, after=after)
    return [
        Repo(
            repo_type=summary.type,  # type: ignore[arg-type]  # the table's CHECK allows no other
            name=summary.name,
            versions=summary.versions,
            latest=summary.latest,
            size=summary.size,
            refs=summary.refs,
            created_at=moment(summary.created_at),
            updated_at=moment(summary.updated_at),
        )
        for summary in found
    ]


def list_versions(
    context: Context,
    repo: str,
    repo_type: RepoType | None,
    *,
    limit: int | None,
    before: int | None,
    deleted: bool,
    where: Mapping[str, str] | None = None,
) -> list[Version]:
    """See `Yard.versions`."""
    with context.catalog.read() as connection:
        record = find_repo(connection, repo_of(repo, repo_type))
        return [
            version_of(found)
            for found in versions.in_repo(
                connection, record.id, limit=limit, before=before, deleted=deleted, where=where
            )
        ]


def list_refs(context: Context, repo: str, repo_type: RepoType | None) -> list[Ref]:
    """See `Yard.refs`."""
    from modelyard.digest import Digest

    with context.catalog.read() as connection:
        record = find_repo(connection, repo_of(repo, repo_type))
        found = refs.in_repo(connection, record.id)
    return [Ref(ref.name, ref.type, Digest(ref.version_id), ref.number) for ref in found]  # type: ignore[arg-type]  # CHECKed


def tag(context: Context, reference: str | Version, name: str) -> Ref:
    """Give a version a name that never moves; see `Yard.tag`."""
    return _create(context, reference, name, "tag")


def branch(context: Context, reference: str | Version, name: str) -> Ref:
    """Start a branch at a version; see `Yard.branch`."""
    return _create(context, reference, name, "branch")


def _create(context: Context, reference: str | Version, name: str, ref_type: str) -> Ref:
    from modelyard.digest import Digest

    check_ref_name(name)
    with context.change() as tx:
        record = record_of(tx.connection, reference)
        found = refs.find(tx.connection, record.repo.id, name)
        if found is not None and (found.version_seq != record.seq or found.type != ref_type):
            raise ConflictError(
                f"`{name}` is the {found.type} of v{found.number} already, and a {ref_type} is not moved by hand",
                hint=f"choose another name, or remove this one: yard delete {version_of(record).repo_text}@{name}",
                holder=found.version_id,
            )
        if found is None:
            refs.point(tx, record.repo.id, name, ref_type, record.seq)
            tx.record(ref_type, repo=record.repo.key, ref=name, version=record.id, detail={"number": record.number})
    return Ref(name, ref_type, Digest(record.id), record.number)  # type: ignore[arg-type]  # tag or branch
