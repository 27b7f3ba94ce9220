"""The part of `Yard` that looks after what is stored: compaction, collection, checks, what takes how much.

Each method is a line here and a function in the module of its noun. Knows no versions' contents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.registry.context import Context

__all__ = ["Upkeep"]


class Upkeep:
    """What `Yard` inherits for its upkeep; not used alone."""

    _context: Context
