"""A version on its way from one yard to another: its manifest's bytes, and what people said about it.

`collect` takes versions out of a yard, with or without what they were made from; `parse_manifest` reads a manifest that
somebody else wrote, strictly. Nothing here writes. Knows no archive, and not how files travel.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.catalog import reports as report_rows
from modelyard.catalog import versions
from modelyard.digest import Digest, canonical_json, digest_bytes
from modelyard.errors import InputError, IntegrityError, InternalError, RefError
from modelyard.registry.manifest import FORMAT
from modelyard.registry.model import KINDS, LINEAGE_TYPES, Edge, FileEntry
from modelyard.registry.names import check_paths
from modelyard.registry.resolve import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context
    from modelyard.registry.model import Kind, RepoType, Version

__all__ = ["Consignment", "Manifest", "Parcel", "collect", "parse_manifest"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 2**53 - 1
_KEYS = {"format", "parent", "kind", "files", "lineage", "inputs"}


@dataclass(frozen=True)
class Manifest:
    """What a manifest says; see `docs/design/store-format.md`."""

    id: Digest
    kind: Kind | None
    parent: Digest | None
    files: tuple[FileEntry, ...]
    lineage: tuple[Edge, ...]
    inputs: Digest | None

    def named(self) -> list[Digest]:
        """The versions that it names: its parent and what it was made from."""
        return [*([self.parent] if self.parent else []), *(edge.version for edge in self.lineage)]


@dataclass(frozen=True)
class Parcel:
    """A version without its files.

    Attributes:
        data: The manifest's bytes, which decide the version's id.
        manifest: What they say.
        repo_type: Of the repo that it comes from.
        repo: The repo's name.
        message: For people.
        metadata: Text to text.
        author: Who committed it.
        at: When, in UTC.
        reports: Digests of its reports in the order they were made.
        derivation: What the committer says the files were computed by, as JSON text; empty when nothing was said.
    """

    data: bytes
    manifest: Manifest
    repo_type: RepoType
    repo: str
    message: str
    metadata: dict[str, str]
    author: str
    at: str
    reports: tuple[Digest, ...] = ()
    derivation: str = ""

    @property
    def id(self) -> Digest:
        """The version's id."""
        return self.manifest.id


@dataclass(frozen=True)
class Consignment:
    """Versions that travel together.

    Attributes:
        version: The one that was asked for.
        parcels: It and what comes along, sorted by id.
        context: Manifests of versions that are named but do not come along.
        missing: Versions that are named and that the sender does not have.
    """

    version: Digest
    parcels: tuple[Parcel, ...]
    context: dict[Digest, bytes] = field(default_factory=dict)
    missing: tuple[Digest, ...] = ()

    @property
    def principal(self) -> Parcel:
        """The parcel of the version that was asked for."""
        return next(parcel for parcel in self.parcels if parcel.id == self.version)

    def files(self) -> dict[Digest, FileEntry]:
        """Every file, once, sorted by digest."""
        found = {entry.blake3: entry for parcel in self.parcels for entry in parcel.manifest.files}
        return dict(sorted(found.items()))


def collect(context: Context, reference: str | Version, *, with_lineage: bool) -> Consignment:
    """A version of this yard, and with `with_lineage` every version that it was made from.

    Raises:
        NotFoundError: There is no such version.
        IntegrityError: A manifest or report is damaged or missing in the store.
    """
    with context.catalog.read() as connection:
        root = record_of(connection, reference)
        records, missing = _records(connection, root, with_lineage=with_lineage)
        listed = {record.id: report_rows.of_version(connection, record.seq) for record in records.values()}
    parcels = [
        _parcel(context, record, [Digest(row.digest) for row in listed[record.id]]) for record in records.values()
    ]
    named = {digest for parcel in parcels for digest in parcel.manifest.named()} - {Digest(each) for each in records}
    held = {digest: context.store.get("manifests", digest) for digest in sorted(named) if _has(context, digest)}
    return Consignment(
        version=Digest(root.id),
        parcels=tuple(sorted(parcels, key=lambda parcel: parcel.id)),
        context=held,
        missing=tuple(sorted(missing)),
    )


def _has(context: Context, manifest: Digest) -> bool:
    return context.store.has("manifests", manifest)


def _records(
    connection: Connection, root: VersionRecord, *, with_lineage: bool
) -> tuple[dict[str, VersionRecord], set[Digest]]:
    """The version and, if asked for, all of its lineage; and what of it this yard does not have."""
    found = {root.id: root}
    missing: set[Digest] = set()
    level = {target for _, target in root.lineage}
    while level:
        live = {r.id: r for r in reversed(_live(connection, level))}
        missing |= {Digest(digest) for digest in level - set(live)}
        if not with_lineage:
            break
        found |= live
        level = {target for record in live.values() for _, target in record.lineage} - set(found) - set(missing)
    return found, missing


def _live(connection: Connection, digests: Iterable[str]) -> list[VersionRecord]:
    return [
        record for record in versions.load(connection, versions.by_digest(connection, digests)) if not record.deleted
    ]


def _parcel(context: Context, record: VersionRecord, listed: list[Digest]) -> Parcel:
    data = context.store.get("manifests", Digest(record.id))
    return Parcel(
        data=data,
        manifest=parse_manifest(data),
        repo_type=record.repo.type,  # type: ignore[arg-type]  # the table's CHECK allows no other
        repo=record.repo.name,
        message=record.message,
        metadata=json.loads(record.metadata),
        author=record.author,
        at=record.created_at,
        reports=tuple(listed),
        derivation=record.derivation or "",
    )


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest that somebody else may have written.

    Raises:
        InputError: It is of another format (a newer program's, perhaps).
        IntegrityError: It is not exactly what the format allows: not canonical, an unknown key, a wrong value or order.
    """
    digest = digest_bytes(data)
    try:
        value = json.loads(data)
        canonical = canonical_json(value) if isinstance(value, dict) else b""
    except (ValueError, RecursionError, InternalError) as error:
        raise _wrong(digest, "it is not canonical JSON") from error
    if not isinstance(value, dict) or canonical != data:
        raise _wrong(digest, "it is not canonical JSON")
    if value.get("format") != FORMAT:
        raise InputError(
            f"manifest {digest.short} has the format {str(value.get('format'))[:40]!r}, not {FORMAT!r}",
            hint="use a newer modelyard",
        )
    if unknown := sorted(set(value) - _KEYS):
        raise _wrong(digest, f"it has the unknown key {unknown[0][:40]!r}")
    kind = value.get("kind")
    if kind is not None and kind not in KINDS:
        raise _wrong(digest, "its kind is not one")
    return Manifest(
        id=digest,
        kind=kind,
        parent=_reference(digest, value, "parent"),
        files=_files(digest, value.get("files")),
        lineage=_lineage(digest, value.get("lineage")),
        inputs=_reference(digest, value, "inputs"),
    )


def _reference(manifest: Digest, value: dict[str, Any], key: str) -> Digest | None:
    return _digest(manifest, value[key], key) if key in value else None


def _digest(manifest: Digest, text: object, what: str) -> Digest:
    try:
        return Digest(text if isinstance(text, str) else "")
    except ValueError:
        raise _wrong(manifest, f"its {what} is not a digest") from None


def _files(manifest: Digest, listing: object) -> tuple[FileEntry, ...]:
    if not isinstance(listing, list) or not listing:
        raise _wrong(manifest, "it lists no files")
    found = []
    for item in listing:
        if not isinstance(item, dict) or set(item) != {"path", "size", "blake3", "sha256"}:
            raise _wrong(manifest, "a file has other keys than path, size, blake3 and sha256")
        path, size, sha256 = item["path"], item["size"], item["sha256"]
        if not isinstance(path, str) or not isinstance(size, int) or not 0 <= size <= _MOST:
            raise _wrong(manifest, "a file has no path, or no size")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise _wrong(manifest, "a file's sha256 is not one")
        found.append(FileEntry(path, size, _digest(manifest, item["blake3"], "file's blake3"), sha256))
    paths = [entry.path for entry in found]
    try:
        check_paths(paths)
    except RefError as error:
        raise _wrong(manifest, error.message) from error
    if paths != sorted(paths, key=str.encode):
        raise _wrong(manifest, "its files are not in order")
    return tuple(found)


def _lineage(manifest: Digest, listing: object) -> tuple[Edge, ...]:
    if not isinstance(listing, list):
        raise _wrong(manifest, "it has no lineage")
    found = []
    for item in listing:
        if not isinstance(item, dict) or set(item) != {"type", "version"} or item["type"] not in LINEAGE_TYPES:
            raise _wrong(manifest, "an edge of its lineage is not one")
        found.append(Edge(item["type"], _digest(manifest, item["version"], "lineage")))
    pairs = [(edge.type, edge.version) for edge in found]
    if pairs != sorted(set(pairs)):
        raise _wrong(manifest, "its lineage is not in order")
    return tuple(found)


def _wrong(manifest: Digest, why: str) -> IntegrityError:
    return IntegrityError(f"manifest {manifest.short} is refused: {why}", code="bad_manifest")
