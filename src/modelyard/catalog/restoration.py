"""Writing rows as they were: what a rebuild needs and nothing else may use.

Everywhere else numbers are taken from counters and changes are recorded as they happen; here they are known already. Works on
a catalog that nobody has written to yet. Knows rows; not where their values come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, insert, select, update

from modelyard.catalog.schema import (
    audit,
    counters,
    files,
    packs,
    refs,
    reports,
    repos,
    runs,
    segments,
    version_files,
    versions,
)
from modelyard.catalog.transaction import dump

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.catalog.transaction import Transaction

__all__ = ["copy_git_blobs", "counts", "is_fresh", "note_change", "raise_counter", "set_last_number", "set_state"]


def is_fresh(connection: Connection) -> bool:
    """Whether nobody has written to this catalog."""
    rows = sum(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (audit, repos))
    return rows == 0


def counts(connection: Connection) -> dict[str, int]:
    """How many rows the tables hold that people ask about."""
    return {
        table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for table in (repos, versions, refs, reports, runs, files, segments, packs, audit)
    }


def note_change(tx: Transaction, seq: int, entry: Mapping[str, Any], repo_id: int | None) -> None:
    """Write the audit row of a journal entry."""
    row = {"seq": seq, "at": entry["at"], "author": entry["author"], "action": entry["action"], "repo_id": repo_id}
    row |= {"ref": entry.get("ref"), "version_id": entry.get("version"), "previous_id": entry.get("previous")}
    tx.connection.execute(insert(audit).values(**row, detail=dump(entry.get("detail") or {})))


def raise_counter(tx: Transaction, counter: str, value: int) -> None:
    """See that a counter stands at `value` or higher."""
    mine = (counters.c.name == counter, counters.c.value < value)
    tx.connection.execute(update(counters).where(*mine).values(value=value))


def set_last_number(tx: Transaction, repo_id: int, number: int) -> None:
    """See that a repo's next number is above `number`."""
    mine = (repos.c.id == repo_id, repos.c.last_number < number)
    tx.connection.execute(update(repos).where(*mine).values(last_number=number))


def set_state(tx: Transaction, seq: int, state: int) -> None:
    """Say whether a version is live, deleted or collected, whatever it was."""
    tx.connection.execute(update(versions).where(versions.c.seq == seq).values(deleted=state))


def copy_git_blobs(tx: Transaction) -> None:
    """Give the files of versions the git ids that the files' own rows have."""
    known = select(files.c.git_blob).where(files.c.digest == version_files.c.blake3).scalar_subquery()
    tx.connection.execute(update(version_files).values(git_blob=known))
