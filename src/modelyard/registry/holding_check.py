"""Whether every file that is needed is held: whole, or all of its segments in packs and other whole files.

Nothing but names, sizes and the packs' indexes is read. Knows how bytes are kept; not what they mean, nor who named them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.catalog import files, segments, usage, versions
from modelyard.digest import Digest
from modelyard.errors import IntegrityError, YardError
from modelyard.registry.decoding import MAX_DEPTH
from modelyard.registry.model import version_of
from modelyard.store.packs import read_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelyard.catalog.segments import SegmentRow
    from modelyard.registry.context import Context
    from modelyard.registry.findings import Findings, Level
    from modelyard.store.base import ObjectArea
    from modelyard.store.packs import SegmentRecord

__all__ = ["Expected", "check_holdings", "is_there", "names_of"]

_BATCH = 1000
_HOLDERS = 10


@dataclass(frozen=True)
class Expected:
    """What the store lists, what of it is needed, what a collection has marked, and the live files and segments."""

    listed: Mapping[ObjectArea, set[str]]
    needed: Mapping[str, set[str]]
    marked: set[tuple[str, str]]
    files: set[str]
    segments: set[str]

    def level(self, area: str, name: str) -> Level:
        """How bad it is when this object is damaged or missing."""
        return "damage" if name in self.needed[area] else "info" if (area, name) in self.marked else "warning"


def is_there(context: Context, area: ObjectArea, name: str) -> bool:
    """Whether a regular object lies there."""
    if area in {"files", "packs"}:
        return context.raw.has_file(Digest(name), area="files" if area == "files" else "packs")
    return context.raw.has("manifests" if area == "manifests" else "reports", Digest(name))


def _lies(context: Context, expected: Expected, area: ObjectArea, name: str) -> bool:
    """Whether an object was listed, or is there all the same: who commits during a check comes after the listing."""
    return name in expected.listed[area] or is_there(context, area, name)


def names_of(context: Context, digests: Iterable[str]) -> list[str]:
    """The names of the first versions that have one of these files, those that are here before deleted ones."""
    with context.catalog.read() as connection:
        seqs = sorted({seq for each in usage.versions_with(connection, digests).values() for seq in each})[:_HOLDERS]
        found = versions.load(connection, seqs)
    return [version_of(record).name for record in sorted(found, key=lambda record: record.deleted)]


def check_holdings(context: Context, findings: Findings, expected: Expected) -> None:
    """Note every file, pack and segment that is not as the catalog says."""
    _check_kinds(context, findings, expected)
    _check_packs(context, findings, expected)
    _check_depths(context, findings)
    _check_files(context, findings, expected)


def _check_kinds(context: Context, findings: Findings, expected: Expected) -> None:
    """What has an object's name is a regular file, and no link, pipe or folder."""
    for area, names in expected.listed.items():
        findings.count(area if area in {"files", "packs"} else "objects", len(names))
        for name in sorted(names):
            if not is_there(context, area, name):
                level = "warning" if expected.level(area, name) == "info" else expected.level(area, name)
                text = f"{area}/{name[:40]} is no regular file: it is never followed or opened"
                hint = "look at what it is and remove it; then commit the files again"
                findings.add(level, "not_regular", f"{area}/{name}", text, hint=hint)
    for name in sorted(expected.needed["packs"] - expected.listed["packs"]):
        if is_there(context, "packs", name):
            continue
        hint = "copy it from a backup of the yard, or commit the files again"
        text = f"packs/{name[:40]} is missing"
        findings.add("damage", "missing", f"packs/{name}", text, holders=_users(context, name), hint=hint)
    with context.catalog.read() as connection:
        gone = versions.load(
            connection, versions.by_digest(connection, expected.needed["manifests"] - expected.listed["manifests"])
        )
    for record in gone:
        # Those of versions that are not collected are looked at one by one (`check`).
        if record.collected and not is_there(context, "manifests", record.id):
            text = f"the manifest {record.id[:40]} of a collected version, which a later one names, is missing"
            hint = "copy it from a backup of the yard; a rebuilt catalog will lack this version's files"
            findings.add("warning", "missing", f"manifests/{record.id}", text, hint=hint)


def _users(context: Context, name: str) -> list[str]:
    """Who needs a pack."""
    with context.catalog.read() as connection:
        closure: set[str] = set()
        level = set(usage.in_pack(connection, name))
        while level:
            closure |= level
            level = {user for each in usage.users_of(connection, level).values() for user in each} - closure
        lies = {file for each in closure for file in segments.users(connection, each)[0]}
    return names_of(context, lies)


def _check_packs(context: Context, findings: Findings, expected: Expected) -> None:
    with context.catalog.read() as connection:
        sizes = segments.packs(connection)
    for pack, size in sorted(sizes.items()):
        about, level = f"packs/{pack}", expected.level("packs", pack)
        if not _lies(context, expected, "packs", pack):
            if level != "damage":
                findings.add(level, "missing", about, f"the pack {pack[:40]}, which nothing live needs, is missing")
            continue
        try:
            found = context.raw.file_size(Digest(pack), area="packs")
            index = read_index(context.raw, Digest(pack)) if found == size else None
        except IntegrityError as error:
            users = _users(context, pack)
            findings.add(
                level, "damaged", about, error.message, holders=users, hint="copy it from a backup of the yard"
            )
            continue
        except YardError as error:
            findings.add(level, "unreadable", about, error.message, hint=error.hint or "")
            continue
        if index is None:
            text = f"the pack {pack[:40]} has {found} bytes, not {size}"
            findings.add(level, "wrong_size", about, text, holders=_users(context, pack))
            continue
        _compare(context, findings, expected, pack, {str(each.digest): each for each in index.segments})


def _compare(
    context: Context, findings: Findings, expected: Expected, pack: str, records: Mapping[str, SegmentRecord]
) -> None:
    """The rows of a pack's segments are what its index says."""
    with context.catalog.read() as connection:
        rows = segments.find(connection, usage.in_pack(connection, pack))
    for digest, row in rows.items():
        record = records.get(digest)
        if record is not None and _agree(row, record):
            continue
        what = "does not hold" if record is None else "keeps otherwise"
        findings.add(
            "damage" if digest in expected.segments else "warning",
            "index_differs",
            f"packs/{pack}",
            f"the pack {pack[:40]} {what} the segment {digest[:40]} that the catalog finds in it",
            hint="restore the catalog from a backup, or make it anew: yard rebuild",
        )


def _agree(row: SegmentRow, record: SegmentRecord) -> bool:
    return (row.size, row.encoding, row.offset, row.length, row.inputs, json.loads(row.params or "{}")) == (
        record.size,
        record.encoding,
        record.offset,
        record.length,
        tuple(map(str, record.inputs)),
        dict(record.params),
    )


def _check_depths(context: Context, findings: Findings) -> None:
    """No segment is made from itself, by however many steps, nor by more steps than a reader takes."""
    with context.catalog.read() as connection:
        made: dict[str, set[str]] = {}
        for segment, source in usage.all_inputs(connection):
            made.setdefault(segment, set()).add(source)
        rows = {line.digest: line for line in usage.all_segments(connection)}
    findings.count("segments", len(rows))
    depths: dict[str, int] = {}
    # Level by level from below: what is left over goes round in a circle.
    left = dict(made)
    while True:
        ready = {each for each, sources in left.items() if not sources & left.keys()}
        if not ready:
            break
        for each in ready:
            depths[each] = 1 + max(depths.get(source, 0) for source in left[each])
        for each in ready:
            del left[each]
    for each in sorted(left):
        text = f"the segment {each[:40]} is made from itself"
        findings.add("damage", "cycle", f"segments/{each}", text, hint="restore the catalog from a backup")
    for each, depth in depths.items():
        if depth > MAX_DEPTH:
            text = f"the segment {each[:40]} is {depth} steps away from bytes; readers take {MAX_DEPTH}"
            findings.add("damage", "too_deep", f"segments/{each}", text, hint="restore the catalog from a backup")
        elif each in rows and rows[each].depth < depth:
            text = f"the segment {each[:40]} counts {rows[each].depth} steps, and it is {depth}"
            findings.add("damage", "wrong_depth", f"segments/{each}", text, hint="restore the catalog from a backup")
    for line in rows.values():
        if line.encoding is not None and line.pack is None:
            text = f"the segment {line.digest[:40]} is kept as `{line.encoding}`, and no pack is named"
            findings.add("damage", "no_pack", f"segments/{line.digest}", text)


def _check_files(context: Context, findings: Findings, expected: Expected) -> None:
    """Every file that a version has is whole, with its size, or every segment of it is somewhere."""
    with context.catalog.read() as connection:
        known = sorted({digest for _, digest in usage.owners(connection)})
    for start in range(0, len(known), _BATCH):
        batch = known[start : start + _BATCH]
        with context.catalog.read() as connection:
            rows = files.find(connection, batch)
            scattered = [digest for digest, row in rows.items() if not row.whole]
            pieces = files.pieces_of(connection, scattered)
        for digest, row in rows.items():
            if row.whole:
                _check_whole(context, findings, expected, digest, row.size)
        _check_scattered(context, findings, expected, {d: [p.segment for p in pieces.get(d, [])] for d in scattered})


def _check_whole(context: Context, findings: Findings, expected: Expected, digest: str, size: int) -> None:
    about, level = f"files/{digest}", expected.level("files", digest)
    hint = (
        "yard check --repair, where its bytes are held elsewhere; else commit the file again or copy it from a backup"
    )
    if not _lies(context, expected, "files", digest):
        text = f"the file {digest[:40]} is missing"
        findings.add(level, "missing", about, text, holders=names_of(context, [digest]), hint=hint)
        return
    if not is_there(context, "files", digest):
        return  # said already
    found = context.raw.file_size(Digest(digest))
    if found != size:
        text = f"the file {digest[:40]} has {found} bytes, not {size}"
        findings.add(level, "wrong_size", about, text, holders=names_of(context, [digest]), hint=hint)


def _check_scattered(context: Context, findings: Findings, expected: Expected, pieces: Mapping[str, list[str]]) -> None:
    with context.catalog.read() as connection:
        closure = segments.closure(connection, {each for names in pieces.values() for each in names})
        homes = segments.all_homes(connection, closure)
    there: dict[str, bool] = {}

    def is_held(name: str, depth: int = 0) -> bool:
        row = closure.get(name)
        if row is None or depth > MAX_DEPTH:
            return False
        if name not in there:
            whole = any(_lies(context, expected, "files", file) for file, _ in homes.get(name, ()))
            packed = row.encoding is not None and row.pack is not None and _lies(context, expected, "packs", row.pack)
            there[name] = whole or (packed and all(is_held(each, depth + 1) for each in row.inputs))
        return there[name]

    for digest, names in pieces.items():
        gone = [name for name in names if not is_held(name)]
        if gone or not names:
            level: Level = "damage" if digest in expected.files else "info"
            text = f"the file {digest[:40]} is not whole, and {len(gone) or 'all'} of its segments are nowhere"
            hint = "commit the file again, or copy its packs from a backup of the yard"
            findings.add(level, "incomplete", f"files/{digest}", text, holders=names_of(context, [digest]), hint=hint)
