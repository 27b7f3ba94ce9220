"""`Yard`: a store plus its catalog, and everything one can do with them.

Methods take and return plain values, never an open file or a SQL row; `modelyard.app.open_yard` builds one from
settings. Each method is a line here and a function in the module of its noun.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.registry.context import Context, Judge
from modelyard.registry.deferred import deferred
from modelyard.registry.delivery import Delivery
from modelyard.registry.exchange import Exchange
from modelyard.registry.holdings import Holdings
from modelyard.registry.merging import Merging
from modelyard.registry.upkeep import Upkeep
from modelyard.registry.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from modelyard.catalog import Catalog
    from modelyard.digest import Digest
    from modelyard.registry import commit as _commit
    from modelyard.registry import deletion as _deletion
    from modelyard.registry import diff as _diff
    from modelyard.registry import history as _history
    from modelyard.registry import leases as _leases
    from modelyard.registry import lineage as _lineage
    from modelyard.registry import promotion as _promotion
    from modelyard.registry import refs as _refs
    from modelyard.registry import reports as _reports
    from modelyard.registry import resolve as _resolve
    from modelyard.registry.diff import VersionDiff
    from modelyard.registry.intake import Content, Origin
    from modelyard.registry.model import (
        Deletion,
        Edge,
        Kind,
        LineageGraph,
        LogEntry,
        Promotion,
        Ref,
        Repo,
        RepoType,
        Version,
    )
    from modelyard.store.base import Store
    from modelyard.weights.files import Files
else:
    _commit = deferred("commit")
    _deletion = deferred("deletion")
    _diff = deferred("diff")
    _history = deferred("history")
    _leases = deferred("leases")
    _lineage = deferred("lineage")
    _promotion = deferred("promotion")
    _refs = deferred("refs")
    _reports = deferred("reports")
    _resolve = deferred("resolve")


__all__ = ["Yard"]


def _now() -> datetime:
    return datetime.now(UTC)


class Yard(Delivery, Work, Merging, Upkeep, Exchange):
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
        hub: Called when a hub's model is loaded, for what `weights.hub.fetch` is told: `endpoint`, `cache_dir`, `token`,
            `offline`.
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
        hub: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        raw = store.raw if isinstance(store, Holdings) else store
        held = Holdings(raw, catalog, author=author, clock=clock)
        self._context = Context(raw, held, catalog, author, clock, judge, check_gate, links, hub)

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
        source: Path | str | Files | Mapping[str, Content],
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
        derivation: Mapping[str, Any] | None = None,
    ) -> Version:
        """Commit files as the next version of a branch.

        The same files with the same lineage and kind as the branch's head are the head: nothing is written. When somebody
        else commits first, this commit goes on top of theirs, unless `expect_parent` was given.

        Args:
            source: A folder or a file; bytes, paths or streams by name; or a `Files`, such as another yard's `files(...)`.
                Links and special files are refused; `.git`, `.cache` and `__pycache__` are left out.
            to: The repo, which is created by its first commit.
            kind: Of a model; inherited from the parent, or recognised in the first commit of a complete model.
            from_: What it was made from. A bare reference gets the edge that follows from the kind, `trained-on` for a dataset.
            branch: Which branch moves; a new one starts without a parent (see `branch`).
            message: For people.
            metadata: Text to text, for programs.
            inputs: Digest of the run's configuration, data, seed and code.
            repo_type: Settles the type when `to` does not begin with `datasets/`.
            expect_parent: Refuse unless the branch is at this version.
            derivation: What the files were computed by, such as `{"operation": "linear/1", ...}`: a hint for compaction,
                believed only where the bytes agree.

        Raises:
            PickleError: Weights that would run code when loaded.
            ModelError: Weights that are truncated, hostile or incomplete.
            InputError: No files, a bad name, kind, edge or path.
            ConflictError: The branch is not at `expect_parent`, or its name is a tag or alias.
            NoSpaceError: The disk is full; the old state stands.
        """
        return _commit.commit(
            self._context,
            Path(source) if isinstance(source, str) else source,
            to,
            kind=kind,
            from_=from_,
            branch=branch,
            message=message,
            metadata=metadata,
            inputs=inputs,
            repo_type=repo_type,
            expect_parent=expect_parent,
            derivation=derivation,
        )

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
        where: Mapping[str, str] | None = None,
    ) -> list[Version]:
        """A repo's versions, the highest number first; a page of `limit` has numbers below `before`.

        `deleted` has those that are deleted too; `where` keeps those whose metadata has each of its keys with this very value.
        """
        return _refs.list_versions(
            self._context, repo, repo_type, limit=limit, before=before, deleted=deleted, where=where
        )

    def refs(self, repo: str, repo_type: RepoType | None = None) -> list[Ref]:
        """A repo's branches, tags and aliases in order of their names."""
        return _refs.list_refs(self._context, repo, repo_type)

    def tag(self, version: str | Version, name: str) -> Ref:
        """Give a version a name that never moves; again is fine, on another version a `ConflictError`."""
        return _refs.tag(self._context, version, name)

    def branch(self, version: str | Version, name: str) -> Ref:
        """Start a branch at a version; again is fine, a name that is taken a `ConflictError`."""
        return _refs.branch(self._context, version, name)

    def log(
        self,
        reference: str | Version,
        *,
        limit: int | None = None,
        before: int | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[LogEntry]:
        """What happened to a repo, newest first: all of it (`ns/name`), what moved a ref, or a version and its parents.

        Args:
            reference: The repo, or with a REV, what of it. A branch has the history of its versions too.
            limit: At most so many entries.
            before: Only entries with a smaller `seq`: the last one of the page before.
            where: Only entries about versions whose metadata has each of these keys with this very value.
        """
        return _history.log(self._context, reference, limit=limit, before=before, where=where)

    def lineage(self, version: str | Version, *, direction: _lineage.Direction = "both") -> LineageGraph:
        """What a version was made from (`up`), what was made from it (`down`), and so on."""
        return _lineage.graph(self._context, version, direction)

    def diff(self, a: str | Version, b: str | Version, *, norms: bool = False) -> VersionDiff:
        """What changed from `a` to `b`: files, configuration keys, tokenizer, chat template, reports, tensors by header.

        With `norms`, tensors are compared by value too and each change has its relative norm: every byte is read.
        """
        return _diff.diff(self._context, a, b, norms=norms)

    def delete(self, reference: str | Version, *, force: bool = False) -> Deletion:
        """Delete a version (`@v7`, `@<hex>`) or a ref (`@name`): the name goes, bytes that something needs stay.

        Raises:
            ConflictError: A ref, rollback, deployment or derived version holds it; `details["holders"]` lists them. With
                `force` its refs go too, and a branch moves to the nearest parent that is left.
            RefError: The reference names a whole repo.
        """
        return _deletion.delete(self._context, reference, force=force)

    def undelete(self, reference: str | Version) -> Version:
        """Bring a deleted version back, by number or digest; its refs stay gone."""
        return _deletion.undelete(self._context, reference)

    def promote(self, version: str | Version, to: str, expect: str | Version | None = None) -> Promotion:
        """Move an alias of the version's repo to it, past the alias's gate, by compare-and-swap.

        Args:
            version: What is promoted.
            to: The alias; created by its first promotion.
            expect: The holder that must still be there (`v6`, a digest, a reference, `none` for nobody); by default the one
                that was there when this call began, which is the incumbent that the gate was judged against.

        Raises:
            GateRefusedError: The gate does not pass; `details["verdict"]` says why. `untrained`: it holds weights that
                nobody trained, with a gate or without.
            ConflictError: Somebody else moved the alias; `details["holder"]` is the winner.
            IntegrityError: A file of the version is missing in the store.
        """
        return _promotion.promote(self._context, version, to, expect)

    def rollback(
        self, repo: str, alias: str, repo_type: RepoType | None = None, *, expect: str | Version | None = None
    ) -> Promotion:
        """Return an alias to the holder before the last promotion; repeated, further back. Needs no gate.

        Raises:
            ConflictError: There is no holder before, or somebody else moved the alias meanwhile.
        """
        return _promotion.rollback(self._context, repo, alias, repo_type, expect)

    def set_gate(
        self, repo: str, alias: str, gate: Mapping[str, Any] | None, repo_type: RepoType | None = None
    ) -> None:
        """Store the rule that a version's reports must pass before the alias may move to it; None removes it.

        Raises:
            RecipeError: The gate has an unknown key or a wrong value.
        """
        _promotion.set_gate(self._context, repo, alias, gate, repo_type)

    def gate(self, repo: str, alias: str, repo_type: RepoType | None = None) -> dict[str, Any] | None:
        """An alias's gate, or None."""
        return _promotion.gate(self._context, repo, alias, repo_type)

    def add_report(self, version: str | Version, report: Mapping[str, Any]) -> Digest:
        """Store a report of this very version; again is fine. Returns its digest.

        Raises:
            InputError: It is about another version, incomplete, or holds what JSON cannot.
        """
        return _reports.add(self._context, version, report)

    def reports(self, version: str | Version) -> list[dict[str, Any]]:
        """A version's reports in the order they were made, verified."""
        return _reports.of_version(self._context, version)

    def report(self, digest: str) -> dict[str, Any]:
        """A report by its digest, verified."""
        return _reports.get(self._context, digest)

    def lease(self, purpose: str) -> AbstractContextManager[Callable[[], None]]:
        """Hold a lease while the block runs, so that a collection waits; call what it yields now and then in a long one."""
        return _leases.lease(self._context, purpose)
