"""Yards for the registry's tests: a local store, and a catalog on SQLite or PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from registry.registry_helpers import Bench
from services import fresh_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A yard on SQLite with what fills it."""
    made = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def any_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A yard on each database."""
    if request.param == "sqlite":
        made = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
        yield made
        made.close()
        return
    with fresh_postgres() as url:
        made = Bench(tmp_path, url)
        yield made
        made.close()
