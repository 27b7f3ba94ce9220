"""An empty database, and a catalog in it, on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelyard.catalog import Catalog
from services import fresh_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        with fresh_postgres() as found:
            yield found


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """A catalog in it."""
    made = Catalog(url, busy_seconds=5).init()
    yield made
    made.close()
