"""Weights that nobody trained are not served: not at the start, and not when a reference moves to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelyard.errors import ModelError
from modelyard.weights.untrained import Untrained, mark
from serving.helpers import CommitWord, Serve, ask, deployment_of, wait_until, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry import Version, Yard


def commit_untrained(yard: Yard, folder: Path) -> Version:
    """Commit a version whose only tensor is marked as drawn at random."""
    write_model(folder, "noise")
    mark(folder, Untrained("head", 0, ("w",)))
    return yard.commit(folder, "team/bot", kind="base")


def test_a_server_does_not_start_with_it(yard: Yard, serve: Serve, tmp_path: Path) -> None:
    """Starting it is refused before any worker is: the tensors are named, and the next step."""
    version = commit_untrained(yard, tmp_path / "new")
    with pytest.raises(ModelError, match=r"untrained head \(w\)") as caught:
        serve("team/bot")
    assert caught.value.code == "untrained"
    assert version.name in str(caught.value.hint)


def test_a_server_does_not_follow_to_it(commit_word: CommitWord, yard: Yard, serve: Serve, tmp_path: Path) -> None:
    """When the reference comes to mean it, the version before keeps answering, and the reason is shown; what follows is served."""
    commit_word("alpha")
    server = serve("team/bot")
    commit_untrained(yard, tmp_path / "new")
    wait_until(lambda: "nobody trained" in (deployment_of(server)["error"] or ""))
    assert ask(server, model="team/bot", max_tokens=1).json()["choices"][0]["message"]["content"] == "alpha"
    assert deployment_of(server)["ref"] == "team/bot@v1"
    commit_word("beta")
    wait_until(lambda: deployment_of(server)["ref"] == "team/bot@v3")
    assert deployment_of(server)["error"] is None
