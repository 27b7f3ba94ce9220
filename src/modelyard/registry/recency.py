"""When files were last used: a note in the catalog, at most one a day, by which compaction tells hot from cold."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from modelyard.catalog import files
from modelyard.catalog.transaction import moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.registry.context import Context
    from modelyard.registry.model import Version

__all__ = ["note_use"]

_FRESH = timedelta(days=1)


def note_use(context: Context, versions: Iterable[Version]) -> None:
    """Note that these versions' files are used now, where the last note is a day old, or from the future."""
    digests = {entry.blake3 for version in versions for entry in version.files}
    now = context.clock()
    with context.catalog.read() as connection:
        rows = files.find(connection, digests)
    stale = [digest for digest, row in rows.items() if not _is_fresh(row.used_at, now)]
    if stale:
        with context.change() as tx:
            files.touch(tx, stale, moment(now))


def _is_fresh(used_at: str | None, now: datetime) -> bool:
    return used_at is not None and timedelta() <= now - datetime.fromisoformat(used_at) < _FRESH
