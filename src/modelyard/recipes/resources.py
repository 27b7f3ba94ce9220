"""What a recipe may name as `package:NAME`, found by whoever ships it.

Recipes know no package that ships models or data; `run` is handed a `Resources` value. `NoResources` is the one that
has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from modelyard.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["NoResources", "Resources"]


class Resources(Protocol):
    """Finds what ships with modelyard. Each method raises `NotFoundError` for a name it does not know."""

    def folder(self, name: str) -> Path:
        """The model folder called `name`, for `base: package:NAME`."""
        ...

    def data(self, name: str) -> Path:
        """The data file called `name`, which may hold options, as in `support/train?rows=100`."""
        ...

    def corpora(self, name: str) -> Iterable[str]:
        """The documents that the model `name` was pretrained on, for the contamination check; empty if unknown."""
        ...


class NoResources:
    """Nothing ships."""

    def folder(self, name: str) -> Path:
        """See `Resources.folder`."""
        raise self._unknown(name)

    def data(self, name: str) -> Path:
        """See `Resources.data`."""
        raise self._unknown(name)

    def corpora(self, name: str) -> Iterable[str]:
        """See `Resources.corpora`."""
        raise self._unknown(name)

    def _unknown(self, name: str) -> NotFoundError:
        return NotFoundError(
            f"`package:{name}` is not known here", hint="run the recipe with `yard run`, or pass `resources`"
        )
