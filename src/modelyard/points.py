"""Failpoints: named places in the operations on a yard where a test can stop, kill or delay the process.

`reach` costs one comparison and does nothing unless somebody called `at`. The store's own points are the calls of its
`FileSystem` (`modelyard.store.faults`). A test fails for a point that no crash test kills at. Knows names only.

>>> seen = []
>>> with at(seen.append):
...     reach("commit.stored")
>>> seen
['commit.stored']
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["POINTS", "at", "reach"]

POINTS = (
    "commit.stored",  # every byte is in the store
    "commit.manifest",  # and the manifest
    "commit.rows",  # inside the transaction, all rows written
    "commit.committed",  # the transaction is durable, the journal entry is not published
    "whole.written",  # a file was made whole, its row does not say so yet
    "promote.whole",  # the version's files are whole
    "promote.moved",  # inside the transaction, the alias moved
    "promote.committed",
    "compact.encoded",  # a pack is full and not published
    "compact.published",  # a pack is published and not verified
    "compact.verified",  # every segment was read back
    "compact.rows",  # inside the transaction
    "compact.committed",
    "gc.marked",  # inside the transaction that marks
    "gc.waited",  # the leases are gone, nothing is removed
    "gc.rows",  # inside a sweep, rows removed, nothing unlinked
    "gc.unlinked",  # inside a sweep, objects unlinked
    "gc.committed",  # a sweep is durable
    "move.copied",  # the catalog's rows are in the target, not verified
    "move.verified",  # verified, the source is still in charge
    "move.switched",  # the target is in charge
)
"""Every point, in the order in which its operation reaches it."""

_reached: Callable[[str], object] | None = None


def reach(point: str) -> None:
    """Say that the process has come to `point`, one of `POINTS`."""
    if _reached is not None:
        _reached(point)


@contextmanager
def at(reached: Callable[[str], object]) -> Iterator[None]:
    """Call `reached` with the name of every point that this process comes to in the block; for tests."""
    global _reached  # noqa: PLW0603  one hook for the process: a point is reached on any thread
    before, _reached = _reached, reached
    try:
        yield
    finally:
        _reached = before
