"""Rebuild: a lost catalog is made again from the journal, the manifests, the reports, the packs' indexes and the files.

What comes back: repos, versions and their numbers, refs, the stacks of aliases, gates, lineage, metadata, reports, finished
runs, deletions, the log, and how every file is held. What does not: tokens, deployments and leases, which belong to
processes; when files were last used; how whole files are cut, which is found again when somebody needs it. Nothing is
written to the store, and nothing to the catalog unless all of it can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelyard.catalog import restoration
from modelyard.errors import ConflictError, InputError, IntegrityError
from modelyard.registry.recovery import Recovery
from modelyard.registry.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.catalog import Catalog
    from modelyard.store.base import Store

__all__ = ["Rebuilt", "rebuild"]

_SHOWN = 20


@dataclass(frozen=True)
class Rebuilt:
    """What was rebuilt: how many entries were told, how many rows came of them, and with `force` what could not be."""

    entries: int
    counts: dict[str, int]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain JSON values."""
        return {"entries": self.entries, "counts": dict(self.counts), "problems": list(self.problems)}


def rebuild(
    store: Store, catalog: Catalog, *, force: bool = False, progress: Callable[[int], object] | None = None
) -> Rebuilt:
    """Fill a fresh catalog with what a lost one held.

    Args:
        store: The yard's store; only read.
        catalog: Where to; its tables are made, and it must hold nothing.
        force: Go on past what is damaged or missing: versions whose manifest is gone keep their number and nothing else,
            entries that do not fit what came before are left out of everything but the report of this call.
        progress: Told how many entries are done.

    Raises:
        ConflictError: The catalog holds something already.
        IntegrityError: Something is damaged or missing (`details["problems"]`), and `force` is off; nothing was written.
    """
    try:
        catalog.open()
    except InputError:
        # There is none. An older one is not upgraded: it holds something.
        catalog.init()
    with catalog.read() as connection:
        fresh = restoration.is_fresh(connection)
    if not fresh:
        raise ConflictError(
            "the catalog is not empty: a rebuild fills a fresh one",
            hint="move the old one aside first, such as with `mv catalog.db catalog.db.old`",
            code="not_fresh",
        )
    damaged: list[int] = []
    with catalog.write(author="rebuild", at=datetime.now(UTC)) as tx:
        replay = Replay(store, tx)
        highest = 0
        for done, (seq, data) in enumerate(store.journal(damaged=damaged.append)):
            replay.tell(seq, data)
            highest = seq
            if progress is not None:
                progress(done + 1)
        replay.settle()
        restoration.raise_counter(tx, "seq", max([highest, *damaged]))
        recovery = Recovery(store, tx)
        recovery.recover()
        problems = [f"journal entry {seq} is damaged" for seq in damaged] + replay.problems + recovery.problems
        if problems and not force:
            shown = "; ".join(problems[:_SHOWN])
            raise IntegrityError(
                f"the catalog cannot be rebuilt as it was: {shown}",
                hint="copy what is damaged from a backup of the yard; or leave it out: yard rebuild --force",
                code="rebuild_incomplete",
                problems=problems,
            )
        counts = restoration.counts(tx.connection)
    return Rebuilt(replay.told, counts, tuple(problems))
