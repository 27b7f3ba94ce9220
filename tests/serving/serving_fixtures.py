"""Fixtures of the serving tests: a yard of small versions that the fake worker can serve, and servers over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import FAKE, CommitWord, Serve, write_model

from modelyard.catalog import Catalog
from modelyard.registry import Version, Yard
from modelyard.serving import Server
from modelyard.store import LocalStore


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    store = LocalStore(tmp_path / "yard").init()
    catalog = Catalog(f"sqlite:///{tmp_path / 'yard' / 'catalog.db'}")
    return Yard(store, catalog, links=tmp_path / "yard" / "links").init()


@pytest.fixture
def commit_word(yard: Yard, tmp_path: Path) -> CommitWord:
    """Commit a version that answers with a word."""

    def commit(word: str, to: str = "team/bot") -> Version:
        folder = write_model(tmp_path / "models" / to.replace("/", "-") / word, word)
        return yard.commit(folder, to, kind="base")

    return commit


@pytest.fixture
def serve(yard: Yard) -> Iterator[Serve]:
    """Start a server over the yard; it is stopped after the test."""
    servers: list[Server] = []

    def start(*references: str, **options: Any) -> Server:
        given = {"worker": FAKE, "port": 0, "interval": 0.05, "drain_timeout": 5.0, **options}
        server = Server(yard, references, **given)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()
