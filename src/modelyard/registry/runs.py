"""Runs: executions of recipe steps, found by the digest of everything that decides their outcome.

One process works on a key at a time; a run whose process has died is taken over by the next one that asks. Knows keys
and JSON, not steps.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelyard.catalog import runs
from modelyard.catalog.runs import RunRow
from modelyard.catalog.transaction import Transaction, dump
from modelyard.errors import BusyError, ConflictError, InputError, NotFoundError
from modelyard.registry.leases import is_alive, owner
from modelyard.registry.model import RunRecord, moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.registry.context import Context

__all__ = ["fail", "find", "finish", "listing", "start"]


def find(context: Context, key: str) -> RunRecord | None:
    """The run of a key; see `Yard.run_record`."""
    with context.catalog.read() as connection:
        row = runs.find(connection, key)
    return _record(row) if row else None


def listing(context: Context, *, limit: int | None) -> list[RunRecord]:
    """Runs, the last written first; see `Yard.runs`."""
    with context.catalog.read() as connection:
        return [_record(row) for row in runs.listing(connection, limit=limit)]


def start(context: Context, key: str, *, step: str, inputs: Mapping[str, Any]) -> RunRecord:
    """Begin a run, or take over one whose process has died; see `Yard.start_run`."""
    me = owner()
    with context.change() as tx:
        found = runs.find(tx.connection, key)
        if found is not None and found.state == "running" and found.owner != me and is_alive(found.owner) is not False:
            host, pid, _ = found.owner.split(":")
            raise BusyError(
                f"step `{found.step}` is being run by process {pid} on {host} since {found.started_at}",
                hint="wait for it, or stop that process first",
                owner=found.owner,
            )
        row = RunRow(
            key=key,
            step=step,
            state="running",
            attempt=found.attempt + 1 if found else 1,
            owner=me,
            inputs=_json(inputs),
            outputs="{}",
            error=None,
            started_at=tx.at,
            finished_at=None,
        )
        runs.save(tx, row)
    return _record(row)


def finish(context: Context, key: str, outputs: Mapping[str, Any]) -> RunRecord:
    """End a run with what it made; see `Yard.finish_run`."""
    return _end(context, key, "finished", _json(outputs), None)


def fail(context: Context, key: str, error: str) -> RunRecord:
    """End a run that did not succeed; see `Yard.fail_run`."""
    return _end(context, key, "failed", "{}", error)


def _end(context: Context, key: str, state: str, outputs: str, error: str | None) -> RunRecord:
    with context.change() as tx:
        found = _mine(tx, key)
        row = replace(found, state=state, outputs=outputs, error=error, finished_at=tx.at)
        runs.save(tx, row)
        detail = {
            "key": key,
            "step": found.step,
            "attempt": found.attempt,
            "inputs": json.loads(found.inputs),
            "outputs": json.loads(outputs),
            "error": error,
            "owner": found.owner,
            "started_at": found.started_at,
        }
        tx.record(f"run-{state}", detail=detail)
    return _record(row)


def _mine(tx: Transaction, key: str) -> RunRow:
    """The run if this process may end it."""
    found = runs.find(tx.connection, key)
    if found is None:
        raise NotFoundError(f"no run has the key {key[:40]}")
    if found.state != "running" or found.owner != owner():
        raise ConflictError(
            f"the run of step `{found.step}` is {found.state} and belongs to {found.owner}", hint="run the recipe again"
        )
    return found


def _json(value: Mapping[str, Any]) -> str:
    try:
        return dump(dict(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"a run keeps plain JSON values only: {error}") from error


def _record(row: RunRow) -> RunRecord:
    return RunRecord(
        key=row.key,
        step=row.step,
        state=row.state,  # type: ignore[arg-type]  # the table's CHECK allows no other
        attempt=row.attempt,
        owner=row.owner,
        inputs=json.loads(row.inputs),
        outputs=json.loads(row.outputs),
        error=row.error,
        started_at=moment(row.started_at),
        finished_at=moment(row.finished_at) if row.finished_at else None,
    )
