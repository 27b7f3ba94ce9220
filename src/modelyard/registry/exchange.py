"""The part of `Yard` by which versions enter and leave in other forms: bundles, caches, other registries, statements.

Each method is a line here and a function in the module of its noun.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.registry import bundle as _bundle
from modelyard.registry.reference import repo_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.registry.adoption import Adopted
    from modelyard.registry.bundle import Packed
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version

__all__ = ["Exchange"]


class Exchange:
    """What `Yard` inherits for its exchange with others; not used alone."""

    _context: Context

    def pack(
        self,
        version: str | Version,
        path: Path | str,
        *,
        with_lineage: bool = False,
        signatures: Sequence[bytes] = (),
    ) -> Packed:
        """Write a version into one new file (`modelyard/bundle/1`, a tar), verified on the way; whole or not at all.

        Args:
            version: What is packed.
            path: The file, which must not exist.
            with_lineage: Also every version that it was made from: an adapter is of no use without its base.
            signatures: Signature files of this version that travel with it.

        Raises:
            ConflictError: `path` is there already.
            IntegrityError: A stored file is damaged; nothing is left behind.
            NoSpaceError: The disk is full; nothing is left behind.
        """
        return _bundle.pack(self._context, version, Path(path), with_lineage=with_lineage, signatures=signatures)

    def unpack(self, path: Path | str, *, to: str | None = None, branch: str = "main") -> Adopted:
        """Take the versions of a bundle in, with their ids, all or none; everything is verified first.

        Args:
            path: The bundle: a regular file.
            to: Another repo than the one that the version comes from.
            branch: Which of its branches moves to the version.

        Raises:
            IntegrityError: The bundle is hostile, truncated or damaged; no version was made.
            ModelError, PickleError: Weights that a commit would refuse.
            ConflictError: The branch is elsewhere.
        """
        target = repo_of(to) if to is not None else None
        return _bundle.unpack(self._context, Path(path), to=target, branch=branch)
