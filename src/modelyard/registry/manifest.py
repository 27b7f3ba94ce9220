"""The manifest: what a version is, as canonical JSON whose digest is the version's id.

Integers and strings only, keys that have no value left out. No clock, host, author, message, number, metric or storage
detail: two people who commit the same files made from the same things get the same version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.digest import Digest, canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.registry.model import Edge, FileEntry

__all__ = ["FORMAT", "encode"]

FORMAT = "modelyard/manifest/1"


def encode(
    *,
    parent: str | None,
    kind: str | None,
    files: Sequence[FileEntry],
    lineage: Sequence[Edge],
    inputs: str | None,
) -> bytes:
    """A manifest's bytes: files in the order of their paths' bytes, lineage edges in order of type and version.

    >>> encode(parent=None, kind="base", files=[], lineage=[], inputs=None)
    b'{"files":[],"format":"modelyard/manifest/1","kind":"base","lineage":[]}'
    """
    listing = sorted(files, key=lambda file: file.path.encode())
    edges = sorted({(edge.type, str(edge.version)) for edge in lineage})
    manifest: dict[str, object] = {
        "format": FORMAT,
        "files": [{"path": f.path, "size": f.size, "blake3": str(f.blake3), "sha256": f.sha256} for f in listing],
        "lineage": [{"type": kind_, "version": target} for kind_, target in edges],
    }
    optional = {"parent": parent, "kind": kind, "inputs": inputs}
    manifest |= {
        key: str(Digest(value)) if key != "kind" else value for key, value in optional.items() if value is not None
    }
    return canonical_json(manifest)
