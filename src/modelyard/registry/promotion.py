"""Promotion: an alias moves by compare-and-swap, past its gate, and back by rollback.

The registry decides *that* a gate must pass, and hands the judge the reports of the very version that would move; the
judge decides *whether* it does. Each promotion puts the holder it replaced on the alias's stack, each rollback takes one
off: repeated, it goes further back. What an alias points at lies in the store whole, before it moves. Knows no metrics.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from modelyard.catalog import files as file_rows
from modelyard.catalog import refs, repos, versions
from modelyard.digest import Digest
from modelyard.errors import BusyError, ConflictError, GateRefusedError, IntegrityError, NotFoundError, YardError
from modelyard.points import reach
from modelyard.registry.finiteness import refuse_nonfinite
from modelyard.registry.leases import lease
from modelyard.registry.lineage import base_record
from modelyard.registry.model import FileEntry, Promotion, Version, version_of
from modelyard.registry.names import check_ref_name
from modelyard.registry.reference import RepoType, repo_of
from modelyard.registry.reports import of_record
from modelyard.registry.resolve import find_repo, record_of
from modelyard.registry.untrained import refuse_untrained

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

    from modelyard.catalog.refs import RefRecord
    from modelyard.catalog.repos import RepoRecord
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["gate", "judge", "promote", "rollback", "set_gate"]

NOBODY = "none"
"""What `expect` says of an alias that has no holder yet."""


def promote(context: Context, reference: str | Version, to: str, expect: str | Version | None = None) -> Promotion:
    """Move an alias to a version; see `Yard.promote`."""
    check_ref_name(to)
    with context.catalog.read() as connection:
        record = record_of(connection, reference)
        holder = _holder(connection, record.repo, to)
        expected = _expected(connection, record.repo, expect, holder)
        previous = versions.load(connection, [holder.version_seq])[0] if holder else None
    _check_holder(record.repo, to, holder, expected)
    if holder is not None and holder.version_seq == record.seq:
        return _unmoved(record, to)
    refuse_untrained(context, version_of(record), to)
    verdict = judge(context, record, to, holder)
    with _whole(context, record), context.change("promote.committed") as tx:
        now = _holder(tx.connection, record.repo, to)
        _check_holder(record.repo, to, now, expected)
        _check_still_whole(tx.connection, record)
        if versions.is_deleted(tx.connection, record.seq):
            raise NotFoundError(
                f"`{version_of(record).name}` was deleted meanwhile", hint=f"yard undelete {version_of(record).name}"
            )
        if previous is not None:
            refs.push(tx, record.repo.id, to, previous.seq)
        refs.point(tx, record.repo.id, to, "alias", record.seq)
        before = previous.id if previous else None
        detail = {"number": record.number, "verdict": verdict}
        tx.record("promote", repo=record.repo.key, ref=to, version=record.id, previous=before, detail=detail)
        reach("promote.moved")
    return _promotion(record, to, previous, verdict)


def rollback(
    context: Context, repo: str, alias: str, repo_type: RepoType | None, expect: str | Version | None = None
) -> Promotion:
    """Return an alias to the holder before the last promotion; see `Yard.rollback`."""
    reference = repo_of(repo, repo_type)
    with context.catalog.read() as connection:
        found = find_repo(connection, reference)
        holder = _holder(connection, found, alias)
        expected = _expected(connection, found, expect, holder)
        before = _former(connection, found, alias, holder)
    with _whole(context, before), context.change() as tx:
        now = _holder(tx.connection, found, alias)
        _check_holder(found, alias, now, expected)
        target = _former(tx.connection, found, alias, now)
        if target.seq != before.seq or now is None:
            raise ConflictError(
                f"somebody else moved `{found.name}@{alias}` and back",
                hint="look at what is there now, then roll back again",
            )
        _check_still_whole(tx.connection, target)
        left = versions.load(tx.connection, [now.version_seq])[0]
        refs.pop(tx, found.id, alias)
        refs.point(tx, found.id, alias, "alias", target.seq)
        detail = {"number": target.number}
        tx.record("rollback", repo=found.key, ref=alias, version=target.id, previous=left.id, detail=detail)
    return _promotion(target, alias, left, None)


def _former(connection: Connection, repo: RepoRecord, alias: str, holder: RefRecord | None) -> VersionRecord:
    """The version that a rollback returns to."""
    text = f"datasets/{repo.name}" if repo.type == "dataset" else repo.name
    if holder is None:
        raise NotFoundError(f"`{text}` has no alias `{alias}`", hint=f"yard promote {text}@latest --to {alias}")
    stack = refs.former(connection, repo.id, alias)
    if not stack:
        raise ConflictError(f"`{text}@{alias}` has no holder before v{holder.number} to go back to")
    return versions.load(connection, stack[:1])[0]


def judge(context: Context, record: VersionRecord, alias: str, holder: RefRecord | None) -> dict[str, Any] | None:
    """The verdict that lets a version become an alias's holder; None where the alias has no gate.

    Raises:
        GateRefusedError: The gate does not pass; `details["verdict"]` has everything.
    """
    with context.catalog.read() as connection:
        text = refs.gate(connection, record.repo.id, alias)
        if text is None:
            return None
        rule: dict[str, Any] = json.loads(text)
        baseline = _baseline(connection, record, rule.get("better_than"), holder)
    if context.judge is None:
        raise YardError(
            f"alias `{alias}` has a gate and this yard was opened without a judge", hint="open it with modelyard.open()"
        )
    verdict = context.judge(
        rule,
        candidate=record.id,
        reports=of_record(context, record),
        baseline=baseline.id if baseline else None,
        baseline_reports=of_record(context, baseline) if baseline else [],
    )
    if verdict.decision != "pass":
        name = version_of(record).name
        what = "needs more evidence" if verdict.decision == "more" else "does not pass its gate"
        # A judge knows ids and no repos: the commands that its reasons name become ones that can be pasted.
        known = {version.id[:12]: version_of(version).name for version in (record, baseline) if version}
        reasons = "; ".join(verdict.reasons)
        for short, pasted in known.items():
            reasons = reasons.replace(f"REPO@{short}", pasted)
        raise GateRefusedError(
            f"`{name}` {what} for `{alias}`: {reasons}",
            hint=f"evaluate it on more rows: yard eval {name}" if verdict.decision == "more" else f"yard show {name}",
            verdict=verdict.to_dict(),
        )
    if not rule.get("allow_nonfinite", False):
        refuse_nonfinite(context, record, alias)
    return verdict.to_dict()


def _baseline(
    connection: Connection, record: VersionRecord, better_than: str | None, holder: RefRecord | None
) -> VersionRecord | None:
    """The version that the candidate must beat: `base`, `incumbent` or a reference."""
    if better_than is None:
        return None
    if better_than == "incumbent":
        return versions.load(connection, [holder.version_seq])[0] if holder else None
    if better_than == "base":
        return base_record(connection, record)
    return record_of(connection, better_than)


def set_gate(
    context: Context, repo: str, alias: str, rule: Mapping[str, Any] | None, repo_type: RepoType | None
) -> None:
    """Store or remove an alias's gate; see `Yard.set_gate`."""
    check_ref_name(alias)
    reference = repo_of(repo, repo_type)
    checked = dict(context.check_gate(rule) if context.check_gate else rule) if rule is not None else None
    with context.change() as tx:
        # A gate may be set before the first commit: a recipe does.
        found = repos.ensure(tx, reference.repo_type, reference.repo)
        taken = refs.find(tx.connection, found.id, alias)
        if taken is not None and taken.type != "alias":
            raise ConflictError(f"`{alias}` is a {taken.type} of `{reference.repo_text}`, and only an alias has a gate")
        text = json.dumps(checked, sort_keys=True) if checked is not None else None
        if refs.gate(tx.connection, found.id, alias) != text:
            refs.set_gate(tx, found.id, alias, text)
            tx.record("gate", repo=found.key, ref=alias, detail={"gate": checked})


def gate(context: Context, repo: str, alias: str, repo_type: RepoType | None) -> dict[str, Any] | None:
    """An alias's gate, or None; see `Yard.gate`."""
    reference = repo_of(repo, repo_type)
    with context.catalog.read() as connection:
        text = refs.gate(connection, find_repo(connection, reference).id, alias)
    found: dict[str, Any] | None = json.loads(text) if text is not None else None
    return found


def _holder(connection: Connection, repo: RepoRecord, alias: str) -> RefRecord | None:
    ref = refs.find(connection, repo.id, alias)
    if ref is not None and ref.type != "alias":
        raise ConflictError(
            f"`{alias}` is a {ref.type} of `{repo.name}`, not an alias", hint="choose another name for the alias"
        )
    return ref


def _expected(
    connection: Connection, repo: RepoRecord, expect: str | Version | None, holder: RefRecord | None
) -> str | None:
    """The id that the alias must point at, None for nobody: what was asked for, or the holder as read."""
    if expect is None:
        return holder.version_id if holder else None
    if expect == NOBODY:
        return None
    if isinstance(expect, str) and "/" not in expect:
        # Short for a version of the same repo: `v6` or a digest.
        prefix = "datasets/" if repo.type == "dataset" else ""
        expect = f"{prefix}{repo.name}@{expect}"
    return record_of(connection, expect).id


def _check_holder(repo: RepoRecord, alias: str, holder: RefRecord | None, expected: str | None) -> None:
    if (holder.version_id if holder else None) == expected:
        return
    now = f"points at v{holder.number} ({holder.version_id[:40]})" if holder else "has no holder"
    raise ConflictError(
        f"somebody else moved `{repo.name}@{alias}`: it {now}",
        hint="look at what is there now, then promote again",
        holder=holder.version_id if holder else None,
        number=holder.number if holder else None,
        expected=expected,
    )


@contextmanager
def _whole(context: Context, record: VersionRecord) -> Iterator[None]:
    """See that a version can be loaded at once, before its alias moves: every file lies in the store, whole, with its size.

    Where a file has to be written for that, a lease keeps it from being compacted again until the block ends.
    """
    version = version_of(record)
    with ExitStack() as stack:
        if not _is_whole(context, record):
            stack.enter_context(lease(context, "promote", versions=[record.id]))
            for file in version.files:
                _make_whole(context, version, file)
        for file in version.files:
            if not context.raw.has_file(file.blake3) or context.raw.file_size(file.blake3) != file.size:
                raise IntegrityError(
                    f"`{file.path}` of `{version.name}` is missing or cut short in the store",
                    hint="yard check",
                    digest=file.blake3,
                )
        reach("promote.whole")
        yield


def _make_whole(context: Context, version: Version, file: FileEntry) -> None:
    try:
        context.store.make_whole([file.blake3])
    except IntegrityError as error:
        raise IntegrityError(
            f"`{file.path}` of `{version.name}` is missing or damaged in the store: {error.message}",
            hint="yard check --read-data",
            digest=file.blake3,
        ) from error


def _is_whole(context: Context, record: VersionRecord) -> bool:
    digests = {file.blake3 for file in record.files}
    with context.catalog.read() as connection:
        rows = file_rows.find(connection, digests)
    return all(digest in rows and rows[digest].whole for digest in digests) and all(
        context.raw.has_file(Digest(digest)) for digest in digests
    )


def _check_still_whole(connection: Connection, record: VersionRecord) -> None:
    """A compaction may have come in between: it takes turns with this transaction, after which the version is hot."""
    digests = {file.blake3 for file in record.files}
    rows = file_rows.find(connection, digests)
    if not all(digest not in rows or rows[digest].whole for digest in digests):
        raise BusyError(
            f"`{version_of(record).name}` was compacted while it was promoted", hint="run the command again"
        )


def _promotion(
    record: VersionRecord, alias: str, previous: VersionRecord | None, verdict: dict[str, Any] | None
) -> Promotion:
    version = version_of(record)
    return Promotion(
        repo_type=version.repo_type,
        repo=version.repo,
        alias=alias,
        version=version,
        previous=version_of(previous) if previous else None,
        moved=True,
        verdict=verdict,
    )


def _unmoved(record: VersionRecord, alias: str) -> Promotion:
    version = version_of(record)
    return Promotion(version.repo_type, version.repo, alias, version, previous=version, moved=False)
