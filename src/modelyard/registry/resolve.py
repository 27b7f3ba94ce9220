"""From a reference to a version, with near matches when there is none. Reads the catalog only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from modelyard.catalog import refs, repos, versions
from modelyard.errors import NotFoundError, RefError, near_match
from modelyard.registry.model import Version, version_of
from modelyard.registry.reference import Reference

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelyard.catalog.repos import RepoRecord
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["find_record", "find_repo", "record_of", "resolve"]


def resolve(context: Context, reference: str | Version) -> Version:
    """The version that a reference names; a `Version` is looked up again by its number.

    Raises:
        RefError: The reference is malformed, or a digest's prefix fits several versions (the hint lists them).
        NotFoundError: No such repo, version or ref; the hint has the near match.
    """
    with context.catalog.read() as connection:
        return version_of(record_of(connection, reference))


def record_of(connection: Connection, reference: str | Version) -> VersionRecord:
    """The record that a reference or version names; see `resolve`."""
    if isinstance(reference, Version):
        reference = reference.name
    parsed = Reference.parse(reference)
    return find_record(connection, find_repo(connection, parsed), parsed)


def find_repo(connection: Connection, reference: Reference) -> RepoRecord:
    """The reference's repo; `NotFoundError` with a near match when there is none."""
    found = repos.find(connection, reference.repo_type, reference.repo)
    if found is not None:
        return found
    known = repos.names(connection)
    texts = {_text(repo_type, name): (repo_type, name) for repo_type, name in known}
    other = _text("dataset" if reference.repo_type == "model" else "model", reference.repo)
    same_type = [text for text, (repo_type, _) in texts.items() if repo_type == reference.repo_type]
    meant = other if other in texts else near_match(reference.repo_text, same_type)
    hint = f"did you mean `{meant}`?" if meant else "yard ls"
    raise NotFoundError(f"there is no {reference.repo_type} `{reference.repo}` in this yard", hint=hint)


def find_record(
    connection: Connection, repo: RepoRecord, reference: Reference, *, deleted: bool = False
) -> VersionRecord:
    """The version of `repo` that `reference.rev` names; a deleted one only with `deleted`."""
    if reference.rev == "latest":
        seq = versions.latest(connection, repo.id)
        if seq is None:
            _missing(connection, repo, reference)
    elif reference.number is not None:
        seq = versions.by_number(connection, repo.id, reference.number)
    elif reference.prefix is not None:
        seq = _by_prefix(connection, repo, reference, reference.prefix, deleted=deleted)
    else:
        ref = refs.find(connection, repo.id, reference.rev)
        seq = ref.version_seq if ref else None
    if seq is None:
        _missing(connection, repo, reference)
    record = versions.load(connection, [seq])[0]
    if record.deleted and not deleted:
        name = f"{reference.repo_text}@v{record.number}"
        raise NotFoundError(f"`{name}` was deleted", hint=f"yard undelete {name}")
    return record


def _by_prefix(
    connection: Connection, repo: RepoRecord, reference: Reference, prefix: str, *, deleted: bool
) -> int | None:
    found = versions.load(connection, versions.by_prefix(connection, repo.id, prefix))
    live = [record for record in found if deleted or not record.deleted] or found
    if len(live) > 1:
        candidates = [f"{record.id[:40]} (v{record.number})" for record in live]
        raise RefError(
            f"`{reference}` fits {len(live)} versions",
            hint="give more digits: " + ", ".join(candidates),
            candidates=[record.id for record in live],
        )
    return live[0].seq if live else None


def _missing(connection: Connection, repo: RepoRecord, reference: Reference) -> NoReturn:
    names = [ref.name for ref in refs.in_repo(connection, repo.id)]
    newest = versions.latest(connection, repo.id)
    if newest is None:
        raise NotFoundError(
            f"`{reference.repo_text}` holds no version", hint=f"yard commit FOLDER --to {reference.repo_text}"
        )
    highest = versions.load(connection, [newest])[0].number
    meant = near_match(reference.rev, names)
    if meant:
        hint = f"did you mean `{reference.repo_text}@{meant}`?"
    else:
        hint = f"its refs are {', '.join(names) or 'none'}; its highest number is v{highest}"
    what = "version" if reference.number is not None or reference.prefix is not None else "ref"
    raise NotFoundError(f"`{reference.repo_text}` has no {what} `{reference.rev}`", hint=hint)


def _text(repo_type: str, name: str) -> str:
    return f"datasets/{name}" if repo_type == "dataset" else name
