"""What every part of the registry works with: a store, a catalog, who asks, the time, and the judge of gates.

`change` is the only way to write: it commits the SQL transaction, then publishes its journal entries to the store, and
only then returns. Knows nothing of versions.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modelyard.catalog.transaction import discard, pending
from modelyard.points import reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from modelyard.catalog import Catalog, Entry, Transaction
    from modelyard.registry.holdings import Holdings
    from modelyard.registry.model import Verdict
    from modelyard.store.base import Store

__all__ = ["Context", "Judge"]


class Judge(Protocol):
    """Decides whether a candidate's reports pass a gate; `app` passes in `modelyard.evaluation`'s."""

    def __call__(
        self,
        gate: Mapping[str, Any],
        *,
        candidate: str,
        reports: Sequence[Mapping[str, Any]],
        baseline: str | None,
        baseline_reports: Sequence[Mapping[str, Any]],
    ) -> Verdict:
        """The verdict on version `candidate`, which is compared with version `baseline` where the gate says so."""
        ...


@dataclass(frozen=True)
class Context:
    """See the module."""

    raw: Store
    """The store itself: what lies there and nothing else. Collection, checks and packs work on it."""
    store: Holdings
    """The store as everybody else sees it: every file that is held can be read, whole or not."""
    catalog: Catalog
    author: str
    clock: Callable[[], datetime]
    judge: Judge | None
    check_gate: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    links: Path | None
    hub: Callable[[], Mapping[str, Any]] | None = None
    """What the surroundings say about the hub: `endpoint`, `cache_dir`, `token`, `offline` of `weights.hub.fetch`."""
    published: set[int] = field(default_factory=set)
    """Entries of the outbox that are in the store: the next write forgets them, so that no change costs two."""

    @contextmanager
    def change(self, point: str | None = None) -> Iterator[Transaction]:
        """A write transaction; when the block has ended, it is durable and its journal entries are published.

        `point` is the failpoint between these two.
        """
        settled = list(self.published)
        with self.catalog.write(author=self.author, at=self.clock()) as tx:
            discard(tx, settled)
            yield tx
        if point is not None:
            reach(point)
        self.published.difference_update(settled)
        self._publish(tx.entries)

    def republish(self) -> None:
        """Publish again what may not have been: the outbox keeps an entry until the next write after it was published."""
        with self.catalog.read() as connection:
            left = pending(connection)
        self._publish(left)

    def _publish(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.store.publish_journal(entry.seq, entry.data)
            self.published.add(entry.seq)
