"""Versions as rows: what was committed, in which order, with its files and lineage edges.

Paths and digests are text here; what a manifest is, and whether the bytes exist, is the registry's business.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import CTE, BindParameter, Connection, Row, Select, bindparam, insert, select, update

from modelyard.catalog.repos import RepoRecord
from modelyard.catalog.schema import lineage, repos, version_files, version_metadata, versions
from modelyard.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelyard.catalog.transaction import Transaction

__all__ = [
    "COLLECTED",
    "DELETED",
    "LIVE",
    "FileRecord",
    "VersionRecord",
    "ancestry",
    "by_digest",
    "by_number",
    "by_prefix",
    "children",
    "in_repo",
    "is_deleted",
    "latest",
    "living_ancestor",
    "load",
    "numbers",
    "recorded_sha256",
    "save",
    "set_deleted",
    "state",
]

_CHUNK = 500  # rows asked for by one IN list; both databases take far more
_INDEXED = 256  # characters; PostgreSQL's index entries end at 2,704 bytes

# Built once: a statement costs more to put together than to run.
_SEQS: BindParameter[Any] = bindparam("seqs", expanding=True)
_ROWS = select(versions, repos.c.type, repos.c.name).join(repos, repos.c.id == versions.c.repo_id)
_FILES = select(version_files).order_by(version_files.c.version_seq, version_files.c.position)
_EDGES = select(lineage).order_by(lineage.c.version_seq, lineage.c.position)
_BY_SEQS = (
    _ROWS.where(versions.c.seq.in_(_SEQS)),
    _FILES.where(version_files.c.version_seq.in_(_SEQS)),
    _EDGES.where(lineage.c.version_seq.in_(_SEQS)),
)

LIVE, DELETED, COLLECTED = 0, 1, 2
"""What `versions.deleted` says: here; its name is gone and can come back; its bytes are gone, too."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a version; `git_blob` only for small ones."""

    path: str
    size: int
    blake3: str
    sha256: str
    git_blob: str | None = None


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version with everything the catalog knows of it; `seq` orders commits across repos."""

    seq: int
    repo: RepoRecord
    number: int
    id: str
    kind: str | None
    parent: str | None
    inputs: str | None
    created_at: str
    author: str
    message: str
    metadata: str
    size: int
    deleted: bool
    files: tuple[FileRecord, ...] = ()
    lineage: tuple[tuple[str, str], ...] = ()
    derivation: str | None = None
    collected: bool = False


def save(
    tx: Transaction,
    repo: RepoRecord,
    *,
    number: int,
    digest: str,
    kind: str | None,
    parent: str | None,
    inputs: str | None,
    message: str,
    metadata: str,
    files: Sequence[FileRecord],
    edges: Sequence[tuple[str, str]],
    derivation: str | None = None,
) -> int:
    """Write a version's rows; returns its `seq`.

    `metadata` is a JSON object of text to text, by which `in_repo` can filter. `derivation` is JSON text or None: what the
    committer says the files were computed by.
    """
    seq = tx.next("version")
    tx.connection.execute(
        insert(versions).values(
            seq=seq,
            repo_id=repo.id,
            number=number,
            id=digest,
            kind=kind,
            parent=parent,
            inputs=inputs,
            created_at=tx.at,
            author=tx.author,
            message=message,
            metadata=metadata,
            size=sum(file.size for file in files),
            deleted=LIVE,
            derivation=derivation,
        )
    )
    keys = [
        {"version_seq": seq, "key": _indexed(key), "value": _indexed(value)}
        for key, value in json.loads(metadata).items()
    ]
    if keys:
        tx.connection.execute(insert(version_metadata), keys)
    rows = [
        {"version_seq": seq, "position": position, "path": file.path, "size": file.size}
        | {"blake3": file.blake3, "sha256": file.sha256, "git_blob": file.git_blob}
        for position, file in enumerate(files)
    ]
    if rows:  # a rebuilt version whose manifest is gone has none
        tx.connection.execute(insert(version_files), rows)
    if edges:
        links = [
            {"version_seq": seq, "position": at, "type": kind, "target": target}
            for at, (kind, target) in enumerate(edges)
        ]
        tx.connection.execute(insert(lineage), links)
    return seq


def set_deleted(tx: Transaction, seq: int, *, deleted: bool | int, stored: bool = False) -> None:
    """Say whether a version is here (False or 0), deleted (True or 1) or collected (2); its rows stay.

    Args:
        tx: A write transaction.
        seq: The version.
        deleted: What it becomes. A collected version that is deleted again stays collected.
        stored: Every file of it is in the store again, as a commit of the same files knows: a collected version may
            come back.

    Raises:
        NotFoundError: A collected version cannot come back otherwise.
    """
    was, now = state(tx.connection, seq), int(deleted)
    if was == COLLECTED and now == LIVE and not stored:
        raise NotFoundError("the version cannot come back: its bytes were collected", hint="commit its files again")
    if was == COLLECTED and now == DELETED:
        return
    if was != now:
        tx.connection.execute(update(versions).where(versions.c.seq == seq).values(deleted=now))


def state(connection: Connection, seq: int) -> int:
    """`LIVE`, `DELETED` or `COLLECTED`."""
    return int(connection.execute(select(versions.c.deleted).where(versions.c.seq == seq)).scalar_one())


def is_deleted(connection: Connection, seq: int) -> bool:
    """Whether a version was deleted, collected or not."""
    return state(connection, seq) != LIVE


def _indexed(text: str) -> str:
    """A key or value as `version_metadata` holds it: itself, or its digest where an index would not take it."""
    return text if len(text) <= _INDEXED else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def by_number(connection: Connection, repo_id: int, number: int) -> int | None:
    """The `seq` of a repo's version by number, deleted or not."""
    query = select(versions.c.seq).where(versions.c.repo_id == repo_id, versions.c.number == number)
    return connection.execute(query).scalar_one_or_none()


def by_prefix(connection: Connection, repo_id: int, prefix: str) -> list[int]:
    """The `seq`s of a repo's versions whose digest starts with `prefix`, deleted or not, at most 20."""
    # Digests are hex, so every longer text sorts below prefix + "g"; a range uses the index on both databases.
    query = select(versions.c.seq).where(
        versions.c.repo_id == repo_id, versions.c.id >= prefix, versions.c.id < prefix + "g"
    )
    # Sorted here: SQLite would walk the whole repo in the order of an ORDER BY instead.
    return sorted(connection.execute(query.limit(20)).scalars())


def recorded_sha256(connection: Connection, blake3: str) -> str | None:
    """The SHA-256 that was recorded for a file's bytes when they were first committed, or None."""
    query = select(version_files.c.sha256).where(version_files.c.blake3 == blake3).limit(1)
    return connection.execute(query).scalar_one_or_none()


def by_digest(connection: Connection, digests: Iterable[str]) -> list[int]:
    """The `seq`s of every version with one of these digests, in any repo, in order of commit."""
    wanted = sorted(set(digests))
    found: list[int] = []
    for start in range(0, len(wanted), _CHUNK):
        query = select(versions.c.seq).where(versions.c.id.in_(wanted[start : start + _CHUNK]))
        found.extend(connection.execute(query).scalars())
    return sorted(found)


def latest(connection: Connection, repo_id: int) -> int | None:
    """The `seq` of the highest number that is not deleted."""
    query = select(versions.c.seq).where(versions.c.repo_id == repo_id, versions.c.deleted == LIVE)
    return connection.execute(query.order_by(versions.c.number.desc()).limit(1)).scalar_one_or_none()


def in_repo(
    connection: Connection,
    repo_id: int,
    *,
    limit: int | None = None,
    before: int | None = None,
    deleted: bool = False,
    where: Mapping[str, str] | None = None,
) -> list[VersionRecord]:
    """A repo's versions, highest number first, with numbers below `before`; a fixed number of queries to a page.

    Args:
        connection: A transaction.
        repo_id: The repo.
        limit: At most so many.
        before: Only those with smaller numbers.
        deleted: Also those that are deleted.
        where: Only those whose metadata has each of these keys with this very value.
    """
    query = select(versions.c.seq).where(versions.c.repo_id == repo_id)
    if not deleted:
        query = query.where(versions.c.deleted == LIVE)
    if before is not None:
        query = query.where(versions.c.number < before)
    for key, value in (where or {}).items():
        has = select(version_metadata.c.version_seq).where(
            version_metadata.c.key == _indexed(key), version_metadata.c.value == _indexed(value)
        )
        query = query.where(versions.c.seq.in_(has))
    query = query.order_by(versions.c.number.desc())
    if limit is not None:
        query = query.limit(limit)
    if where:
        # SQLite walks the repo to filter it, so that is done once and not in each of the three.
        return load(connection, connection.execute(query).scalars().all())
    chosen = select(query.subquery().c.seq)
    statements = (
        _ROWS.where(versions.c.seq.in_(chosen)),
        _FILES.where(version_files.c.version_seq.in_(chosen)),
        _EDGES.where(lineage.c.version_seq.in_(chosen)),
    )
    return sorted(_load(connection, statements), key=lambda record: -record.number)


def load(connection: Connection, seqs: Iterable[int]) -> list[VersionRecord]:
    """Versions by `seq`, in the order given; unknown ones are left out."""
    wanted = list(seqs)
    found: dict[int, VersionRecord] = {}
    for start in range(0, len(wanted), _CHUNK):
        some = {"seqs": wanted[start : start + _CHUNK]}
        found.update((record.seq, record) for record in _load(connection, _BY_SEQS, some))
    return [found[seq] for seq in wanted if seq in found]


def _load(
    connection: Connection,
    statements: tuple[Select[Any], Select[Any], Select[Any]],
    values: dict[str, Any] | None = None,
) -> list[VersionRecord]:
    rows = connection.execute(statements[0], values).all()
    files: dict[int, list[FileRecord]] = {}
    for row in connection.execute(statements[1], values):
        files.setdefault(row.version_seq, []).append(
            FileRecord(row.path, row.size, row.blake3, row.sha256, row.git_blob)
        )
    edges: dict[int, list[tuple[str, str]]] = {}
    for row in connection.execute(statements[2], values):
        edges.setdefault(row.version_seq, []).append((row.type, row.target))
    return [_record(row, files.get(row.seq, []), edges.get(row.seq, [])) for row in rows]


def _record(row: Row[tuple[object, ...]], files: list[FileRecord], edges: list[tuple[str, str]]) -> VersionRecord:
    return VersionRecord(
        seq=row.seq,
        repo=RepoRecord(row.repo_id, row.type, row.name),
        number=row.number,
        id=row.id,
        kind=row.kind,
        parent=row.parent,
        inputs=row.inputs,
        created_at=row.created_at,
        author=row.author,
        message=row.message,
        metadata=row.metadata,
        size=row.size,
        deleted=bool(row.deleted),
        files=tuple(files),
        lineage=tuple(edges),
        derivation=row.derivation,
        collected=row.deleted == COLLECTED,
    )


def children(connection: Connection, digests: Iterable[str], *, deleted: bool = False) -> list[tuple[str, str, str]]:
    """Lineage edges that point at one of these digests: `(child's digest, type, target)`."""
    wanted = sorted(set(digests))
    found: set[tuple[str, str, str]] = set()
    for start in range(0, len(wanted), _CHUNK):
        query = select(versions.c.id, lineage.c.type, lineage.c.target).join(
            versions, versions.c.seq == lineage.c.version_seq
        )
        query = query.where(lineage.c.target.in_(wanted[start : start + _CHUNK]))
        if not deleted:
            query = query.where(versions.c.deleted == LIVE)
        found.update((row.id, row.type, row.target) for row in connection.execute(query))
    return sorted(found)


def numbers(connection: Connection, repo_id: int, digests: Iterable[str]) -> dict[str, int]:
    """The numbers of a repo's versions by digest, deleted ones included; unknown digests are left out."""
    wanted = sorted(set(digests))
    found: dict[str, int] = {}
    for start in range(0, len(wanted), _CHUNK):
        query = select(versions.c.id, versions.c.number).where(versions.c.repo_id == repo_id)
        rows = connection.execute(query.where(versions.c.id.in_(wanted[start : start + _CHUNK])))
        found.update((row.id, row.number) for row in rows)
    return found


def ancestry(repo_id: int, digest: str) -> CTE:
    """A query (with one column, `id`) for a version and its parents, back to the first commit of its branch."""
    columns = select(versions.c.id, versions.c.parent).where(versions.c.repo_id == repo_id)
    line = columns.where(versions.c.id == digest).cte("line", recursive=True)
    # A union of distinct rows ends even if rows somehow formed a cycle.
    return line.union(columns.where(versions.c.id == line.c.parent))


def living_ancestor(connection: Connection, repo_id: int, digest: str | None) -> int | None:
    """The `seq` of the nearest version on the way from `digest` to its first parent that is not deleted."""
    columns = (versions.c.seq, versions.c.parent, versions.c.deleted)
    while digest is not None:
        row = connection.execute(select(*columns).where(versions.c.repo_id == repo_id, versions.c.id == digest)).first()
        if row is None or not row.deleted:
            return row.seq if row else None
        digest = row.parent
    return None
