"""Repair: what is damaged and can be made anew from elsewhere is, and what cannot is put aside; nothing else is touched.

A whole file comes back from packs and other whole files, a manifest from the catalog's rows; each is verified by its digest
before it counts. Other damaged objects move to `quarantine/`, where no reader looks. Knows findings by their code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from modelyard.catalog import files, versions
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import IntegrityError, NoSpaceError, YardError
from modelyard.registry import manifest
from modelyard.registry.model import version_of
from modelyard.registry.rebuilt import decoder_without
from modelyard.store.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry.context import Context
    from modelyard.registry.findings import Finding, Findings
    from modelyard.store.base import ObjectArea

__all__ = ["repair"]

_BROKEN = {"damaged", "wrong_size", "not_regular"}
_AREAS: tuple[ObjectArea, ...] = ("files", "packs", "manifests", "reports")


@runtime_checkable
class _InFolder(Protocol):
    """A store whose objects are files in a folder."""

    root: Path


def repair(context: Context, findings: Findings) -> None:
    """Put right what the findings name, where that is possible."""
    for key, finding in list(findings.found.items()):
        if finding.code not in _BROKEN | {"missing"}:
            continue
        try:
            text = _repair(context, finding)
        except NoSpaceError:
            raise
        except YardError as error:
            findings.found[key] = replace(finding, text=f"{finding.text}; it cannot be repaired: {error.message}")
            continue
        if text is not None:
            done, what = text
            findings.found[key] = replace(finding, text=f"{finding.text}; {what}", repaired=done)


def _repair(context: Context, finding: Finding) -> tuple[bool, str] | None:
    """Whether the object is whole again, and what was done; None for nothing."""
    area, _, name = finding.object.partition("/")
    if area == "manifests" and _remake_manifest(context, name):
        return True, "written anew from the catalog"
    if area == "files" and _remake_file(context, name):
        return True, "made anew from its segments"
    if finding.code in _BROKEN:
        for known in _AREAS:
            if known == area and (target := _quarantine(context, known, name)) is not None:
                # Nothing needs what only a warning is about, so putting it aside is all there is to do.
                return finding.level != "damage", f"moved to `{target}`"
    return None


def _remake_manifest(context: Context, name: str) -> bool:
    with context.catalog.read() as connection:
        found = versions.load(connection, versions.by_digest(connection, [name]))
    for record in found:
        version = version_of(record)
        data = manifest.encode(
            parent=record.parent, kind=record.kind, files=version.files, lineage=version.lineage, inputs=record.inputs
        )
        if digest_bytes(data) == name:
            context.raw.put("manifests", data)
            return True
    return False


def _remake_file(context: Context, name: str) -> bool:
    """Write a whole file anew if every segment of it is held elsewhere."""
    with context.catalog.read() as connection:
        row = files.find(connection, [name]).get(name)
        pieces = files.pieces(connection, name)
    if row is None or not row.whole or not pieces or sum(piece.size for piece in pieces) != row.size:
        return False
    decoder = decoder_without(context.raw, context.catalog, name)
    try:
        # Twice: the first pass tells whether it can be done, so that nothing wrong is ever written.
        for _ in decoder.segments(piece.segment for piece in pieces):
            pass
    except IntegrityError:
        return False
    made = context.raw.put_file(decoder.segments(piece.segment for piece in pieces))
    return made.blake3 == name


def _quarantine(context: Context, area: ObjectArea, name: str) -> Path | None:
    """Move an object out of the store; None where its store has no folder."""
    if not isinstance(context.raw, _InFolder):
        return None
    source = Layout(context.raw.root).object(area, Digest(name))
    folder = context.raw.root / "quarantine"
    try:
        folder.mkdir(exist_ok=True)
        source.rename(folder / f"{area}-{name}")
    except OSError as error:
        raise YardError(f"`{source}` cannot be moved: {error.strerror}", code="io_failed") from error
    return folder / f"{area}-{name}"
