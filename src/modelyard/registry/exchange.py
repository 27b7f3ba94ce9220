"""The part of `Yard` by which versions enter and leave in other forms: bundles, caches, other registries, statements.

Each method is a line here and a function in the module of its noun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.registry.context import Context

__all__ = ["Exchange"]


class Exchange:
    """What `Yard` inherits for its exchange with others; not used alone."""

    _context: Context
