"""Moving a catalog to another database, so that at every moment exactly one of the two is in charge.

1. The source's write transaction is held from here on: other writers wait.
2. Every table is copied to the target in one transaction; the target says `arriving`, and every program refuses it.
3. Counts and digests of both sides are compared, the target's read anew.
4. The source says `moved`, in the transaction that was held: when that commits, the target is in charge.
5. The target says which revision it has, and can be opened.

Killed before 4, the source is in charge and the next move drops what was copied; killed after it, moving again goes on
with 5. This module knows tables and rows, and neither the store nor where a yard notes which catalog is its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3
from sqlalchemy import Connection, Table, delete, func, insert, inspect, select, text

from modelyard.catalog import revision
from modelyard.catalog.schema import metadata
from modelyard.errors import ConflictError, InputError, IntegrityError, YardError
from modelyard.points import reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from modelyard.catalog.catalog import Catalog

__all__ = ["Moved", "TableSum", "move", "sums"]

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class TableSum:
    """What a table holds: its number of rows, and the BLAKE3 of its rows in the order of their keys, as JSON lines."""

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A finished move: each table's sum, the same on both sides. `resumed`: the rows were copied by an earlier attempt."""

    tables: dict[str, TableSum]
    resumed: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Rows by table."""
        return {name: table.rows for name, table in self.tables.items()}


def move(
    source: Catalog,
    target: Catalog,
    *,
    author: str,
    at: datetime,
    progress: Callable[[int, int], None] | None = None,
) -> Moved:
    """Copy the source into an empty target, verify it, and put the target in charge; see the module.

    Args:
        source: The catalog in charge. It stays as it is, marked as moved, so that programs that know its URL refuse it.
        target: A database without a catalog, or with an unfinished copy of an earlier attempt.
        author: Who moves it, for the audit log.
        at: When, for people.
        progress: Called with the rows copied so far, and all of them.

    Raises:
        InputError: Both are one database, or the target holds something already.
        IntegrityError: The copy is not what was copied; the source stays in charge.
        BusyError: Somebody writes to the source for longer than it waits.
        YardError: `catalog_moved`: the source was moved somewhere else.
    """
    if source.address == target.address:
        raise InputError(f"the catalog is in {target.where} already")
    try:
        source.open()
    except YardError as error:
        if error.code != "catalog_moved" or error.details.get("to") != target.address:
            raise
        return Moved(_finish(source, target), resumed=True)
    with source.write(author=author, at=at) as tx:
        tx.record(revision.MOVE_ACTION, detail={"from": source.address, "to": target.address})
        tables = _copy(tx.connection, target, progress)
        reach("move.copied")
        with target.unchecked() as connection:
            _compare(tables, sums(connection), target.where)
        reach("move.verified")
        _mark(tx.connection, revision.MOVED)
    reach("move.switched")
    _arrive(target)
    return Moved(tables)


def sums(connection: Connection) -> dict[str, TableSum]:
    """The sum of every table, read row by row: equal for equal content on either kind of database."""
    found = {}
    for table in metadata.sorted_tables:
        summing = _Summing()
        for rows in _pages(connection, table):
            summing.update(rows)
        found[table.name] = summing.result()
    return found


class _Summing:
    """Rows into a `TableSum`."""

    def __init__(self) -> None:
        self._rows = 0
        self._hasher = blake3.blake3()

    def update(self, rows: list[dict[str, object]]) -> None:
        for row in rows:
            self._hasher.update(json.dumps(list(row.values()), separators=(",", ":")).encode() + b"\n")
        self._rows += len(rows)

    def result(self) -> TableSum:
        return TableSum(self._rows, self._hasher.hexdigest())


def _pages(connection: Connection, table: Table) -> Iterator[list[dict[str, object]]]:
    """A table's rows in the order of its key, some at a time: memory does not grow with the table."""
    # Digests and names sort bytewise on both databases, so one order is the other's.
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
    for rows in connection.execute(query).mappings().partitions():
        yield [dict(row) for row in rows]


def _copy(source: Connection, target: Catalog, progress: Callable[[int, int], None] | None) -> dict[str, TableSum]:
    """Every table into the target, in one transaction; what was copied, by table."""
    total = sum(
        source.execute(select(func.count()).select_from(table)).scalar_one() for table in metadata.sorted_tables
    )
    done = 0
    tables = {}
    with target.unchecked(write=True) as connection:
        _make_room(connection, target.where)
        for table in metadata.sorted_tables:
            summing = _Summing()
            for rows in _pages(source, table):
                connection.execute(insert(table), rows)
                summing.update(rows)
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            tables[table.name] = summing.result()
        _mark(connection, revision.ARRIVING)
    return tables


def _make_room(connection: Connection, where: str) -> None:
    """Empty tables in the target, which must hold nothing but an unfinished copy."""
    revision.lock(connection)
    found = revision.current(connection)
    present = set(inspect(connection).get_table_names()) & set(metadata.tables)
    if found == revision.ARRIVING:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))
    elif found is not None or present:
        what = "a catalog" if found is not None else f"tables of the same names ({', '.join(sorted(present)[:3])})"
        raise InputError(
            f"{where} holds {what} already, and a catalog moves only into an empty database",
            hint="name another database, or move that one out of the way",
        )
    revision.create(connection)
    connection.execute(delete(metadata.tables["counters"]))


def _compare(copied: dict[str, TableSum], found: dict[str, TableSum], where: str) -> None:
    for name, table in copied.items():
        if found[name] != table:
            raise IntegrityError(
                f"the copy in {where} is not what was copied: table `{name}` has {found[name].rows} rows, {table.rows} were "
                f"written, or their content differs",
                hint="the old catalog is still in charge; look at the new database, then move again",
                table=name,
            )


def _mark(connection: Connection, found: str) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = :found"), {"found": found})


def _arrive(target: Catalog) -> None:
    with target.unchecked(write=True) as connection:
        _mark(connection, revision.HEAD)


def _finish(source: Catalog, target: Catalog) -> dict[str, TableSum]:
    """Go on where a move was interrupted after the source had said `moved`."""
    with target.unchecked() as connection:
        found = revision.current(connection)
        if found == revision.HEAD:
            return sums(connection)
        if found != revision.ARRIVING:
            raise ConflictError(
                f"the catalog was moved to {target.where}, and there is none of it now",
                hint="restore that database from its backup",
                code="catalog_lost",
            )
        tables = sums(connection)
    with source.unchecked() as connection:
        _compare(sums(connection), tables, target.where)
    _arrive(target)
    return tables
