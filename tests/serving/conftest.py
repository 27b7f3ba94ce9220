"""Fixtures of the serving tests: a yard of small versions that the fake worker can serve, and servers over it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.registry import Version, Yard
from modelyard.serving import Server
from modelyard.store import LocalStore
from serving.helpers import FAKE, CommitWord, Serve, open_yard, write_model


@pytest.fixture(scope="session")
def empty_yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a yard without a version, made once: migrating a catalog takes longer than most tests here."""
    folder = tmp_path_factory.mktemp("serving") / "yard"
    LocalStore(folder).init()
    open_yard(folder).init()
    return folder


@pytest.fixture
def yard(tmp_path: Path, empty_yard: Path) -> Yard:
    """A yard of the test's own."""
    shutil.copytree(empty_yard, tmp_path / "yard")
    return open_yard(tmp_path / "yard").open()


@pytest.fixture
def commit_word(yard: Yard, tmp_path: Path) -> CommitWord:
    """Commit a version that answers with a word."""

    def commit(word: str, to: str = "team/bot") -> Version:
        folder = write_model(tmp_path / "models" / to.replace("/", "-") / word[:50], word)
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
