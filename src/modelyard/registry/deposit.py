"""A deposit: the bytes of one commit, in the store and not referred to yet.

Until the transaction that refers to them, a collection may take what the deposit counts on: bytes that others stored. So the
deposit remembers how many collections there had been before, and `check_held` looks again, in that transaction, if there were
more. Knows files and segments; not what a version is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.catalog import counters
from modelyard.catalog import files as file_rows
from modelyard.registry.contents import StoredFiles
from modelyard.registry.intake import Contents
from modelyard.registry.model import FileEntry
from modelyard.registry.presence import held
from modelyard.registry.taking import Pack, Taken, Taking, record
from modelyard.registry.verified import verified_beside
from modelyard.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.catalog import Transaction
    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.weights.files import Files

__all__ = ["CollectedError", "Deposit", "check_held", "deposit", "renew"]


class CollectedError(Exception):
    """Something that a deposit counts on was collected meanwhile: make it again."""


@dataclass(frozen=True)
class Deposit:
    """See the module; `collections` is what the counter said before the first file was looked at, and the lease last beat."""

    entries: tuple[FileEntry, ...]
    taken: tuple[Taken, ...]
    pack: Pack | None
    collections: int


def deposit(context: Context, files: Files, names: Iterable[str], *, collections: int) -> Deposit:
    """Take every file in, and store the pack that they share.

    Args:
        context: The yard.
        files: What is stored.
        names: Which of them.
        collections: That counter, read before the lease was taken or last beat: a sweep that is killed after it unlinked
            something leaves the counter as it was before, and only leases that are younger make it count first.

    Raises:
        NoSpaceError: The disk is full; nothing refers to what was stored.
        InputError: A file changed while it was read.
    """
    entries, found = [], []
    known = {entry.blake3: entry.sha256 for entry in files.entries()} if isinstance(files, StoredFiles) else {}
    with Taking(context.raw, context.catalog, sha256_of=known.get) as taking:
        for name in names:
            taken = _take(taking, files, name)
            digests = taken.digests
            found.append(taken)
            entries.append(FileEntry(name, digests.size, digests.blake3, digests.sha256, digests.git_blob))
        pack = taking.close()
    _note(context, found)
    return Deposit(tuple(entries), tuple(found), pack, collections)


def _note(context: Context, found: Iterable[Taken]) -> None:
    """Remember that this boot has read these bytes, so that linking them out costs no second hash."""
    verified = verified_beside(context.links)
    # A path into another kind of store is a copy, which would have to be fetched.
    for taken in found if isinstance(context.raw, LocalStore) else ():
        if taken.whole:
            verified.note(context.raw.file_path(taken.digests.blake3), taken.digests.blake3)


def _take(taking: Taking, files: Files, name: str) -> Taken:
    """One file; one of another yard that is held here is not read there."""
    if isinstance(files, StoredFiles) and (here := taking.find(files.entry(name).blake3)) is not None:
        return here
    return taking.take(files.path(name), link=isinstance(files, Contents) and files.is_ours(name))


def check_held(context: Context, tx: Transaction, made: Deposit, manifest: Digest | None = None) -> None:
    """See that nothing which this transaction is about to refer to is gone: collections take turns with it.

    Raises:
        CollectedError: Something is.
    """
    if counters.current(tx.connection, "collections") == made.collections:
        return
    if manifest is not None and not context.raw.has("manifests", manifest):
        raise CollectedError
    if made.pack is not None and not context.raw.has_file(made.pack.digest, area="packs"):
        raise CollectedError
    packed = {str(each.digest) for each in made.pack.index.segments} if made.pack else set()
    for taken in made.taken:
        if taken.whole:
            there = context.raw.has_file(taken.digests.blake3)
        else:
            names = {piece.segment for piece in taken.pieces} - packed
            there = held(tx.connection, context.raw, names) == names
        if not there:
            raise CollectedError


def renew(context: Context, made: Deposit) -> None:
    """Note bytes that a repeated commit stored again, because they were damaged or missing; else nothing is written."""
    with context.catalog.read() as connection:
        rows = file_rows.find(connection, [taken.digests.blake3 for taken in made.taken])
    whole = {digest for digest, row in rows.items() if row.whole}
    if made.pack is not None or any(taken.whole and taken.digests.blake3 not in whole for taken in made.taken):
        with context.change() as tx:
            check_held(context, tx, made)
            record(tx, made.taken, made.pack)
