"""What a collection does to rows when objects go: what they held is forgotten, and what could come back no longer can.

All of it happens in the transaction in which the objects are unlinked. Nothing live may be touched: should a caller ask for
that, the transaction is refused. Knows which rows hang on which; no store, and not why an object is garbage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, select, update

from modelyard.catalog import candidates, files, liveness, segments
from modelyard.catalog.lists import chunks
from modelyard.catalog.schema import file_segments, reports, segment_inputs, version_files, versions
from modelyard.catalog.schema import files as files_table
from modelyard.catalog.schema import segments as segments_table
from modelyard.catalog.segments import SegmentRow
from modelyard.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.catalog.candidates import Name
    from modelyard.catalog.transaction import Transaction

__all__ = ["forget", "release"]

_DELETED, _COLLECTED = 1, 2


def forget(tx: Transaction, names: Iterable[Name]) -> set[str]:
    """Forget whatever hangs on these objects; the ids of the versions that became collected by it.

    A segment that lies in a whole file as well goes on there. One that is nowhere any more is forgotten, with those that are
    made from it and the files that it lies in; deleted versions with such a file are collected.

    Raises:
        InternalError: A live version has such a file: nothing may be unlinked.
    """
    wanted: dict[str, set[str]] = {}
    for area, name in names:
        wanted.setdefault(area, set()).add(name)
    packs = wanted.get("packs", set())
    whole = {digest for digest, row in files.find(tx.connection, wanted.get("files", ())).items() if row.whole}
    files.set_whole(tx, whole, False)
    lost = _lost_segments(tx, whole, packs)
    broken = _broken_files(tx.connection, whole, lost)
    collected = _collect_versions(tx, broken)
    files.forget(tx, broken)
    segments.forget(tx, lost)
    segments.forget_packs(tx, packs)
    for some in chunks(wanted.get("reports", ())):
        # A version that comes back by a commit must not point at reports that are gone.
        tx.connection.execute(delete(reports).where(reports.c.digest.in_(some)))
    return collected


def _lost_segments(tx: Transaction, whole: set[str], packs: set[str]) -> set[str]:
    """The segments that are nowhere once these files and packs are gone; the others are noted where they still are."""
    level: set[str] = set()
    for some in chunks(packs):
        level |= set(
            tx.connection.execute(select(segments_table.c.digest).where(segments_table.c.pack.in_(some))).scalars()
        )
    for some in chunks(whole):
        only = (
            select(segments_table.c.digest)
            .join(file_segments, file_segments.c.segment == segments_table.c.digest)
            .where(file_segments.c.file.in_(some), segments_table.c.encoding.is_(None))
        )
        level |= set(tx.connection.execute(only).scalars())
    lost: set[str] = set()
    while level:
        homes = segments.homes(tx.connection, level)
        kept = segments.find(tx.connection, homes).values()
        segments.place_all(tx, [SegmentRow(row.digest, row.size) for row in kept if row.encoding is not None])
        gone = level - homes.keys()
        lost |= gone
        level = _made_from(tx.connection, gone) - lost
    return lost


def _made_from(connection: Connection, digests: set[str]) -> set[str]:
    found: set[str] = set()
    for some in chunks(digests):
        query = select(segment_inputs.c.segment).where(segment_inputs.c.input.in_(some))
        found |= set(connection.execute(query).scalars())
    return found


def _broken_files(connection: Connection, whole: set[str], lost: set[str]) -> set[str]:
    """The files that cannot be put together any more."""
    pieces = files.pieces_of(connection, whole)
    broken = {digest for digest in whole if not pieces.get(digest)}
    for some in chunks(lost):
        query = (
            select(file_segments.c.file)
            .join(files_table, files_table.c.digest == file_segments.c.file)
            .where(file_segments.c.segment.in_(some), files_table.c.whole == 0)
        )
        broken |= set(connection.execute(query).scalars())
    return broken


def _collect_versions(tx: Transaction, broken: set[str]) -> set[str]:
    found: dict[int, tuple[str, int]] = {}
    for some in chunks(broken):
        query = (
            select(versions.c.seq, versions.c.id, versions.c.deleted)
            .join(version_files, version_files.c.version_seq == versions.c.seq)
            .where(version_files.c.blake3.in_(some))
        )
        found |= {row.seq: (row.id, row.deleted) for row in tx.connection.execute(query)}
    live = sorted(found.keys() & liveness.live_versions(tx.connection)) if found else []
    if live:
        raise InternalError(
            f"a collection was about to remove bytes of the live version {found[live[0]][0][:40]}",
            hint="nothing was removed; report this with the output of `yard check`",
        )
    gone = {seq for seq, (_, deleted) in found.items() if deleted == _DELETED}
    for seq in gone:
        tx.connection.execute(update(versions).where(versions.c.seq == seq).values(deleted=_COLLECTED))
    return {found[seq][0] for seq in gone}


def release(tx: Transaction, version_seqs: Iterable[int]) -> None:
    """Say that versions stop needing what they needed until now: marks from before they did are stale and are taken away.

    Without this, a mark from before a version was committed would outlive the version, and a reader who began while it
    lived would be younger than the mark that condemns what it reads.
    """
    connection = tx.connection
    names: list[Name] = []
    for seq in version_seqs:
        row = connection.execute(select(versions.c.id, versions.c.parent).where(versions.c.seq == seq)).one()
        had = set(
            connection.execute(select(version_files.c.blake3).where(version_files.c.version_seq == seq)).scalars()
        )
        made = connection.execute(
            select(reports.c.digest)
            .join(versions, versions.c.seq == reports.c.version_seq)
            .where(versions.c.id == row.id)
        ).scalars()
        pieces = {piece.segment for each in files.pieces_of(connection, had).values() for piece in each}
        closure = segments.closure(connection, pieces)
        homes = {home for places in segments.all_homes(connection, closure).values() for home, _ in places}
        names += [("links", row.id), ("manifests", row.id)]
        names += [("files", digest) for digest in had | homes]
        names += [("reports", digest) for digest in made]
        names += [("packs", each.pack) for each in closure.values() if each.pack is not None]
    candidates.unmark(tx, names)
