"""Reports: stored by digest, noted beside the version they are about. Knows which version, never how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.catalog import reports, versions
from modelyard.catalog.transaction import dump
from modelyard.digest import Digest
from modelyard.errors import BusyError, InputError, IntegrityError, NotFoundError
from modelyard.registry.model import Version, version_of
from modelyard.registry.resolve import record_of

if TYPE_CHECKING:
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["CERTIFICATE", "FORMAT", "add", "get", "of_record", "of_version"]

FORMAT = "modelyard/report/1"
CERTIFICATE = "certificate"
"""The task of what is stored as a report and is none: `certificates`."""
_ATTEMPTS = 5


def add(context: Context, reference: str | Version, report: Mapping[str, Any]) -> Digest:
    """Store a report and note it beside its version; see `Yard.add_report`."""
    with context.catalog.read() as connection:
        record = record_of(connection, reference)
        dataset = report.get("dataset")
        if dataset and not versions.by_digest(connection, [_digest(dataset)]):
            raise NotFoundError(f"the report is about data set {str(dataset)[:40]}, which is not in this yard")
    _check(record, report)
    data = _encode(report)
    source = str(dataset) if dataset else None
    task, n = str(report["task"]["name"]), int(report["n"])
    metrics = dump(dict(report["metrics"]))
    for _ in range(_ATTEMPTS):
        digest = context.store.put("reports", data)
        with context.change() as tx:
            if not context.raw.has("reports", digest):
                continue  # until this transaction nothing refers to it, so a collection may have taken it
            if reports.save(tx, record.seq, digest, dataset=source, task=task, n=n, metrics=metrics):
                detail = {"report": digest, "number": record.number, "dataset": source, "task": task, "n": n}
                tx.record("report", repo=record.repo.key, version=record.id, detail=detail)
            return digest
    raise BusyError("the report is collected as fast as it is stored", hint="run the command again")


def of_version(context: Context, reference: str | Version) -> list[dict[str, Any]]:
    """A version's reports in the order they were made; see `Yard.reports`."""
    with context.catalog.read() as connection:
        record = record_of(connection, reference)
    return of_record(context, record)


def of_record(context: Context, record: VersionRecord, *, certificates: bool = False) -> list[dict[str, Any]]:
    """A version's reports, each verified against its digest; what is stored as `CERTIFICATE` instead, if asked for."""
    with context.catalog.read() as connection:
        found = reports.of_version(connection, record.seq)
    return [get(context, entry.digest) for entry in found if (entry.task == CERTIFICATE) == certificates]


def get(context: Context, digest: str) -> dict[str, Any]:
    """A report by its digest; see `Yard.report`."""
    wanted = _digest(digest)
    if not context.store.has("reports", wanted):
        raise NotFoundError(
            f"there is no report {wanted.short} in this yard",
            hint="yard show NAMESPACE/NAME@REV lists a version's reports",
        )
    found = json.loads(context.store.get("reports", wanted))
    if not isinstance(found, dict):
        raise IntegrityError(f"report {wanted.short} is not a JSON object")
    return found


def _check(record: VersionRecord, report: Mapping[str, Any]) -> None:
    """Refuse a report of another version, or one without what a listing and a gate read."""
    if report.get("format") != FORMAT:
        raise InputError(f"not a report: its format is {str(report.get('format'))[:40]!r}, not {FORMAT!r}")
    if report.get("model") != record.id:
        raise InputError(
            f"the report is about version {str(report.get('model'))[:40]}, not about `{version_of(record).name}` ({record.id[:40]})",
            hint="add it to the version that was evaluated",
        )
    task, metrics = report.get("task"), report.get("metrics")
    if not (
        isinstance(task, Mapping)
        and isinstance(task.get("name"), str)
        and isinstance(metrics, Mapping)
        and isinstance(report.get("n"), int)
    ):
        raise InputError("the report lacks `task.name`, `metrics` or `n`", hint="make it with modelyard.evaluation")
    if (task["name"] == CERTIFICATE) != isinstance(report.get("certificate"), Mapping):
        raise InputError(f"a report's task is not called `{CERTIFICATE}`: that is the name of what is none")


def _encode(report: Mapping[str, Any]) -> bytes:
    """A report's bytes: sorted keys, shortest floats; NaN is refused, which never is a result."""
    try:
        return dump(dict(report)).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the report cannot be kept as JSON: {error}") from error


def _digest(text: object) -> Digest:
    try:
        return Digest(str(text))
    except ValueError as error:
        raise InputError(str(error), hint="a digest has 64 lower-case hex digits") from error
