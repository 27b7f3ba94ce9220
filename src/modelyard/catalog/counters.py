"""Counters as rows: numbers that only grow, and only when a transaction commits. `Transaction.next` takes one."""

from __future__ import annotations

from sqlalchemy import Connection, select

from modelyard.catalog.schema import counters
from modelyard.errors import InternalError

__all__ = ["current"]


def current(connection: Connection, counter: str) -> int:
    """The number that was taken last; 0 before the first one.

    Raises:
        InternalError: There is no such counter.
    """
    value = connection.execute(select(counters.c.value).where(counters.c.name == counter)).scalar_one_or_none()
    if value is None:
        raise InternalError(f"the catalog has no counter `{counter}`")
    return int(value)
