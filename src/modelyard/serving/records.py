"""A server's deployments as the yard records them: written when something changed, else only a sign of life.

Every call blocks. It knows no workers and no HTTP.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

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
        """Record what `reference` is served from and how it is."""
        number = self._ids.setdefault(reference, uuid.uuid4().hex)
        told = (str(version.id), info)
        if self._told.get(reference) == told and self._yard.heartbeat_deployment(number):
            return
        self._yard.record_deployment(number, reference=reference, version=version, address=self._address, info=info)
        self._told[reference] = told

    def drop(self) -> None:
        """Remove every row."""
        for number in self._ids.values():
            self._yard.drop_deployment(number)
        self._ids.clear()
        self._told.clear()
