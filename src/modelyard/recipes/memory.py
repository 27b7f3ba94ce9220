"""What a recipe did last, in one small file of the yard's runs folder: the key of each step, and the gate that it set.

It serves two questions only: why does a step run again, and is the alias's gate this recipe's own? Losing it loses the
answers, no work.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Memory"]


class Memory:
    """The last run of one recipe, kept in the JSON file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _load(path)

    def key(self, step: str) -> str | None:
        """The key that `step` last had, or None."""
        found = self._section("keys").get(step)
        return found if isinstance(found, str) else None

    def remember(self, step: str, key: str) -> None:
        """Keep the key of a step whose outcome is there."""
        if self.key(step) != key:
            self._write({**self._state, "keys": {**self._section("keys"), step: key}})

    def gate(self, alias: str) -> dict[str, Any] | None:
        """The gate that this recipe last set on `alias`, or None."""
        found = self._section("gates").get(alias)
        return found if isinstance(found, dict) else None

    def remember_gate(self, alias: str, gate: Mapping[str, Any]) -> None:
        """Keep the gate that was set on `alias`."""
        if self.gate(alias) != dict(gate):
            self._write({**self._state, "gates": {**self._section("gates"), alias: dict(gate)}})

    def _section(self, name: str) -> dict[str, Any]:
        found = self._state.get(name)
        return found if isinstance(found, dict) else {}

    def _write(self, state: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(state, indent=1), "utf-8")
        draft.replace(self._path)
        self._state = state


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        # Missing or damaged: the questions above go unanswered, as the module says.
        return {}
    return found if isinstance(found, dict) else {}
