"""What is live, needed, hot and cold: sets that are computed from the tables, never from a listing.

A version is live unless it was deleted, and while a deployment names it; so is every file of a live version, every segment
of a live file, and every input of a live segment. Each `needed_*` function answers for the whole yard, which is a few
scans, or for some names only, which walks upwards from them by index and costs no more in a large yard. It knows no bytes
and no store, and removes nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, or_, select, union

from modelyard.catalog.schema import (
    alias_history,
    deployments,
    file_segments,
    files,
    leases,
    lineage,
    refs,
    reports,
    segment_inputs,
    segments,
    version_files,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "cold_files",
    "hot_versions",
    "live_files",
    "live_segments",
    "live_versions",
    "needed_files",
    "needed_links",
    "needed_manifests",
    "needed_packs",
    "needed_reports",
]

_CHUNK = 500  # names in one IN list
_LIVE, _COLLECTED = 0, 2
_ID = re.compile(r"\b[0-9a-f]{64}\b")


def live_versions(connection: Connection) -> set[int]:
    """The `seq`s of the versions that are not deleted, and of those that a deployment names."""
    return set(connection.execute(select(versions.c.seq).where(_is_live())).scalars())


def live_files(connection: Connection) -> set[str]:
    """The files of live versions."""
    return set(connection.execute(_live_files()).scalars())


def live_segments(connection: Connection) -> set[str]:
    """The segments of live files, and everything that they are made from."""
    has = (
        select(version_files.c.blake3)
        .join(versions, versions.c.seq == version_files.c.version_seq)
        .where(version_files.c.blake3 == file_segments.c.file, _is_live())
    )
    live = set(connection.execute(select(file_segments.c.segment).where(exists(has))).scalars())
    made_from: dict[str, list[str]] = {}
    for row in connection.execute(select(segment_inputs.c.segment, segment_inputs.c.input)):
        made_from.setdefault(row.segment, []).append(row.input)
    # Walked here: the databases take four times as long for the same recursive union over a whole yard.
    level = live & made_from.keys()
    while level:
        new = {source for segment in level for source in made_from[segment]} - live
        live |= new
        level = new & made_from.keys()
    return live


def needed_files(connection: Connection, names: Iterable[str] | None = None) -> set[str]:
    """The files that must stay in `files/`: live and counted on as whole, or the only form of a live segment.

    Args:
        connection: A transaction.
        names: Answer for these only; None means all.
    """
    if names is None:
        return _live_whole_files(connection) | _sole_homes(connection)
    return _each(names, lambda chunk: _needed_of(connection, chunk))


def _live_whole_files(connection: Connection) -> set[str]:
    """Live files that are whole. One without a row, which no sound catalog has, counts as whole: it is kept."""
    query = _live_files().outerjoin(files, files.c.digest == version_files.c.blake3).where(_is_whole())
    return set(connection.execute(query).scalars())


def _in_no_live_file() -> ColumnElement[bool]:
    """For a segment: no live file that is whole has it, so that a dead one may be its only home."""
    lies, home, had, has = (table.alias() for table in (file_segments, files, version_files, versions))
    query = (
        select(lies.c.file)
        .join(home, home.c.digest == lies.c.file)
        .join(had, had.c.blake3 == lies.c.file)
        .join(has, has.c.seq == had.c.version_seq)
        .where(lies.c.segment == segments.c.digest, home.c.whole == 1)
    )
    deployed = exists(select(deployments.c.id).where(deployments.c.version_seq == has.c.seq))
    return ~exists(query.where((has.c.deleted == _LIVE) | deployed))


def _sole_homes(connection: Connection) -> set[str]:
    """Whole files that are not live but have a live segment which is in no whole file that is live."""
    has = (
        select(version_files.c.blake3)
        .join(versions, versions.c.seq == version_files.c.version_seq)
        .where(version_files.c.blake3 == files.c.digest, _is_live())
    )
    query = (
        select(files.c.digest, file_segments.c.segment)
        .join(file_segments, file_segments.c.file == files.c.digest)
        .join(segments, segments.c.digest == file_segments.c.segment)
        .where(files.c.whole == 1, segments.c.encoding.is_(None), ~exists(has), _in_no_live_file())
    )
    rows = connection.execute(query).all()
    live = live_segments(connection) if rows else set()
    return {row.digest for row in rows if row.segment in live}


def _needed_of(connection: Connection, chunk: list[str]) -> set[str]:
    held = (
        _live_files()
        .outerjoin(files, files.c.digest == version_files.c.blake3)
        .where(version_files.c.blake3.in_(chunk), _is_whole())
    )
    needed = set(connection.execute(held).scalars())
    rest = [name for name in chunk if name not in needed]
    start = (
        select(file_segments.c.file.label("start"), file_segments.c.segment)
        .join(files, files.c.digest == file_segments.c.file)
        .join(segments, segments.c.digest == file_segments.c.segment)
        .where(file_segments.c.file.in_(rest), files.c.whole == 1, segments.c.encoding.is_(None), _in_no_live_file())
    )
    return needed | _reaching_live(connection, start)


def needed_packs(connection: Connection, names: Iterable[str] | None = None) -> set[str]:
    """The packs that hold a live segment; of `names` only, where given."""
    if names is None:
        live = live_segments(connection)
        placed = select(segments.c.digest, segments.c.pack).where(segments.c.pack.is_not(None))
        return {row.pack for row in connection.execute(placed) if row.digest in live}
    return _each(names, lambda chunk: _reaching_live(connection, _segments_in(chunk)))


def _segments_in(packs: list[str]) -> Select[Any]:
    return select(segments.c.pack.label("start"), segments.c.digest.label("segment")).where(segments.c.pack.in_(packs))


def _reaching_live(connection: Connection, start: Select[Any]) -> set[str]:
    """Of the pairs `(start, segment)`, the starts from one of whose segments a way leads up to a live file."""
    first = start.cte("up", recursive=True)
    # Distinct rows: an end is reached even if inputs somehow formed a cycle.
    up = first.union(
        select(first.c.start, segment_inputs.c.segment).join(segment_inputs, segment_inputs.c.input == first.c.segment)
    )
    used = (
        select(file_segments.c.segment)
        .join(version_files, version_files.c.blake3 == file_segments.c.file)
        .join(versions, versions.c.seq == version_files.c.version_seq)
        .where(file_segments.c.segment == up.c.segment, _is_live())
    )
    return set(connection.execute(select(up.c.start).distinct().where(exists(used))).scalars())


def needed_manifests(connection: Connection, names: Iterable[str] | None = None) -> set[str]:
    """The manifests of versions that are not collected, and of those that such a version names; of `names` only, where given."""

    def query(chunk: list[str] | None) -> set[str]:
        kept = versions.c.deleted != _COLLECTED
        ids = select(versions.c.id).where(kept, _among(versions.c.id, chunk))
        parents = select(versions.c.parent).where(
            kept, versions.c.parent.is_not(None), _among(versions.c.parent, chunk)
        )
        sources = (
            select(lineage.c.target)
            .join(versions, versions.c.seq == lineage.c.version_seq)
            .where(kept, _among(lineage.c.target, chunk))
        )
        return set(connection.execute(union(ids, parents, sources)).scalars())

    return query(None) if names is None else _each(names, query)


def needed_reports(connection: Connection, names: Iterable[str] | None = None) -> set[str]:
    """The reports of versions that are not collected; of `names` only, where given."""

    def query(chunk: list[str] | None) -> set[str]:
        found = (
            select(reports.c.digest)
            .distinct()
            .join(versions, versions.c.seq == reports.c.version_seq)
            .where(versions.c.deleted != _COLLECTED, _among(reports.c.digest, chunk))
        )
        return set(connection.execute(found).scalars())

    return query(None) if names is None else _each(names, query)


def needed_links(connection: Connection, names: Iterable[str]) -> set[str]:
    """Of these version ids, those that are live and whose files are all whole: their folders of links hold no bytes of their own."""

    def query(chunk: list[str]) -> set[str]:
        scattered = (
            select(version_files.c.version_seq)
            .join(files, files.c.digest == version_files.c.blake3)
            .where(version_files.c.version_seq == versions.c.seq, files.c.whole == 0)
        )
        found = select(versions.c.id).where(versions.c.id.in_(chunk), _is_live(), ~exists(scattered))
        return set(connection.execute(found).scalars())

    return _each(names, query)


def hot_versions(connection: Connection, *, used_since: str | None) -> set[int]:
    """The `seq`s of live versions that somebody is likely to load soon.

    These are the ones that a ref, a deployment or a lease names, the last former holder of each alias, those with a file
    that was used at `used_since` or later (a moment as the catalog writes it; None: use does not count), and the bases of
    hot adapters.
    """
    last = select(alias_history.c.repo_id, alias_history.c.alias, func.max(alias_history.c.position).label("position"))
    last_of = last.group_by(alias_history.c.repo_id, alias_history.c.alias).subquery()
    former = select(alias_history.c.version_seq).join(
        last_of,
        and_(
            last_of.c.repo_id == alias_history.c.repo_id,
            last_of.c.alias == alias_history.c.alias,
            last_of.c.position == alias_history.c.position,
        ),
    )
    hot = set(
        connection.execute(union(select(refs.c.version_seq), select(deployments.c.version_seq), former)).scalars()
    )
    hot |= _leased(connection)
    if used_since is not None:
        used = select(version_files.c.version_seq).join(files, files.c.digest == version_files.c.blake3)
        hot |= set(connection.execute(used.where(files.c.used_at >= used_since)).scalars())
    hot |= _bases(connection, hot)
    return hot & live_versions(connection)


def _leased(connection: Connection) -> set[int]:
    """The versions whose ids stand in the purpose of a lease."""
    texts = connection.execute(select(leases.c.purpose)).scalars()
    named = {found for text in texts for found in _ID.findall(text)}
    return _seqs_of(connection, named)


def _bases(connection: Connection, hot: set[int]) -> set[int]:
    query = (
        select(versions.c.seq, lineage.c.target)
        .join(lineage, lineage.c.version_seq == versions.c.seq)
        .where(versions.c.kind == "adapter", lineage.c.type == "finetuned", _is_live())
    )
    return _seqs_of(connection, {row.target for row in connection.execute(query) if row.seq in hot})


def _seqs_of(connection: Connection, ids: set[str]) -> set[int]:
    found: set[int] = set()
    for chunk in _chunks(ids):
        found.update(connection.execute(select(versions.c.seq).where(versions.c.id.in_(chunk))).scalars())
    return found


def cold_files(connection: Connection, *, used_since: str | None) -> list[str]:
    """The live files that no hot version has, in the order in which they were first committed, whole or not.

    So a base comes before what was made from it. `used_since` is as in `hot_versions`.
    """
    hot = hot_versions(connection, used_since=used_since)
    query = (
        select(version_files.c.blake3, version_files.c.version_seq)
        .join(versions, versions.c.seq == version_files.c.version_seq)
        .where(_is_live())
        .order_by(version_files.c.version_seq, version_files.c.position)
    )
    first: dict[str, None] = {}
    warm: set[str] = set()
    for row in connection.execute(query):
        first.setdefault(row.blake3)
        if row.version_seq in hot:
            warm.add(row.blake3)
    return [file for file in first if file not in warm]


def _is_live() -> ColumnElement[bool]:
    return or_(versions.c.deleted == _LIVE, versions.c.seq.in_(select(deployments.c.version_seq)))


def _is_whole() -> ColumnElement[bool]:
    return or_(files.c.whole == 1, files.c.digest.is_(None))


def _live_files() -> Select[Any]:
    return (
        select(version_files.c.blake3)
        .distinct()
        .select_from(version_files)
        .join(versions, versions.c.seq == version_files.c.version_seq)
        .where(_is_live())
    )


def _among(column: ColumnElement[str], chunk: list[str] | None) -> ColumnElement[bool]:
    return column.in_(chunk) if chunk is not None else column.is_not(None)


def _each(names: Iterable[str], query: Callable[[list[str]], set[str]]) -> set[str]:
    found: set[str] = set()
    for chunk in _chunks(names):
        found |= query(chunk)
    return found


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    wanted = sorted(set(names))
    for start in range(0, len(wanted), _CHUNK):
        yield wanted[start : start + _CHUNK]
