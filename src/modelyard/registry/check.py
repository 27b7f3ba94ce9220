"""Check: whether a yard holds what its catalog says, and whether its catalog can be believed.

Every structural fault is found without reading a byte of weights; with `read_data` every object is hashed, and what is not
kept whole is put together. A check changes nothing; `repair` makes anew what can be made anew from elsewhere, moves other
damaged objects to `quarantine/`, and edits nothing else. It works under a lease, so that what it counts on stays. This
module knows what is looked at in which order; the modules beside it know how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from modelyard.catalog import candidates, counters, liveness, soundness, usage, versions
from modelyard.catalog.transaction import moment
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import InputError, IntegrityError
from modelyard.registry import manifest
from modelyard.registry.bytes_check import check_bytes
from modelyard.registry.collection import AREAS
from modelyard.registry.findings import CheckReport, Findings
from modelyard.registry.holding_check import Expected, check_holdings
from modelyard.registry.leases import lease
from modelyard.registry.links_check import check_links
from modelyard.registry.model import version_of
from modelyard.registry.repair import repair as repair_findings

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["Sample", "check", "parse_percent"]

_BATCH = 500
_FUTURE = timedelta(minutes=5)
_DAY = 86400


@dataclass(frozen=True)
class Sample:
    """Which objects are read: a share of all digests, from a point on; 100 percent is all of them.

    Points that are a share apart do not overlap, so that successive seeds read everything once in 100 / percent runs.
    """

    percent: float
    seed: int

    def has(self, digest: str) -> bool:
        """Whether this object is read.

        >>> sum(Sample(25, seed).has("8" * 64) for seed in range(4))
        1
        """
        place = int(digest[:12], 16) / 16**12 * 100
        start = self.seed * self.percent % 100
        return (place - start) % 100 < self.percent


def check(
    context: Context,
    *,
    read_data: bool = False,
    subset: float | None = None,
    seed: int | None = None,
    repair: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> CheckReport:
    """Look for every fault; see `Yard.check`."""
    if subset is not None and not 0 < subset <= 100:
        raise InputError(f"{subset} % of the data cannot be read", hint="a number above 0 and at most 100")
    findings = Findings()
    with lease(context, "check"):
        _check_rows(context, findings, pages=read_data or subset is not None)
        expected = _expectations(context)
        _check_versions(context, findings)
        _check_reports(context, findings)
        _check_journal(context, findings, expected)
        check_holdings(context, findings, expected)
        check_links(context, findings)
        if read_data or subset is not None:
            day = int(context.clock().timestamp()) // _DAY
            sample = Sample(subset or 100, day if seed is None else seed)
            check_bytes(context, findings, expected, sample.has, progress or (lambda _done, _total: None))
        if repair:
            repair_findings(context, findings)
    return findings.report()


def _expectations(context: Context) -> Expected:
    """What is listed, what is needed, and what a collection is already at."""
    listed = {area: set(map(str, context.raw.digests(area))) for area in AREAS}
    with context.catalog.read() as connection:
        needed = {
            "files": liveness.needed_files(connection),
            "packs": liveness.needed_packs(connection),
            "manifests": liveness.needed_manifests(connection),
            "reports": liveness.needed_reports(connection),
        }
        marked = {(each.area, each.name) for each in candidates.listing(connection)}
        segments = liveness.live_segments(connection)
        files = liveness.live_files(connection)
    return Expected(listed, needed, marked, files, segments)


def _check_rows(context: Context, findings: Findings, *, pages: bool) -> None:
    """The catalog by itself."""
    with context.catalog.read() as connection:
        faults = soundness.page_faults(connection) if pages else []
        loose = soundness.dangling(connection)
        behind = soundness.counters_behind(connection)
        sizes = soundness.different_sizes(connection)
        pieces = soundness.wrong_pieces(connection)
        marks = candidates.listing(connection)
    hint = "restore the catalog from a backup, or make it anew: yard rebuild"
    for text in faults:
        findings.add("damage", "catalog_pages", "catalog", f"the database is damaged: {text}", hint=hint)
    for each in loose:
        text = f"a row of `{each.table}` ({each.row}) names {each.name[:40]}, of which `{each.missing}` has no row"
        findings.add("damage", "row_missing", f"{each.table}/{each.name}", text, hint=hint)
    for low in behind:
        text = f"the counter `{low.counter}` is at {low.value}, and {low.taken} was taken from it"
        findings.add("damage", "counter_behind", f"counters/{low.counter}", text, hint=hint)
    for digest, what in sizes:
        text = f"a version gives the file {digest[:40]} another {what} than its own row does"
        findings.add("damage", "file_differs", f"files/{digest}", text, hint=hint)
    for digest in pieces:
        text = f"the segments of the file {digest[:40]} do not cover it"
        findings.add("damage", "pieces_differ", f"files/{digest}", text, hint=hint)
    latest = moment(context.clock() + _FUTURE)
    for mark in marks:
        if mark.marked_at > latest:
            text = f"marked at {mark.marked_at}, in the future by this machine's clock"
            findings.add("info", "future_mark", f"{mark.area}/{mark.name}", text, hint="yard gc marks it anew")


def _check_versions(context: Context, findings: Findings) -> None:
    """Every version's rows are what its manifest says, and the manifest is there."""
    with context.catalog.read() as connection:
        seqs = sorted({seq for seq, _ in usage.owners(connection)} | liveness.live_versions(connection))
    for start in range(0, len(seqs), _BATCH):
        with context.catalog.read() as connection:
            records = versions.load(connection, seqs[start : start + _BATCH])
        for record in records:
            _check_version(context, findings, record)


def _check_version(context: Context, findings: Findings, record: VersionRecord) -> None:
    findings.count("versions")
    version = version_of(record)
    data = manifest.encode(
        parent=record.parent, kind=record.kind, files=version.files, lineage=version.lineage, inputs=record.inputs
    )
    if digest_bytes(data) != record.id:
        findings.add(
            "damage",
            "version_differs",
            version.name,
            f"the rows of `{version.name}` do not make its manifest {version.id.short}",
            hint="restore the catalog from a backup, or make it anew: yard rebuild",
        )
    if record.created_at > moment(context.clock() + _FUTURE):
        text = f"`{version.name}` was committed at {record.created_at}, in the future by this machine's clock"
        findings.add("info", "future_time", version.name, text, hint="look at the clock: nothing is ordered by it")
    if record.collected:
        return
    findings.count("manifests")
    try:
        context.raw.get("manifests", version.id)
    except IntegrityError as error:
        code = "missing" if error.code == "missing" else "damaged"
        hint = "yard check --repair writes it anew from the catalog"
        findings.add("damage", code, f"manifests/{version.id}", error.message, holders=[version.name], hint=hint)


def _check_reports(context: Context, findings: Findings) -> None:
    """Every report of a version that is not collected is there and about it."""
    with context.catalog.read() as connection:
        kept = soundness.kept_reports(connection)
        records = versions.load(connection, {seq for seq, _, _ in kept})
    names = {record.seq: version_of(record).name for record in records}
    for seq, version_id, digest in kept:
        name = names[seq]
        findings.count("reports")
        about = f"reports/{digest}"
        try:
            found: Any = json.loads(context.raw.get("reports", Digest(digest)))
        except IntegrityError as error:
            code = "missing" if error.code == "missing" else "damaged"
            findings.add(
                "damage", code, about, error.message, holders=[name], hint=f"evaluate it again: yard eval {name}"
            )
        except (ValueError, RecursionError):
            findings.add("damage", "undecodable", about, f"the report {digest[:40]} is no JSON", holders=[name])
        else:
            if not isinstance(found, dict) or found.get("model") != version_id:
                text = f"the report {digest[:40]} is not about `{name}`"
                findings.add("damage", "report_differs", about, text, holders=[name])


def _check_journal(context: Context, findings: Findings, expected: Expected) -> None:
    """The journal tells what the catalog remembers, no less and no more."""
    damaged: list[int] = []
    entries: dict[int, dict[str, Any]] = {}
    for seq, data in context.raw.journal(damaged=damaged.append):
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        entries[seq] = found if isinstance(found, dict) else {}
    findings.count("journal", len(entries) + len(damaged))
    with context.catalog.read() as connection:
        known = {line.seq: line for line in soundness.audit_lines(connection)}
        unfinished = soundness.unfinished(connection)
        highest = counters.current(connection, "seq")
    copy = "copy it from a backup of the yard; only rebuilding a lost catalog needs it"
    for seq in damaged:
        findings.add("damage", "journal_damaged", f"journal/{seq}", f"journal entry {seq} is damaged", hint=copy)
    for seq in sorted(known.keys() - entries.keys() - set(damaged) - unfinished):
        findings.add("warning", "journal_gap", f"journal/{seq}", f"the journal lacks entry {seq}", hint=copy)
    for seq in sorted(known.keys() & entries.keys()):
        line, entry = known[seq], entries[seq]
        same = (line.action, line.version, line.ref, line.at) == tuple(
            entry.get(key) for key in ("action", "version", "ref", "at")
        )
        if not same:
            text = f"journal entry {seq} and the catalog tell different stories: two catalogs may share this store"
            findings.add(
                "damage", "journal_differs", f"journal/{seq}", text, hint="yard log; restore the right catalog"
            )
    ahead = sorted(entries.keys() - known.keys())
    for seq in ahead:
        action, version = entries[seq].get("action"), entries[seq].get("version") or ""
        text = f"the journal tells of change {seq} ({action} {str(version)[:40]}), the catalog's last one is {highest}"
        hint = "this catalog may be older than the store: restore a newer one, or make it anew with yard rebuild"
        findings.add("warning", "journal_ahead", f"journal/{seq}", text, hint=hint)
    unknown = [(area, name) for area in AREAS for name in sorted(expected.listed[area] - expected.needed[area])]
    if ahead:
        for area, name in unknown:
            text = "nothing in this catalog needs it; a newer one may"
            findings.add(
                "warning", "unknown_object", f"{area}/{name}", text, hint="nothing is removed while this is so"
            )
    elif unknown:
        text = f"{len(unknown)} objects are needed by nothing"
        findings.add("info", "garbage", "store", text, hint="yard gc removes them in its own time")


def parse_percent(text: str) -> float:
    """A share such as `10%` or `2.5` as a number of percent.

    >>> parse_percent("10%")
    10.0

    Raises:
        InputError: It is no number above 0 and at most 100.
    """
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        share = -1.0
    if not 0 < share <= 100:
        raise InputError(f"`{text}` is no share of the data", hint="a percentage above 0 and at most 100, such as 10%")
    return share
