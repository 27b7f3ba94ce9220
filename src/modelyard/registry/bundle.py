"""Bundles: a version, and if wanted all that it was made from, as one file; see `docs/design/exchange.md`.

::

    yard.pack("team/intents@production", "intents.yard.tar", with_lineage=True)
    other.unpack("intents.yard.tar").version.id

Files are streamed both ways. Knows the index and what belongs together; headers are `tar`'s business, rows `adoption`'s.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.digest import Digest, canonical_json, digest_bytes, read_chunks
from modelyard.errors import ConflictError, IntegrityError, InternalError, NoSpaceError, YardError
from modelyard.registry.adoption import Adopted, adopt
from modelyard.registry.leases import lease
from modelyard.registry.packing import FORMAT, INDEX, INDEX_LIMIT, Index, Item, parse_index
from modelyard.registry.parcel import Consignment, Parcel, collect, parse_manifest
from modelyard.registry.signing import check_signature
from modelyard.registry.tar import Member, TarReader, TarWriter, open_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from modelyard.digest import FileDigests
    from modelyard.registry.context import Context
    from modelyard.registry.model import FileEntry, Version
    from modelyard.registry.reference import Reference

__all__ = ["Packed", "pack", "unpack"]

_NO_SPACE = {28, 122}  # ENOSPC, EDQUOT


@dataclass(frozen=True)
class Packed:
    """A bundle that was written.

    Attributes:
        path: Where.
        size: Its length in bytes.
        versions: Ids of the versions whose files are in it.
        missing: Versions of the lineage that this yard does not have.
    """

    path: Path
    size: int
    versions: tuple[Digest, ...]
    missing: tuple[Digest, ...]


def pack(
    context: Context,
    reference: str | Version,
    path: Path,
    *,
    with_lineage: bool = False,
    signatures: Sequence[bytes] = (),
) -> Packed:
    """Write a version into one new file; see `Yard.pack`."""
    if path.is_symlink() or path.exists():
        raise ConflictError(f"`{path}` is there already", hint="choose another name, or remove it")
    with lease(context, "pack") as beat:
        consignment = collect(context, reference, with_lineage=with_lineage)
        reports = {d: context.store.get("reports", d) for parcel in consignment.parcels for d in parcel.reports}
        signed = {digest_bytes(data): data for data in signatures}
        manifests = {parcel.id: parcel.data for parcel in consignment.parcels} | consignment.context
        index = _index(consignment, manifests, reports, signed)
        small = {INDEX: index}
        small |= {f"manifests/{digest}": data for digest, data in sorted(manifests.items())}
        small |= {f"reports/{digest}": data for digest, data in sorted(reports.items())}
        small |= {f"signatures/{digest}.sig": data for digest, data in sorted(signed.items())}
        try:
            size = _write(context, path, small, consignment.files(), beat)
        except OSError as error:
            raise _meaning(error, path) from error
    return Packed(path, size, tuple(p.id for p in consignment.parcels), consignment.missing)


def _index(
    consignment: Consignment,
    manifests: Mapping[Digest, bytes],
    reports: Mapping[Digest, bytes],
    signed: Mapping[Digest, bytes],
) -> bytes:
    return canonical_json(
        {
            "format": FORMAT,
            "version": consignment.version,
            "versions": [_described(parcel) for parcel in consignment.parcels],
            "context": sorted(consignment.context),
            "manifests": _sizes(manifests),
            "reports": _sizes(reports),
            "signatures": [item | {"version": consignment.version} for item in _sizes(signed)],
            "files": [{"digest": digest, "size": entry.size} for digest, entry in consignment.files().items()],
        }
    )


def _described(parcel: Parcel) -> dict[str, Any]:
    return {
        "id": parcel.id,
        "repo": parcel.repo,
        "repo_type": parcel.repo_type,
        "message": parcel.message,
        "metadata": parcel.metadata,
        "author": parcel.author,
        "at": parcel.at,
        "reports": list(parcel.reports),
        "derivation": parcel.derivation,
    }


def _sizes(objects: Mapping[Digest, bytes]) -> list[dict[str, Any]]:
    return [{"digest": digest, "size": len(data)} for digest, data in sorted(objects.items())]


def _write(
    context: Context,
    path: Path,
    small: Mapping[str, bytes],
    large: Mapping[Digest, FileEntry],
    beat: Callable[[], None],
) -> int:
    """Write beside the target, then link it there: a name that appeared meanwhile is not overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            tar = TarWriter(stream)
            for member, data in small.items():
                tar.add(member, len(data), iter([data]))
            for digest, entry in large.items():
                tar.add(f"files/{digest}", entry.size, _stored(context, digest))
                beat()
            tar.close()
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
            size = stream.tell()
        try:
            os.link(draft, path)
        except FileExistsError:
            raise ConflictError(
                f"`{path}` was written by somebody else meanwhile", hint="choose another name"
            ) from None
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return size


def _stored(context: Context, digest: Digest) -> Iterator[bytes]:
    """A stored file's bytes; `IntegrityError` at their end when they are not what they are called."""
    import blake3

    hasher = blake3.blake3()
    with context.store.open_file(digest) as stream:
        for chunk in read_chunks(stream):
            hasher.update(chunk)
            yield chunk
    if hasher.hexdigest() != digest:
        raise IntegrityError(
            f"the stored file {digest.short} is damaged", hint="yard check --read-data", digest=str(digest)
        )


def unpack(
    context: Context, path: Path, *, to: Reference | None = None, branch: str = "main", with_reports: bool = True
) -> Adopted:
    """Take the versions of a bundle in, all or none; see `Yard.unpack`."""
    with open_archive(path) as stream:
        tar = TarReader(stream, str(path))
        index = parse_index(tar.first(INDEX, INDEX_LIMIT), str(path))
        tar.check(index.members())
        manifests = {item.digest: _whole(tar, "manifests", item) for item in index.manifests}
        reports = {item.digest: _whole(tar, "reports", item) for item in index.reports}
        signatures = [_whole(tar, "signatures", item, ".sig") for item in index.signatures]
        files_at = stream.tell()
        consignment = _consignment(index, manifests, str(path), with_reports=with_reports)
        for data in signatures:
            check_signature(data, consignment.principal.manifest.files, str(path))

        def fill(beat: Callable[[], None]) -> dict[Digest, FileDigests]:
            stream.seek(files_at)
            found = {}
            for item in index.files:
                chunks = _verified(tar.member(f"files/{item.digest}", item.size), item.digest, f"files/{item.digest}")
                found[item.digest] = context.store.put_file(chunks)
                beat()
            return found

        if not with_reports:
            reports = {}
        adopted = adopt(context, consignment, fill, reports=reports, to=to, branch=branch, purpose="unpack")
    return Adopted(adopted.version, adopted.lineage, adopted.missing, tuple(signatures))


def _whole(tar: TarReader, folder: str, item: Item, suffix: str = "") -> bytes:
    name = f"{folder}/{item.digest}{suffix}"
    return b"".join(_verified(tar.member(name, item.size), item.digest, name))


def _verified(chunks: Iterator[bytes], digest: Digest, name: str) -> Iterator[bytes]:
    """The same chunks; an error at their end, before a store publishes them, when they are not what they are called."""
    import blake3

    hasher = blake3.blake3()
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != digest:
        raise IntegrityError(
            f"`{name}` holds other bytes than its name says: their digest is {hasher.hexdigest()}",
            hint="the bundle is damaged: fetch it again, or pack it again",
            code="bad_bundle",
            expected=str(digest),
            found=hasher.hexdigest(),
        )


def _consignment(index: Index, manifests: Mapping[Digest, bytes], label: str, *, with_reports: bool) -> Consignment:
    """The index and the manifests, which have to say the same."""
    parcels = [
        Parcel(
            data=manifests[item.id],
            manifest=parse_manifest(manifests[item.id]),
            repo_type=item.repo_type,
            repo=item.repo,
            message=item.message,
            metadata=item.metadata,
            author=item.author,
            at=item.at,
            reports=item.reports if with_reports else (),
            derivation=item.derivation,
        )
        for item in index.versions
    ]
    held = {digest: manifests[digest] for digest in index.context}
    for data in held.values():
        parse_manifest(data)
    made = Consignment(index.version, tuple(parcels), held)
    listed: list[Member] = [(item.digest, item.size) for item in index.files]
    if listed != [(digest, entry.size) for digest, entry in made.files().items()]:
        raise IntegrityError(
            f"the bundle `{label}` is refused: its files are not those of its manifests",
            hint="nothing was unpacked; fetch it again, or pack it again",
            code="bad_bundle",
        )
    named = {digest for parcel in parcels for digest in parcel.manifest.named()}
    if not set(held) <= named:
        raise IntegrityError(f"the bundle `{label}` is refused: it has manifests that nothing names", code="bad_bundle")
    return made


def _meaning(error: OSError, path: Path) -> YardError:
    if error.errno in _NO_SPACE:
        return NoSpaceError(f"the disk is full: `{path}` was not written", hint="free some space and try again")
    if error.errno is None:
        return InternalError(f"`{path}` cannot be written: {error}")
    return YardError(f"`{path}` cannot be written: {error.strerror}", hint="check that its folder may be written")
