"""Rows that contradict one another: what a sound catalog never holds, found by queries that read whole tables.

Foreign keys and transactions keep rows consistent; a damaged page, a half-restored backup or a hand in the database does
not. Each function gives plain values; what they mean is the registry's business. Knows no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Table, func, or_, select

from modelyard.catalog.schema import (
    alias_history,
    audit,
    candidates,
    counters,
    deployments,
    file_segments,
    files,
    leases,
    lineage,
    outbox,
    packs,
    refs,
    reports,
    repos,
    runs,
    segment_inputs,
    segments,
    version_files,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column

__all__ = [
    "AuditLine",
    "Behind",
    "Dangling",
    "audit_lines",
    "counters_behind",
    "dangling",
    "different_sizes",
    "kept_reports",
    "page_faults",
    "unfinished",
    "wrong_pieces",
]


class Dangling(NamedTuple):
    """A row of `table` (shown as text) that names a row of `missing` which is not there."""

    table: str
    row: str
    missing: str
    name: str


class Behind(NamedTuple):
    """A counter that is lower than a number that was taken from it."""

    counter: str
    value: int
    taken: int


class AuditLine(NamedTuple):
    """What a journal entry must agree with."""

    seq: int
    action: str
    author: str
    at: str
    version: str | None
    ref: str | None


def dangling(connection: Connection) -> list[Dangling]:
    """Rows that name rows which do not exist.

    Parents and lineage may name versions of another yard.
    """
    pairs: list[tuple[Table, Column[Any], Table, Column[Any]]] = [
        (versions, versions.c.repo_id, repos, repos.c.id),
        (version_files, version_files.c.version_seq, versions, versions.c.seq),
        (version_files, version_files.c.blake3, files, files.c.digest),
        (lineage, lineage.c.version_seq, versions, versions.c.seq),
        (refs, refs.c.version_seq, versions, versions.c.seq),
        (alias_history, alias_history.c.version_seq, versions, versions.c.seq),
        (reports, reports.c.version_seq, versions, versions.c.seq),
        (deployments, deployments.c.version_seq, versions, versions.c.seq),
        (file_segments, file_segments.c.file, files, files.c.digest),
        (file_segments, file_segments.c.segment, segments, segments.c.digest),
        (segment_inputs, segment_inputs.c.segment, segments, segments.c.digest),
        (segment_inputs, segment_inputs.c.input, segments, segments.c.digest),
        (segments, segments.c.pack, packs, packs.c.digest),
    ]
    found = []
    for table, column, target, named in pairs:
        other = target.alias("target")
        key = other.c[named.name]
        identity = list(table.primary_key.columns)
        query = (
            select(*identity, column.label("named"))
            .select_from(table.outerjoin(other, key == column))
            .where(column.is_not(None), key.is_(None))
        )
        if column is version_files.c.blake3:
            # Collected versions keep the list of their files, and nothing else.
            collected = select(versions.c.seq).where(versions.c.deleted == 2)
            query = query.where(version_files.c.version_seq.not_in(collected))
        for row in connection.execute(query):
            shown = ", ".join(str(value)[:64] for value in row[:-1])
            found.append(Dangling(table.name, shown, target.name, str(row.named)))
    return found


def counters_behind(connection: Connection) -> list[Behind]:
    """Counters that would give out a number again."""
    values = {row.name: int(row.value) for row in connection.execute(select(counters))}
    taken: list[tuple[str, Column[Any]]] = [
        ("seq", audit.c.seq),
        ("repo", repos.c.id),
        ("version", versions.c.seq),
        ("report", reports.c.seq),
        ("run", runs.c.seq),
        ("deployment", deployments.c.seq),
        ("lease", leases.c.heartbeat_seq),
        ("lease", candidates.c.marked_seq),
    ]
    found = []
    for counter, column in taken:
        highest = connection.execute(select(func.max(column))).scalar()
        if highest is not None and values.get(counter, 0) < highest:
            found.append(Behind(counter, values.get(counter, 0), int(highest)))
    query = (
        select(repos.c.name, repos.c.last_number, func.max(versions.c.number).label("highest"))
        .join(versions, versions.c.repo_id == repos.c.id)
        .group_by(repos.c.id, repos.c.name, repos.c.last_number)
        .having(func.max(versions.c.number) > repos.c.last_number)
    )
    found += [Behind(f"versions of {row.name}", row.last_number, row.highest) for row in connection.execute(query)]
    return found


def different_sizes(connection: Connection) -> list[tuple[str, str]]:
    """Files of which a version says something else (size, SHA-256) than the file's own row: digest and which."""
    query = (
        select(files.c.digest, version_files.c.size, files.c.size.label("own"), files.c.sha256)
        .distinct()
        .join(version_files, version_files.c.blake3 == files.c.digest)
        .where(or_(version_files.c.size != files.c.size, version_files.c.sha256 != files.c.sha256))
    )
    return [(row.digest, "size" if row.size != row.own else "SHA-256") for row in connection.execute(query)]


def wrong_pieces(connection: Connection) -> list[str]:
    """Files whose pieces do not cover them, one after another, or differ in size from their segments."""
    query = (
        select(
            file_segments.c.file,
            file_segments.c.start,
            file_segments.c.size,
            segments.c.size.label("own"),
            files.c.size.label("total"),
        )
        .join(segments, segments.c.digest == file_segments.c.segment)
        .join(files, files.c.digest == file_segments.c.file)
        .order_by(file_segments.c.file, file_segments.c.position)
    )
    wrong: set[str] = set()
    ends: dict[str, tuple[int, int]] = {}
    for row in connection.execute(query):
        end, _ = ends.get(row.file, (0, 0))
        if row.start != end or row.size != row.own:
            wrong.add(row.file)
        ends[row.file] = (end + row.size, row.total)
    wrong |= {file for file, (end, total) in ends.items() if end != total}
    return sorted(wrong)


def audit_lines(connection: Connection) -> Iterator[AuditLine]:
    """Every change, oldest first."""
    query = select(audit.c.seq, audit.c.action, audit.c.author, audit.c.at, audit.c.version_id, audit.c.ref)
    for row in connection.execute(query.order_by(audit.c.seq)):
        yield AuditLine(*row)


def kept_reports(connection: Connection) -> list[tuple[int, str, str]]:
    """The reports of versions that are not collected: the version's `seq` and id, and the report's digest."""
    query = (
        select(versions.c.seq, versions.c.id, reports.c.digest)
        .join(reports, reports.c.version_seq == versions.c.seq)
        .where(versions.c.deleted != 2)
        .order_by(reports.c.seq)
    )
    return [(row.seq, row.id, row.digest) for row in connection.execute(query)]


def unfinished(connection: Connection) -> set[int]:
    """The changes whose journal entry may not have been published yet."""
    return set(connection.execute(select(outbox.c.seq)).scalars())


def page_faults(connection: Connection) -> list[str]:
    """What SQLite finds wrong in the pages and indexes of its file; PostgreSQL is not asked, whose own tools are better."""
    if connection.dialect.name != "sqlite":
        return []
    rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars()
    return [text for text in rows if text != "ok"]
