"""Commit: files become a version.

Everything that can be refused is refused before the first byte is written. Then, in this order: bytes, manifest, the
rows and the ref in one SQL transaction, the journal. Whatever stops a commit in between leaves the old state and files
that nothing points to; repeating it reuses them. What a commit counts on may be collected until its transaction: there it
looks whether something was, and starts over. It knows nothing of how bytes are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.catalog import Transaction, counters, refs, repos, versions
from modelyard.catalog.versions import FileRecord, VersionRecord
from modelyard.errors import BusyError, ConflictError
from modelyard.points import reach
from modelyard.registry import manifest
from modelyard.registry.deposit import CollectedError, Deposit, check_held, deposit, renew
from modelyard.registry.intake import (
    Content,
    Origin,
    check_kind,
    derivation_text,
    edges_of,
    open_source,
    recognised_kind,
    source_names,
)
from modelyard.registry.leases import lease
from modelyard.registry.model import Edge, FileEntry, Kind, RepoType, Version, version_of
from modelyard.registry.names import check_metadata, check_ref_name
from modelyard.registry.reference import Reference, repo_of
from modelyard.registry.resolve import record_of
from modelyard.registry.taking import record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

    from modelyard.catalog.repos import RepoRecord
    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.weights.files import Files

__all__ = ["commit"]

_ATTEMPTS = 100  # how often a commit follows a branch that others move: each loss is somebody else's success


@dataclass(frozen=True)
class _Request:
    """What was asked for, checked."""

    target: Reference
    branch: str
    kind: Kind | None
    recognised: Kind | None
    origins: tuple[Origin, ...]
    inputs: Digest | None
    message: str
    metadata: dict[str, str]
    expect_parent: str | Version | None
    derivation: str | None


@dataclass(frozen=True)
class _Plan:
    """What a request means on the branch as it is."""

    head: VersionRecord | None
    kind: Kind | None
    edges: tuple[Edge, ...]


def commit(
    context: Context,
    source: Path | Files | Mapping[str, Content],
    to: str,
    *,
    kind: Kind | None = None,
    from_: str | Version | Edge | Sequence[Origin] = (),
    branch: str = "main",
    message: str = "",
    metadata: Mapping[str, str] | None = None,
    inputs: Digest | None = None,
    repo_type: RepoType | None = None,
    expect_parent: str | Version | None = None,
    derivation: Mapping[str, Any] | None = None,
) -> Version:
    """Commit files as the next version of a branch; see `Yard.commit`."""
    target = repo_of(to, repo_type)
    check_ref_name(branch)
    check_kind(target.repo_type, kind)
    check_metadata(metadata or {}, message)
    origins = (from_,) if isinstance(from_, str | Version | Edge) else tuple(from_)
    hint = derivation_text(derivation)
    with open_source(source, context.links) as files:
        names = source_names(files)
        recognised = recognised_kind(names, has_sources=bool(origins)) if target.repo_type == "model" else None
        request = _Request(
            target, branch, kind, recognised, origins, inputs, message, dict(metadata or {}), expect_parent, hint
        )
        with context.catalog.read() as connection:
            _plan(connection, request)
            # Before the lease: a sweep that finds a younger lease than its own last count counts once more.
            collections = counters.current(connection, "collections")
        if target.repo_type == "model":
            from modelyard.weights.checks import check_weights

            check_weights(files)
        with lease(context, "commit") as beat:
            return _commit(context, request, files, names, collections=collections, beat=beat)


def _commit(
    context: Context,
    request: _Request,
    files: Files,
    names: Sequence[str],
    *,
    collections: int,
    beat: Callable[[], None],
) -> Version:
    """Store the bytes once, then try until the branch stands still; again where a collection came in between."""
    stored = deposit(context, files, names, collections=collections)
    reach("commit.stored")
    for _ in range(_ATTEMPTS):
        try:
            version = _attempt(context, request, stored)
        except CollectedError:
            with context.catalog.read() as connection:
                collections = counters.current(connection, "collections")
            beat()
            stored = deposit(context, files, names, collections=collections)
            continue
        if version is not None:
            return version
    raise BusyError(
        f"branch `{request.branch}` of `{request.target.repo_text}` moves too fast to commit to",
        hint="run the command again",
    )


def _plan(connection: Connection, request: _Request) -> _Plan:
    """Read the branch's head; refuse what does not fit it."""
    head = _head(connection, request)
    kind: Kind | None = request.kind or (head.kind if head else None) or request.recognised  # type: ignore[assignment]
    if request.expect_parent is not None:
        expected = record_of(connection, request.expect_parent)
        if head is None or head.id != expected.id:
            now = f"is at v{head.number}" if head else "does not exist"
            raise ConflictError(
                f"branch `{request.branch}` of `{request.target.repo_text}` {now}, not at v{expected.number}",
                hint="look at what was committed (yard log), then commit on top of it",
                head=head.id if head else None,
            )
    return _Plan(head, kind, edges_of(connection, request.origins, kind))


def _head(connection: Connection, request: _Request) -> VersionRecord | None:
    repo = repos.find(connection, request.target.repo_type, request.target.repo)
    ref = refs.find(connection, repo.id, request.branch) if repo else None
    if ref is None:
        return None
    if ref.type != "branch":
        raise ConflictError(
            f"`{request.branch}` is a{'n' if ref.type == 'alias' else ''} {ref.type} of `{request.target.repo_text}`, not a branch"
        )
    return versions.load(connection, [ref.version_seq])[0]


def _attempt(context: Context, request: _Request, stored: Deposit) -> Version | None:
    """Commit on top of the branch as it is now; None when somebody moved it meanwhile."""
    with context.catalog.read() as connection:
        plan = _plan(connection, request)
    if plan.head is not None and _same(plan.head, plan, stored.entries):
        renew(context, stored)
        return version_of(plan.head)
    parent = plan.head.id if plan.head else None
    data = manifest.encode(
        parent=parent, kind=plan.kind, files=stored.entries, lineage=plan.edges, inputs=request.inputs
    )
    digest = context.store.put("manifests", data)
    reach("commit.manifest")
    with context.change("commit.committed") as tx:
        now = _head(tx.connection, request)
        if (now.id if now else None) != parent:
            return None
        check_held(context, tx, stored, digest)
        repo = repos.ensure(tx, request.target.repo_type, request.target.repo)
        record(tx, stored.taken, stored.pack)
        written = _write(tx, repo, request, plan, entries=stored.entries, digest=digest)
        reach("commit.rows")
    return version_of(written)


def _same(head: VersionRecord, plan: _Plan, entries: Sequence[FileEntry]) -> bool:
    """Whether the head has this very tree, lineage and kind: then the commit was made already."""
    tree = {(file.path, file.blake3) for file in head.files} == {(entry.path, entry.blake3) for entry in entries}
    return tree and set(head.lineage) == {(edge.type, edge.version) for edge in plan.edges} and head.kind == plan.kind


def _write(
    tx: Transaction,
    repo: RepoRecord,
    request: _Request,
    plan: _Plan,
    *,
    entries: Sequence[FileEntry],
    digest: Digest,
) -> VersionRecord:
    """The version's rows, the branch and the audit row; the repo may hold this very version already, on another branch."""
    known = [
        record
        for record in versions.load(tx.connection, versions.by_digest(tx.connection, [digest]))
        if record.repo == repo
    ]
    if known:
        seq, number = known[0].seq, known[0].number
        versions.set_deleted(tx, seq, deleted=False, stored=True)
    else:
        number = repos.next_number(tx, repo.id)
        seq = versions.save(
            tx,
            repo,
            number=number,
            digest=digest,
            kind=plan.kind,
            parent=plan.head.id if plan.head else None,
            inputs=request.inputs,
            message=request.message,
            metadata=json.dumps(request.metadata, sort_keys=True, ensure_ascii=False),
            derivation=request.derivation,
            files=[FileRecord(e.path, e.size, e.blake3, e.sha256, e.git_blob) for e in entries],
            edges=[(edge.type, edge.version) for edge in plan.edges],
        )
    refs.point(tx, repo.id, request.branch, "branch", seq)
    previous = plan.head.id if plan.head else None
    detail: dict[str, Any] = {"number": number, "message": request.message, "metadata": request.metadata}
    if request.derivation is not None:
        detail["derivation"] = json.loads(request.derivation)
    tx.record("commit", repo=repo.key, ref=request.branch, version=digest, previous=previous, detail=detail)
    return versions.load(tx.connection, [seq])[0]
