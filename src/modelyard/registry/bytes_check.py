"""Whether every stored byte is what its name says: objects are hashed, files that are not whole are put together.

It reads as much as it is told to and judges nothing but digests. Knows areas and hashes; not who needs what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.catalog import files
from modelyard.digest import Digest, read_chunks
from modelyard.errors import IntegrityError, YardError
from modelyard.registry.decoding import catalog_decoder
from modelyard.registry.holding_check import is_there, names_of
from modelyard.registry.rebuilt import RebuiltFile
from modelyard.store.hashing import hash_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.catalog.files import FileRow
    from modelyard.digest import FileDigests
    from modelyard.registry.context import Context
    from modelyard.registry.findings import Findings
    from modelyard.registry.holding_check import Expected
    from modelyard.store.base import ObjectArea

__all__ = ["check_bytes"]

_HINT = "yard check --repair makes it anew where its bytes are held elsewhere, and else puts it aside"


def check_bytes(
    context: Context,
    findings: Findings,
    expected: Expected,
    is_read: Callable[[str], bool],
    progress: Callable[[int, int], object],
) -> None:
    """Read the objects that `is_read` chooses; `progress` is told how many are done, of how many."""
    with context.catalog.read() as connection:
        rows = files.find(connection, expected.listed["files"] | expected.files)
    scattered = sorted(digest for digest, row in rows.items() if not row.whole and digest in expected.files)
    work = [(area, name) for area, names in expected.listed.items() for name in sorted(names) if is_read(name)]
    parts = [digest for digest in scattered if is_read(digest)]
    total = len(work) + len(parts)
    for done, (area, name) in enumerate(work):
        if is_there(context, area, name):
            row = rows.get(name) if area == "files" else None
            _check_object(context, findings, expected, area=area, name=name, row=row)
        progress(done + 1, total)
    for done, digest in enumerate(parts):
        _check_parts(context, findings, rows[digest])
        progress(len(work) + done + 1, total)


def _check_object(
    context: Context, findings: Findings, expected: Expected, *, area: ObjectArea, name: str, row: FileRow | None
) -> None:
    findings.count("read")
    about, level = f"{area}/{name}", expected.level(area, name)
    try:
        if area in {"files", "packs"}:
            found = _hash(context, "files" if area == "files" else "packs", name)
            findings.count("bytes", found.size)
            if found.blake3 != name:
                raise IntegrityError(f"{area}/{name[:40]} is damaged: its bytes have the digest {found.blake3.short}")
            if row is not None:
                _compare(findings, row, found)
        else:
            data = context.raw.get("manifests" if area == "manifests" else "reports", Digest(name))
            findings.count("bytes", len(data))
    except IntegrityError as error:
        if error.code == "missing" and level != "damage":
            return  # a collection came between
        level = "warning" if level == "info" else level
        holders = names_of(context, [name]) if area == "files" else []
        findings.add(level, "damaged", about, error.message, holders=holders, hint=_HINT)
    except YardError as error:
        findings.add(level, "unreadable", about, error.message, hint=error.hint or "")


def _hash(context: Context, area: str, name: str) -> FileDigests:
    with context.raw.open_file(Digest(name), area="files" if area == "files" else "packs") as stream:
        return hash_chunks(read_chunks(stream))


def _compare(findings: Findings, row: FileRow, found: FileDigests) -> None:
    """The other hashes that were noted are those of the same bytes."""
    about = f"files/{row.digest}"
    hint = "restore the catalog from a backup, or make it anew: yard rebuild"
    if found.sha256 != row.sha256:
        findings.add(
            "damage", "sha256_differs", about, f"the catalog has another SHA-256 of {row.digest[:40]}", hint=hint
        )
    if row.git_blob is not None and found.git_blob is not None and found.git_blob != row.git_blob:
        findings.add(
            "damage", "git_blob_differs", about, f"the catalog has another git id of {row.digest[:40]}", hint=hint
        )


def _check_parts(context: Context, findings: Findings, row: FileRow) -> None:
    """Put a file together from its segments, and hash what comes out."""
    findings.count("read")
    try:
        with context.catalog.read() as connection:
            pieces = tuple(files.pieces(connection, row.digest))
        with RebuiltFile(pieces, catalog_decoder(context.raw, context.catalog)) as stream:
            found = hash_chunks(iter(lambda: stream.read(1 << 20) or b"", b""))
        findings.count("bytes", found.size)
        if found.blake3 != row.digest:
            raise IntegrityError(f"the segments of the file {row.digest[:40]} make another one")
        _compare(findings, row, found)
    except YardError as error:
        holders = names_of(context, [row.digest])
        hint = "commit the file again, or copy its packs from a backup of the yard"
        findings.add("damage", "damaged", f"files/{row.digest}", error.message, holders=holders, hint=hint)
