"""Versions that were made elsewhere become versions of this yard, with their manifests verbatim and so with their ids.

The rules are a commit's: a lease, then bytes, then manifests, then the rows, the refs and the journal in one
transaction. What differs is that the manifest is given, its parent included, which this yard need not have. Knows
neither archives nor where bytes come from: the caller stores them, inside the lease.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.catalog import counters, files, refs, repos, versions
from modelyard.catalog import reports as report_rows
from modelyard.catalog.files import FileRow
from modelyard.catalog.transaction import dump
from modelyard.catalog.versions import FileRecord, VersionRecord
from modelyard.errors import BusyError, ConflictError, InputError, IntegrityError, ModelError
from modelyard.registry.leases import lease
from modelyard.registry.model import Version, version_of
from modelyard.registry.names import check_metadata, check_ref_name, check_repo_name
from modelyard.registry.reports import FORMAT as REPORT_FORMAT
from modelyard.weights.files import READ_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelyard.catalog import Transaction
    from modelyard.catalog.repos import RepoRecord
    from modelyard.digest import Digest, FileDigests
    from modelyard.registry.context import Context
    from modelyard.registry.parcel import Consignment, Parcel
    from modelyard.registry.reference import Reference
    from modelyard.store.base import Store

__all__ = ["Adopted", "adopt"]

_ATTEMPTS = 3


@dataclass(frozen=True)
class Adopted:
    """What came in.

    Attributes:
        version: The version that was asked for.
        lineage: Versions that came along.
        missing: Versions that those name and that this yard does not have: an adapter among them has no base here.
        signatures: Signature files that came along, by digest.
    """

    version: Version
    lineage: tuple[Version, ...] = ()
    missing: tuple[Digest, ...] = ()
    signatures: tuple[bytes, ...] = ()


def adopt(
    context: Context,
    consignment: Consignment,
    fill: Callable[[Callable[[], None]], Mapping[Digest, FileDigests]],
    *,
    reports: Mapping[Digest, bytes],
    to: Reference | None = None,
    branch: str = "main",
    purpose: str,
) -> Adopted:
    """Take versions in, all or none.

    Args:
        context: The yard.
        consignment: What comes.
        fill: Stores every file of the consignment, verified, and says what each is; called inside the lease with its
            heartbeat, and again if a collection took something meanwhile.
        reports: The versions' reports.
        to: Another repo than the one that the version comes from.
        branch: Which branch of that repo moves.
        purpose: Of the lease, for people.

    Raises:
        ConflictError: The branch is elsewhere, or its name is a tag or alias.
        IntegrityError: A file is not what a manifest says it is.
        ModelError, PickleError: Weights that a commit would refuse.
    """
    check_ref_name(branch)
    _check(consignment, reports, to)
    for _ in range(_ATTEMPTS):
        # Before the lease: a sweep that finds a younger lease than its own last count counts once more.
        with context.catalog.read() as connection:
            collected = counters.current(connection, "collections")
        with lease(context, purpose) as beat:
            stored = fill(beat)
            _check_files(context.raw, consignment, stored)
            for data in [*(parcel.data for parcel in consignment.parcels), *consignment.context.values()]:
                context.store.put("manifests", data)
            for data in reports.values():
                context.store.put("reports", data)
            written = _write(context, consignment, stored, reports, to=to, branch=branch, collected=collected)
            if written is not None:
                return written
    raise BusyError(f"a collection took what this {purpose} stored", hint="run the command again")


def _check(consignment: Consignment, reports: Mapping[Digest, bytes], to: Reference | None) -> None:
    """Names, metadata and reports, before anything is stored."""
    for parcel in consignment.parcels:
        check_repo_name(parcel.repo)
        check_metadata(parcel.metadata, parcel.message)
        if parcel.repo_type == "dataset" and parcel.manifest.kind is not None:
            raise InputError(f"version {parcel.id.short} is a data set and has a kind")
        for digest in parcel.reports:
            _headline(parcel, digest, reports)
    principal = consignment.principal
    if to is not None and to.repo_type != principal.repo_type:
        raise InputError(
            f"the version is a {principal.repo_type}, `{to.repo_text}` is a repo of type {to.repo_type}",
            hint="name a repo of the other type" if to.repo_type == "dataset" else f"--to datasets/{to.repo}",
        )


def _headline(parcel: Parcel, digest: Digest, reports: Mapping[Digest, bytes]) -> dict[str, Any]:
    """The row of a report, from the report."""
    try:
        report = json.loads(reports[digest])
        good = report["format"] == REPORT_FORMAT and report["model"] == parcel.id
        row = {"task": str(report["task"]["name"]), "n": int(report["n"]), "metrics": dump(dict(report["metrics"]))}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"report {digest.short} is not a report", code="bad_report") from error
    if not good:
        raise IntegrityError(f"report {digest.short} is not about version {parcel.id.short}", code="bad_report")
    return row | {"dataset": str(report["dataset"]) if report.get("dataset") else None}


class _Incoming:
    """A version's files that are in the store but not in the catalog yet, as `weights.Files`; hashed on their way in."""

    def __init__(self, store: Store, parcel: Parcel) -> None:
        self.label = parcel.repo
        self._store = store
        self._entries = {entry.path: entry for entry in parcel.manifest.files}

    def names(self) -> list[str]:
        return sorted(self._entries, key=str.encode)

    def size(self, name: str) -> int:
        return self._entries[name].size

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        entry = self._entries[name]
        if entry.size > limit:
            raise ModelError(f"`{name}` in `{self.label}` has {entry.size} bytes", code="file_too_large")
        with self._store.open_file(entry.blake3) as stream:
            return stream.read()

    def path(self, name: str) -> Path:
        return self._store.file_path(self._entries[name].blake3)


def _check_files(store: Store, consignment: Consignment, stored: Mapping[Digest, FileDigests]) -> None:
    """Every file of every manifest came, with the size and hashes that the manifest gives it; weights are sound."""
    from modelyard.weights.checks import check_weights

    for parcel in consignment.parcels:
        for entry in parcel.manifest.files:
            came = stored.get(entry.blake3)
            if came is None or (came.size, came.sha256) != (entry.size, entry.sha256):
                raise IntegrityError(
                    f"`{entry.path}` of version {parcel.id.short} is not what its manifest says",
                    code="bad_manifest",
                    expected=entry.sha256,
                    found=came.sha256 if came else "",
                )
        if parcel.repo_type == "model":
            check_weights(_Incoming(store, parcel))


def _write(
    context: Context,
    consignment: Consignment,
    stored: Mapping[Digest, FileDigests],
    reports: Mapping[Digest, bytes],
    *,
    to: Reference | None,
    branch: str,
    collected: int,
) -> Adopted | None:
    """The one transaction; None when a collection may have taken what was stored."""
    made: dict[Digest, VersionRecord] = {}
    with context.change() as tx:
        if counters.current(tx.connection, "collections") != collected and not _all_there(context, consignment):
            return None
        rows = [FileRow(d.blake3, d.size, d.sha256, d.git_blob, None, True) for d in stored.values()]
        files.record(tx, rows)
        for parcel in _in_order(consignment):
            principal = parcel.id == consignment.version
            name = to.repo if principal and to is not None else parcel.repo
            repo = repos.ensure(tx, parcel.repo_type, name)
            aside = not principal and _is_beside(consignment, parcel, name, to)
            made[parcel.id] = _adopt_one(tx, repo, parcel, stored, branch=branch if principal else None, aside=aside)
            for digest in parcel.reports:
                _note_report(tx, made[parcel.id], parcel, digest, reports)
        named = {digest for parcel in consignment.parcels for digest in parcel.manifest.named()}
        known = {r.id for r in versions.load(tx.connection, versions.by_digest(tx.connection, named))}
    lineage = tuple(version_of(record) for digest, record in made.items() if digest != consignment.version)
    return Adopted(version_of(made[consignment.version]), lineage, tuple(sorted(named - known)))


def _all_there(context: Context, consignment: Consignment) -> bool:
    there = all(context.raw.has_file(digest) for digest in consignment.files())
    held = [*(parcel.id for parcel in consignment.parcels), *consignment.context]
    listed = [digest for parcel in consignment.parcels for digest in parcel.reports]
    return (
        there
        and all(context.store.has("manifests", digest) for digest in held)
        and all(context.store.has("reports", digest) for digest in listed)
    )


def _in_order(consignment: Consignment) -> list[Parcel]:
    """What something was made from before what was made from it, so that numbers read as history."""
    left = {parcel.id: parcel for parcel in consignment.parcels}
    order: list[Parcel] = []
    while left:
        ready = [p for p in left.values() if not any(digest in left for digest in p.manifest.named())]
        # Digests cannot form a cycle; a consignment of none that is ready cannot be.
        order += ready
        for parcel in ready:
            del left[parcel.id]
    return order


def _is_beside(consignment: Consignment, parcel: Parcel, repo: str, to: Reference | None) -> bool:
    """Whether what comes along lies in the repo of what was asked for and would take its branch without being its parent."""
    asked = consignment.principal
    same = (parcel.repo_type, repo) == (asked.repo_type, to.repo if to is not None else asked.repo)
    return same and parcel.id != asked.manifest.parent


def _adopt_one(
    tx: Transaction,
    repo: RepoRecord,
    parcel: Parcel,
    stored: Mapping[Digest, FileDigests],
    *,
    branch: str | None,
    aside: bool,
) -> VersionRecord:
    """A version's rows, if the repo does not have it yet, and its branch; without `branch` it comes along as lineage.

    `aside` gives it a branch of its own in any case.
    """
    by_digest = versions.load(tx.connection, versions.by_digest(tx.connection, [parcel.id]))
    known = next((record for record in by_digest if record.repo == repo), None)
    if known is not None and not known.deleted and branch is None:
        return known
    name, head, moves = (_own_branch(parcel), None, True) if aside else _branch(tx, repo, parcel, branch)
    if known is not None and not known.deleted and not moves:
        return known
    if known is None:
        number = repos.next_number(tx, repo.id)
        seq = _save(tx, repo, parcel, stored, number)
    else:
        seq, number = known.seq, known.number
        versions.set_deleted(tx, seq, deleted=False, stored=True)
    if moves:
        refs.point(tx, repo.id, name, "branch", seq)
    detail = {"number": number, "message": parcel.message, "metadata": parcel.metadata}
    detail |= {"from": {"author": parcel.author, "at": parcel.at}}
    if parcel.derivation:
        detail["derivation"] = json.loads(parcel.derivation)
    tx.record("commit", repo=repo.key, ref=name, version=parcel.id, previous=head, detail=detail)
    return versions.load(tx.connection, [seq])[0]


def _branch(tx: Transaction, repo: RepoRecord, parcel: Parcel, branch: str | None) -> tuple[str, str | None, bool]:
    """The branch that a version goes to, its head, and whether it moves."""
    name = branch or "main"
    found = refs.find(tx.connection, repo.id, name)
    if found is None:
        return name, None, True
    if found.type == "branch":
        if _contains(tx, repo, found.version_id, parcel.id):
            return name, found.version_id, False
        if found.version_id == parcel.manifest.parent:
            return name, found.version_id, True
    if branch is None:
        # What comes along as lineage must not fail because of a name: it gets one that nobody else has.
        return _own_branch(parcel), None, True
    what = f"is at v{found.number}" if found.type == "branch" else f"is a {found.type}"
    raise ConflictError(
        f"`{name}` of `{repo.name}` {what}, and version {parcel.id.short[:12]} does not follow it",
        hint="give another branch: --branch NAME",
        head=found.version_id,
    )


def _own_branch(parcel: Parcel) -> str:
    return f"unpacked-{parcel.id[:12]}"


def _contains(tx: Transaction, repo: RepoRecord, head: str, digest: str) -> bool:
    """Whether a version is the head of a branch or one of its parents."""
    at: str | None = head
    while at is not None and at != digest:
        found = versions.load(tx.connection, versions.by_digest(tx.connection, [at]))
        at = next((record.parent for record in found if record.repo == repo), None)
    return at is not None


def _save(tx: Transaction, repo: RepoRecord, parcel: Parcel, stored: Mapping[Digest, FileDigests], number: int) -> int:
    return versions.save(
        tx,
        repo,
        number=number,
        digest=parcel.id,
        kind=parcel.manifest.kind,
        parent=parcel.manifest.parent,
        inputs=parcel.manifest.inputs,
        message=parcel.message,
        metadata=json.dumps(parcel.metadata, sort_keys=True, ensure_ascii=False),
        files=[
            FileRecord(e.path, e.size, e.blake3, e.sha256, stored[e.blake3].git_blob) for e in parcel.manifest.files
        ],
        edges=[(edge.type, edge.version) for edge in parcel.manifest.lineage],
        derivation=parcel.derivation or None,
    )


def _note_report(
    tx: Transaction, record: VersionRecord, parcel: Parcel, digest: Digest, reports: Mapping[Digest, bytes]
) -> None:
    row = _headline(parcel, digest, reports)
    if report_rows.save(tx, record.seq, digest, **row):
        detail = {"report": digest, "number": record.number} | {key: row[key] for key in ("dataset", "task", "n")}
        tx.record("report", repo=record.repo.key, version=record.id, detail=detail)
