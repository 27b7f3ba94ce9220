"""The part of `Yard` that keeps track of work: runs of recipes' steps, and what servers keep loaded.

Each method is a line here and a function in the module of its noun. Knows no version's files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.registry.deferred import deferred

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.registry import deployments as _deployments
    from modelyard.registry import runs as _runs
    from modelyard.registry.context import Context
    from modelyard.registry.model import Deployment, RunRecord, Version
else:
    _deployments = deferred("deployments")
    _runs = deferred("runs")


__all__ = ["Work"]


class Work:
    """What `Yard` inherits for runs and deployments; not used alone."""

    _context: Context

    def run_record(self, key: str) -> RunRecord | None:
        """The run of a key, or None."""
        return _runs.find(self._context, key)

    def runs(self, *, limit: int | None = None) -> list[RunRecord]:
        """Runs, the last written first."""
        return _runs.listing(self._context, limit=limit)

    def start_run(self, key: str, *, step: str, inputs: Mapping[str, Any] | None = None) -> RunRecord:
        """Begin a run, or take over one that ended or whose process died (`attempt` counts).

        Raises:
            BusyError: Another living process works on this key.
        """
        return _runs.start(self._context, key, step=step, inputs=inputs or {})

    def finish_run(self, key: str, outputs: Mapping[str, Any]) -> RunRecord:
        """End a run of this process with what it made.

        Raises:
            ConflictError: It is not running, or belongs to another process.
        """
        return _runs.finish(self._context, key, outputs)

    def fail_run(self, key: str, error: str) -> RunRecord:
        """End a run of this process that did not succeed."""
        return _runs.fail(self._context, key, error)

    def deployments(self) -> list[Deployment]:
        """What servers keep loaded, the first recorded first."""
        return _deployments.listing(self._context)

    def record_deployment(
        self,
        reference: str,
        version: str | Version,
        *,
        address: str = "",
        info: Mapping[str, Any] | None = None,
        deployment_id: str | None = None,
    ) -> Deployment:
        """Record what this process serves; with the id of an earlier deployment, what it serves from now on."""
        return _deployments.record(
            self._context, reference, version, address=address, info=info, deployment_id=deployment_id
        )

    def beat_deployment(self, deployment_id: str) -> None:
        """Say that a deployment lives; `NotFoundError` when it was dropped."""
        _deployments.beat(self._context, deployment_id)

    def drop_deployment(self, deployment_id: str) -> bool:
        """Forget a deployment; False when there is none of this id."""
        return _deployments.drop(self._context, deployment_id)
