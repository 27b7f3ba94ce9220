"""Modules that are imported when they are first used, so that a short command pays for what it does and no more.

For the faces of `Yard`, whose every method is one call into the module of its noun::

    if TYPE_CHECKING:
        from modelyard.registry import bundle as _bundle
    else:
        _bundle = deferred("bundle")
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["deferred"]


class _Deferred:
    """Stands for a module of the registry; what is asked of it, the module answers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def deferred(name: str) -> Any:
    """The module `modelyard.registry.<name>`, imported when something of it is first asked for."""
    return _Deferred(f"modelyard.registry.{name}")
