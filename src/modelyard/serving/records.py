"""A server's deployments as the yard records them: written when something changed, else only a sign of life.

Every call blocks. It knows no workers and no HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import NotFoundError

if TYPE_CHECKING:
    from modelyard.registry import Version, Yard

__all__ = ["Records"]


class Records:
    """The rows of one server in the catalog, one per reference."""

    def __init__(self, yard: Yard, address: str) -> None:
        self._yard = yard
        self._address = address
        self._ids: dict[str, str] = {}
        self._told: dict[str, tuple[str, Any]] = {}

    def tell(self, reference: str, version: Version, info: dict[str, Any]) -> None:
        """Record what `reference` is served from; `info` must not hold what changes all the time: each change is logged."""
        known = self._ids.get(reference)
        told = (str(version.id), info)
        try:
            if known is not None and self._told.get(reference) == told:
                self._yard.beat_deployment(known)
                return
        except NotFoundError:  # somebody removed the row of a server that seemed dead: it is not
            known = None
        row = self._yard.record_deployment(reference, version, address=self._address, info=info, deployment_id=known)
        self._ids[reference] = row.id
        self._told[reference] = told

    def drop(self) -> None:
        """Remove every row."""
        for number in self._ids.values():
            self._yard.drop_deployment(number)
        self._ids.clear()
        self._told.clear()
