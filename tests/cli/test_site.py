"""`yard up`: pages and the Hub protocol behind one door."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

import modelyard
from cli.conftest import Outcome
from modelyard.cli.site import create_site


@pytest.fixture
def client(yard: Callable[..., Outcome]) -> TestClient:
    """The site over the desk's yard, asked under a loopback name."""
    return TestClient(create_site(modelyard.open()), base_url="http://127.0.0.1")


def test_people_and_hub_clients_find_the_same_version(client: TestClient) -> None:
    """The pages show the repo, and the Hub's route gives its version's id."""
    version = modelyard.open().resolve("team/base")

    assert "team/base" in client.get("/").text
    assert client.get("/api/models/team/base").json()["sha"] == version.id.short
    assert client.get("/team/base/resolve/main/config.json").headers["x-repo-commit"] == version.id.short


def test_another_name_is_refused(client: TestClient) -> None:
    """A request under a name that is not loopback's is refused, whatever it asks for."""
    for path in ("/", "/ui/", "/api/models/team/base"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 400


def test_writing_is_refused_by_name(client: TestClient) -> None:
    """A write route of the Hub answers 501 and says so."""
    assert client.post("/api/repos/create", json={"name": "x"}).headers["x-error-code"] == "NotImplemented"
