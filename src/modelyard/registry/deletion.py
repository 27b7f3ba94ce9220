"""Deletion: a name goes, bytes that something live needs never do.

A version that something holds (a ref, an alias that could roll back to it, a deployment, a version made from it) is
refused with the holders listed; `force` takes its names away too. `undelete` brings a version back by its number. Bytes
are the collection's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.catalog import Transaction, deployments, files, refs, removal, versions
from modelyard.errors import ConflictError, NotFoundError, RefError
from modelyard.registry.model import Deletion, Version, version_of
from modelyard.registry.names import shown
from modelyard.registry.presence import held
from modelyard.registry.reference import Reference
from modelyard.registry.resolve import find_record, find_repo

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelyard.catalog.refs import RefRecord
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["delete", "undelete"]


def delete(context: Context, reference: str | Version, *, force: bool) -> Deletion:
    """Delete a version by number or digest, or a ref by name; see `Yard.delete`."""
    text = reference.name if isinstance(reference, Version) else reference
    parsed = Reference.parse(text)
    if "@" not in text:
        raise RefError(
            f"`{shown(text)}` does not say what to delete", hint=f"name a version or a ref: {text}@v1, {text}@old-tag"
        )
    with context.change() as tx:
        repo = find_repo(tx.connection, parsed)
        ref = refs.find(tx.connection, repo.id, parsed.rev)
        if ref is not None:
            return _delete_ref(tx, repo.key, parsed, ref, force=force)
        record = find_record(tx.connection, repo, parsed)
        return _delete_version(tx, record, force=force)


def _delete_ref(
    tx: Transaction, repo: tuple[int, str, str], parsed: Reference, ref: RefRecord, *, force: bool
) -> Deletion:
    followers = [found.id for found in deployments.listing(tx.connection) if found.reference == str(parsed)]
    if (ref.type == "alias" and followers) or (ref.type == "branch" and ref.name == "main"):
        why = (
            f"deployments follow it: {', '.join(followers)}" if followers else "it is the branch that a bare name means"
        )
        if not force:
            raise ConflictError(
                f"the {ref.type} `{parsed}` is in use: {why}", hint="--force removes the name", holders=followers
            )
    refs.remove(tx, repo[0], ref.name)
    tx.record("delete-ref", repo=repo, ref=ref.name, previous=ref.version_id, detail={"type": ref.type})
    return Deletion("ref", str(parsed))


def _delete_version(tx: Transaction, record: VersionRecord, *, force: bool) -> Deletion:
    holders = _holders(tx.connection, record)
    name = version_of(record).name
    if holders and not force:
        raise ConflictError(
            f"`{name}` is in use: {'; '.join(holders)}",
            hint="--force removes its names; bytes that something needs stay",
            holders=holders,
        )
    moved = {}
    for ref in refs.names_of(tx.connection, record.seq):
        heir = versions.living_ancestor(tx.connection, record.repo.id, record.parent) if ref.type == "branch" else None
        if heir is not None:
            refs.point(tx, record.repo.id, ref.name, ref.type, heir)
            moved[ref.name] = versions.load(tx.connection, [heir])[0].id
        else:
            refs.remove(tx, record.repo.id, ref.name)
            moved[ref.name] = ""
    refs.forget_version(tx, record.seq)
    versions.set_deleted(tx, record.seq, deleted=True)
    removal.release(tx, [record.seq])
    detail = {"number": record.number, "refs": moved, "holders": holders}
    tx.record("delete", repo=record.repo.key, version=record.id, detail=detail)
    return Deletion("version", name, tuple(holders))


def _holders(connection: Connection, record: VersionRecord) -> list[str]:
    """What keeps a version, in words."""
    named = [f"{ref.type} `{ref.name}`" for ref in refs.names_of(connection, record.seq)]
    returning = [f"rollback of `{alias}`" for alias in refs.former_holders(connection, record.seq)]
    deployed = [f"deployment `{found}`" for found in deployments.of_version(connection, record.seq)]
    # The same digest in another repo keeps what was made from it.
    twins = [
        found
        for found in versions.load(connection, versions.by_digest(connection, [record.id]))
        if not found.deleted and found.seq != record.seq
    ]
    made = [] if twins else sorted({child for child, _, _ in versions.children(connection, [record.id])})
    names = [
        version_of(child).name
        for child in versions.load(connection, versions.by_digest(connection, made))
        if not child.deleted
    ]
    return [*named, *returning, *deployed, *(f"made from it: `{name}`" for name in names)]


def undelete(context: Context, reference: str | Version) -> Version:
    """Bring a deleted version back; see `Yard.undelete`."""
    parsed = Reference.parse(reference.name if isinstance(reference, Version) else reference)
    if parsed.number is None and parsed.prefix is None:
        raise RefError(
            f"`{parsed}` is no number or digest; refs do not come back", hint=f"yard undelete {parsed.repo_text}@v1"
        )
    with context.change() as tx:
        repo = find_repo(tx.connection, parsed)
        record = find_record(tx.connection, repo, parsed, deleted=True)
        if record.deleted:
            gone = "its bytes were collected" if record.collected else _lost(context, tx.connection, record)
            if gone:
                raise NotFoundError(
                    f"`{version_of(record).name}` cannot come back: {gone}", hint="commit its files again"
                )
            versions.set_deleted(tx, record.seq, deleted=False)
            tx.record("undelete", repo=repo.key, version=record.id, detail={"number": record.number})
        return version_of(versions.load(tx.connection, [record.seq])[0])


def _lost(context: Context, connection: Connection, record: VersionRecord) -> str:
    """What of a version is not there any more, by looking: an interrupted collection may have begun to remove it."""
    rows = files.find(connection, [file.blake3 for file in record.files])
    for entry in version_of(record).files:
        row = rows.get(entry.blake3)
        if row is None or row.whole:
            there = context.raw.has_file(entry.blake3)
        else:
            names = {piece.segment for piece in files.pieces(connection, entry.blake3)}
            there = held(connection, context.raw, names) == names
        if not there:
            return f"the bytes of `{entry.path}` were collected"
    return "" if context.raw.has("manifests", version_of(record).id) else "its manifest was collected"
