"""What takes how much: per version what it is, what it shares, what deleting it would free, and what holds it.

Bytes are counted as they lie on disk: a whole file is its size, a segment in a pack is its payload (nothing, when it is
derived), each once, however many versions have it. Two questions differ. What is *unique* is in no other version; what deleting would
*free* is needed by no other version: a base from whose tensors others are made is unique and frees nothing. Knows rows; what
is live is `catalog.liveness`'s to say, and the store is asked only for the sizes of what the catalog does not know.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.catalog import deployments, liveness, refs, repos, segments, versions
from modelyard.catalog.usage import repos_of
from modelyard.digest import Digest
from modelyard.errors import YardError
from modelyard.registry.accounts import Accounts, Claims
from modelyard.registry.model import RepoType, version_of
from modelyard.registry.reference import Reference
from modelyard.registry.resolve import find_record, find_repo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from modelyard.catalog.repos import RepoRecord
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context
    from modelyard.store.base import ByteArea, Store

__all__ = ["RepoUsage", "Usage", "VersionUsage", "usage"]


@dataclass(frozen=True)
class VersionUsage:
    """What one version takes, in bytes.

    Attributes:
        name: The version as a reference.
        id: Its digest.
        kind: What it is.
        deleted: Its name is gone; what of it is stored is there because something else needs it, or is garbage.
        logical: Its files' sizes.
        stored: What of it lies on disk.
        unique: What of that no other version has.
        shared: The rest of it.
        freed: What deleting it would free, after a collection: what only it needs, its inputs included.
        encodings: Its files' bytes by how they are kept: `whole`, `raw`, `packed`, `delta`, `derived`, `elsewhere` (in a
            whole file of another version).
        held_by: What keeps it: names, deployments, and versions that are made from its segments.
    """

    name: str
    id: str
    kind: str | None
    deleted: bool
    logical: int
    stored: int
    unique: int
    freed: int
    encodings: Mapping[str, int] = field(default_factory=dict)
    held_by: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """What of `stored` another version has, too."""
        return self.stored - self.unique


@dataclass(frozen=True)
class RepoUsage:
    """What the versions of a repo take together; the numbers are as in `VersionUsage`, with other *repos* in place of other versions."""

    name: str
    repo_type: RepoType
    logical: int
    stored: int
    unique: int
    freed: int
    versions: tuple[VersionUsage, ...] = ()

    @property
    def shared(self) -> int:
        """What of `stored` another repo has, too."""
        return self.stored - self.unique


@dataclass(frozen=True)
class Usage:
    """What a yard takes.

    Attributes:
        repos: By name; all of them, or the one that was asked for, with its versions.
        logical: Bytes of the files of all versions that are not deleted, each version counted in full.
        stored: Bytes of the whole files and packs that are needed.
        garbage: Bytes of whole files and packs that nothing needs, and that a collection frees.
        dead: Bytes of dead payloads in packs that are needed, as far as they are more than half of a pack: compaction frees them.
    """

    repos: tuple[RepoUsage, ...]
    logical: int
    stored: int
    garbage: int
    dead: int

    def to_dict(self) -> dict[str, Any]:
        """The usage as plain JSON values."""
        plain = asdict(self)
        for repo, made in zip(self.repos, plain["repos"], strict=True):
            made["shared"] = repo.shared
            for version, line in zip(repo.versions, made["versions"], strict=True):
                line["shared"], line["encodings"] = version.shared, dict(version.encodings)
                line["held_by"] = list(version.held_by)
        return plain


def usage(context: Context, reference: str | None = None) -> Usage:
    """What takes how much; see `Yard.usage`."""
    with context.catalog.read() as connection:
        books = _Books(connection)
        if reference is None:
            chosen = [
                _Chosen(repo, versions.in_repo(connection, repo.id, deleted=True), []) for repo in _all(connection)
            ]
        else:
            chosen = [_named(connection, reference)]
        made = tuple(books.repo(each) for each in chosen)
        return Usage(made, books.logical(), *books.totals(context.raw))


@dataclass(frozen=True)
class _Chosen:
    """A repo, its versions, and those of them that are shown one by one."""

    repo: RepoRecord
    records: Sequence[VersionRecord]
    shown: Sequence[VersionRecord]


def _all(connection: Connection) -> list[RepoRecord]:
    found = (repos.find(connection, repo_type, name) for repo_type, name in repos.names(connection))
    return sorted((repo for repo in found if repo is not None), key=lambda repo: (repo.name, repo.type))


def _named(connection: Connection, reference: str) -> _Chosen:
    parsed = Reference.parse(reference)
    repo = find_repo(connection, parsed)
    records = versions.in_repo(connection, repo.id, deleted=True)
    shown = [find_record(connection, repo, parsed, deleted=True)] if "@" in reference else records
    return _Chosen(repo, records, shown)


class _Books:
    """The accounts of a whole yard, by version and by repo."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._accounts = accounts = Accounts.read(connection)
        repo_of = repos_of(connection)
        self._by_version = accounts.claims({version: version for version in accounts.live})
        self._by_repo = accounts.claims(repo_of)
        self._unique, self._freed = self._sums(self._by_version)
        self._repo_unique, self._repo_freed = self._sums(self._by_repo)

    def _sums(self, claims: Claims) -> tuple[Counter[int], Counter[int]]:
        return (
            self._accounts.owned(claims.had_files, claims.had_segments),
            self._accounts.owned(claims.needed_files, claims.needed_segments),
        )

    def repo(self, chosen: _Chosen) -> RepoUsage:
        """What the versions of a repo take."""
        accounts = self._accounts
        live = [record for record in chosen.records if record.seq in accounts.live]
        units = accounts.units({file for record in live for file in accounts.having.get(record.seq, ())})
        name = f"datasets/{chosen.repo.name}" if chosen.repo.type == "dataset" else chosen.repo.name
        return RepoUsage(
            name,
            chosen.repo.type,  # type: ignore[arg-type]  # the table's CHECK allows no other
            sum(record.size for record in live),
            accounts.size(*units),
            self._repo_unique[chosen.repo.id],
            self._repo_freed[chosen.repo.id],
            tuple(self._version(record) for record in chosen.shown),
        )

    def _version(self, record: VersionRecord) -> VersionUsage:
        accounts = self._accounts
        files = accounts.having.get(record.seq, [])
        whole, payloads = accounts.units(files)
        live = record.seq in accounts.live
        if not live:
            # What of it is still needed; the rest is garbage and no version's any more.
            whole &= self._by_version.needed_files.keys()
            payloads &= self._by_version.needed_segments.keys()
        return VersionUsage(
            version_of(record).name,
            record.id,
            record.kind,
            record.deleted,
            record.size,
            accounts.size(whole, payloads),
            self._unique[record.seq],
            self._freed[record.seq] if live else 0,
            accounts.encodings(files),
            tuple(self._holders(record, files)),
        )

    def _holders(self, record: VersionRecord, files: Sequence[str]) -> list[str]:
        connection = self._connection
        holders = [f"{ref.type} `{ref.name}`" for ref in refs.names_of(connection, record.seq)]
        holders += [f"rollback of `{alias}`" for alias in refs.former_holders(connection, record.seq)]
        holders += [f"deployment `{found}`" for found in deployments.of_version(connection, record.seq)]
        made = {seq: count for seq, count in self._accounts.made_from(files).items() if seq != record.seq}
        for child in versions.load(connection, made):
            holders.append(f"{made[child.seq]} segments of `{version_of(child).name}` are made from it")
        return holders

    def logical(self) -> int:
        """Bytes of all live versions, each in full."""
        accounts = self._accounts
        sizes = {file: line.size for file, line in accounts.files.items()}
        return sum(sizes.get(file, 0) for version in accounts.live for file in accounts.having.get(version, ()))

    def totals(self, raw: Store) -> tuple[int, int, int]:
        """Stored, garbage and dead bytes; see `Usage`."""
        packs = segments.packs(self._connection)
        files = {name: line.size for name, line in self._accounts.files.items()}
        kept = {"files": liveness.needed_files(self._connection), "packs": liveness.needed_packs(self._connection)}
        stored = sum(files.get(name, 0) for name in kept["files"]) + sum(packs.get(name, 0) for name in kept["packs"])
        garbage = 0
        areas: tuple[tuple[ByteArea, dict[str, int]], ...] = (("files", files), ("packs", packs))
        for area, sizes in areas:
            for name in raw.digests(area):
                if name not in kept[area]:
                    garbage += sizes[name] if name in sizes else _size(raw, area, name)
        payload: Counter[str] = Counter()
        for line in self._accounts.segments.values():
            if line.pack is not None and line.digest in self._by_version.needed_segments:
                payload[line.pack] += line.length
        # What is in a pack beside live payloads: dead ones and the index; an index is kept, so only the former count.
        dead = sum(
            _payload(raw, pack) - payload[pack] for pack in kept["packs"] if packs.get(pack, 0) > 2 * payload[pack]
        )
        return stored, garbage, dead


def _size(raw: Store, area: ByteArea, name: Digest) -> int:
    try:
        return raw.file_size(name, area=area)
    except YardError:
        return 0  # it went while we looked


def _payload(raw: Store, pack: str) -> int:
    """The payload bytes of a pack, live or dead."""
    from modelyard.store.packs import read_index

    try:
        return sum(record.length for record in read_index(raw, Digest(pack)).segments)
    except YardError:
        return 0  # a damaged pack is what `yard check` is about
