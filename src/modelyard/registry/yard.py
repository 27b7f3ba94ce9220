"""`Yard`: a store plus its catalog, and everything one can do with them.

Methods take and return plain values, never an open file or a SQL row; `modelyard.app.open_yard` builds one from
settings. Each method is a line here and a function in the module of its noun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelyard.catalog import Catalog
from modelyard.digest import Digest
from modelyard.registry import checkout as _checkout
from modelyard.registry import commit as _commit
from modelyard.registry import refs as _refs
from modelyard.registry import resolve as _resolve
from modelyard.registry.contents import StoredFiles
from modelyard.registry.context import Context, Judge
from modelyard.registry.intake import Origin
from modelyard.registry.leases import lease
from modelyard.registry.model import Edge, Kind, Ref, Repo, RepoType, Version
from modelyard.store.base import Store
from modelyard.weights.files import Files

__all__ = ["Yard"]


def _now() -> datetime:
    return datetime.now(UTC)


class Yard:
    """A store plus its catalog.

    Args:
        store: Where bytes are; opened.
        catalog: Where names are; opened.
        author: Who does what is done, for the log.
        clock: The time, for people; nothing is ordered by it.
        judge: Decides whether reports pass a gate; without one, an alias with a gate cannot move.
        check_gate: Validates and completes a gate before it is stored.
        links: A folder on the store's file system where loaded versions are laid out as hard links; without one, `load`
            copies into a temporary folder.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        *,
        author: str = "unknown",
        clock: Callable[[], datetime] = _now,
        judge: Judge | None = None,
        check_gate: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        links: Path | None = None,
    ) -> None:
        self._context = Context(store, catalog, author, clock, judge, check_gate, links)

    def init(self) -> Yard:
        """Create the catalog's tables, or upgrade them; running it again changes nothing."""
        self._context.catalog.init()
        return self.open()

    def open(self) -> Yard:
        """Check the catalog's revision and publish what an interrupted command left unpublished."""
        self._context.catalog.open()
        self._context.republish()
        return self

    def resolve(self, reference: str | Version) -> Version:
        """The version that `[datasets/]ns/name[@REV]` names.

        Raises:
            RefError: Malformed, or a digest's prefix that fits several versions (the hint lists them).
            NotFoundError: No such repo, version or ref; the hint has the near match.
        """
        return _resolve.resolve(self._context, reference)

    def commit(
        self,
        folder: Path | str | Files,
        to: str,
        *,
        kind: Kind | None = None,
        from_: str | Version | Edge | Sequence[Origin] = (),
        branch: str = "main",
        message: str = "",
        metadata: Mapping[str, str] | None = None,
        inputs: Digest | None = None,
        repo_type: RepoType | None = None,
        expect_parent: str | Version | None = None,
    ) -> Version:
        """Commit a folder (a single file, or a `Files`) as the next version of a branch.

        The same files with the same lineage and kind as the branch's head are the head: nothing is written. When somebody
        else commits first, this commit goes on top of theirs, unless `expect_parent` was given.

        Args:
            folder: What to commit. Links and special files are refused; `.git`, `.cache` and `__pycache__` are left out.
            to: The repo, which is created by its first commit.
            kind: Of a model; inherited from the parent, or recognised in the first commit of a complete model.
            from_: What it was made from. A bare reference gets the edge that follows from the kind, `trained-on` for a dataset.
            branch: Which branch moves; a new one starts without a parent (see `branch`).
            message: For people.
            metadata: Text to text, for programs.
            inputs: Digest of the run's configuration, data, seed and code.
            repo_type: Settles the type when `to` does not begin with `datasets/`.
            expect_parent: Refuse unless the branch is at this version.

        Raises:
            PickleError: Weights that would run code when loaded.
            ModelError: Weights that are truncated, hostile or incomplete.
            InputError: No files, a bad name, kind, edge or path.
            ConflictError: The branch is not at `expect_parent`, or its name is a tag or alias.
            NoSpaceError: The disk is full; the old state stands.
        """
        source = Path(folder) if isinstance(folder, str) else folder
        return _commit.commit(
            self._context,
            source,
            to,
            kind=kind,
            from_=from_,
            branch=branch,
            message=message,
            metadata=metadata,
            inputs=inputs,
            repo_type=repo_type,
            expect_parent=expect_parent,
        )

    def files(self, version: str | Version) -> StoredFiles:
        """A version's files as `weights.Files`; each is verified whenever it is read or its path is asked for."""
        return StoredFiles(self._context.store, self.resolve(version))

    def path(self, version: str | Version, file: str) -> Path:
        """The stored file itself, verified now; read-only, and named by its digest."""
        return self.files(version).path(file)

    def checkout(self, version: str | Version, folder: Path | str, *, link: bool = False) -> list[Path]:
        """Write a version into a new or empty folder, whole or not at all; `link` makes read-only hard links.

        Raises:
            ConflictError: The folder is not empty.
            IntegrityError: A stored file is damaged; nothing is left behind.
        """
        found = self.resolve(version)
        with lease(self._context, "checkout"):
            return _checkout.checkout(self._context.store, found, Path(folder), link=link)

    def repos(
        self, repo_type: RepoType | None = None, *, limit: int | None = None, after: tuple[str, RepoType] | None = None
    ) -> list[Repo]:
        """Repos in order of their names; a page of `limit` starts after `(name, type)`."""
        return _refs.list_repos(self._context, repo_type, limit=limit, after=after)

    def versions(
        self,
        repo: str,
        repo_type: RepoType | None = None,
        *,
        limit: int | None = None,
        before: int | None = None,
        deleted: bool = False,
    ) -> list[Version]:
        """A repo's versions, the highest number first; a page of `limit` has numbers below `before`."""
        return _refs.list_versions(self._context, repo, repo_type, limit=limit, before=before, deleted=deleted)

    def refs(self, repo: str, repo_type: RepoType | None = None) -> list[Ref]:
        """A repo's branches, tags and aliases in order of their names."""
        return _refs.list_refs(self._context, repo, repo_type)

    def tag(self, version: str | Version, name: str) -> Ref:
        """Give a version a name that never moves; again is fine, on another version a `ConflictError`."""
        return _refs.tag(self._context, version, name)

    def branch(self, version: str | Version, name: str) -> Ref:
        """Start a branch at a version; again is fine, a name that is taken a `ConflictError`."""
        return _refs.branch(self._context, version, name)
