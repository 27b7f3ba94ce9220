"""Versions that come and go under load: swaps, refused swaps, crashes, and what a stream shows of them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import psutil  # type: ignore[import-untyped]  # publishes no types
import pytest

from modelyard.serving import sources
from serving.helpers import FAKE, CommitWord, Serve, ask, deployment_of, get, wait_until

if TYPE_CHECKING:
    from modelyard.registry import Yard


def served(text: str) -> tuple[str, set[str]]:
    """The text of a stream and the fingerprints of its chunks."""
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line and line != "data: [DONE]"]
    words = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return words, {chunk["system_fingerprint"] for chunk in chunks}


def test_swap_under_load_fails_nothing_and_mixes_nothing(commit_word: CommitWord, yard: Yard, serve: Serve) -> None:
    """While an alias moves back and forth, every request of several clients succeeds, from exactly one version."""
    words = {commit_word(word).id.short: word for word in ("alpha", "beta")}
    yard.promote("team/bot@v1", "production")
    server = serve("team/bot@production")
    stop = threading.Event()
    problems: list[str] = []
    seen: set[str] = set()

    def client() -> None:
        while not stop.is_set():
            response = ask(server, model="team/bot@production", stream=True, max_tokens=10)
            if response.status_code != 200 or not response.text.endswith("data: [DONE]\n\n"):
                problems.append(response.text)
                continue
            text, fingerprints = served(response.text)
            (fingerprint,) = fingerprints
            if text != " ".join([words[fingerprint]] * 10) or not response.headers["x-modelyard-version"].startswith(
                fingerprint
            ):
                problems.append(response.text)
            seen.add(words[fingerprint])

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in (2, 1, 2):
        time.sleep(0.3)
        yard.promote(f"team/bot@v{number}", "production")
        wait_until(lambda number=number: deployment_of(server)["ref"] == f"team/bot@v{number}")  # type: ignore[misc]
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert seen == {"alpha", "beta"}
    assert 'modelyard_swaps_total{model="team/bot@production",outcome="done"} 3' in get(server, "/metrics").text


def test_old_worker_finishes_its_stream_and_ends(commit_word: CommitWord, serve: Serve) -> None:
    """A stream that began before a swap ends on its version while new requests get the new one; then its worker ends."""
    commit_word("alpha")
    server = serve("team/bot")
    old = deployment_of(server)["pid"]
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, "slow", stream=True, max_tokens=6).text))
    thread.start()
    wait_until(lambda: deployment_of(server)["in_flight"] == 1)
    commit_word("beta")
    wait_until(lambda: deployment_of(server)["ref"] == "team/bot@v2")
    assert ask(server).json()["choices"][0]["message"]["content"].startswith("beta")
    assert psutil.pid_exists(old)
    thread.join()
    assert served(answers[0])[0] == " ".join(["alpha"] * 6)
    wait_until(lambda: not psutil.pid_exists(old))


@pytest.mark.parametrize(("word", "reason"), [("broken", "the weights are broken"), ("mute", "cannot answer")])
def test_failed_swap_leaves_the_old_version_serving(
    commit_word: CommitWord, serve: Serve, word: str, reason: str
) -> None:
    """A version that does not load or does not answer never takes over, and the reason is shown; the next one may."""
    commit_word("alpha")
    server = serve("team/bot")
    commit_word(word)
    wait_until(lambda: deployment_of(server)["error"] is not None)
    state = deployment_of(server)
    assert (state["ref"], state["state"]) == ("team/bot@v1", "ready")
    assert reason in state["error"]
    assert get(server, "/ready").status_code == 200
    assert ask(server).json()["choices"][0]["message"]["content"].startswith("alpha")
    metrics = get(server, "/metrics").text
    assert 'modelyard_swaps_total{model="team/bot",outcome="failed"} 0' not in metrics
    commit_word("gamma")
    wait_until(lambda: deployment_of(server)["ref"] == "team/bot@v3")
    assert deployment_of(server)["error"] is None


def test_swap_without_memory_is_refused(commit_word: CommitWord, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap that does not fit beside the old version is refused with the numbers, and the old one serves on."""
    commit_word("alpha")
    server = serve("team/bot")
    monkeypatch.setattr(sources, "_WORKER_BYTES", 1 << 60)
    commit_word("beta")
    wait_until(lambda: deployment_of(server)["error"] is not None)
    assert "MiB are available" in deployment_of(server)["error"]
    assert ask(server).json()["choices"][0]["message"]["content"].startswith("alpha")


def test_deleted_alias_keeps_serving(commit_word: CommitWord, yard: Yard, serve: Serve) -> None:
    """When the reference names nothing any more, what is loaded goes on serving and the reason is shown."""
    yard.tag(commit_word("alpha"), "stable")
    server = serve("team/bot@stable")
    yard.delete("team/bot@stable", force=True)
    wait_until(lambda: deployment_of(server)["error"] is not None)
    assert ask(server).status_code == 200


def test_pinned_reference_stays(commit_word: CommitWord, serve: Serve) -> None:
    """A server of `@v1` stays there when the branch moves on."""
    commit_word("alpha")
    server = serve("team/bot@v1")
    commit_word("beta")
    time.sleep(0.3)
    assert ask(server, model="team/bot@v1").json()["choices"][0]["message"]["content"].startswith("alpha")


@pytest.mark.parametrize("stream", [False, True])
def test_killed_worker_fails_clearly_and_comes_back(commit_word: CommitWord, serve: Serve, stream: bool) -> None:
    """After kill -9 of a worker its requests end with a 503 (a stream with an error event), then it is back."""
    commit_word("alpha")
    server = serve("team/bot")
    before = deployment_of(server)["pid"]
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, "slow", max_tokens=40, stream=stream)))
    thread.start()
    wait_until(lambda: deployment_of(server)["in_flight"] == 1)
    time.sleep(0.3)
    os.kill(before, signal.SIGKILL)
    thread.join()
    (answer,) = answers
    if stream:
        *_, last = [line for line in answer.text.split("\n\n") if line]
        error: dict[str, Any] = json.loads(last[6:])["error"]
        assert answer.status_code == 200
    else:
        error = answer.json()["error"]
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
    assert error["code"] == "worker_died"
    assert error["message"].startswith("the model's worker process stopped")
    wait_until(lambda: deployment_of(server)["state"] == "ready")
    after = deployment_of(server)
    assert after["pid"] != before
    assert after["restarts"] == 1
    assert ask(server).status_code == 200


def test_crashing_worker_is_restarted_with_growing_delay(commit_word: CommitWord, serve: Serve) -> None:
    """While a worker keeps dying, requests get 503 with Retry-After, the API stays up, and restarts slow down."""
    commit_word("alpha")
    server = serve("team/bot", worker=replace(FAKE, restart_delay=0.8))
    assert ask(server, "crash").status_code == 503
    assert get(server, "/health").status_code == 200
    refused = ask(server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "worker_unavailable")
    assert get(server, "/ready").status_code == 503
    wait_until(lambda: deployment_of(server)["state"] == "ready")
    began = time.monotonic()
    assert ask(server, "crash").status_code == 503
    wait_until(lambda: deployment_of(server)["state"] == "ready")
    assert time.monotonic() - began > 1.6


def test_hung_worker_is_killed_and_restarted(commit_word: CommitWord, serve: Serve) -> None:
    """A worker that answers no ping is killed and replaced."""
    commit_word("alpha")
    server = serve("team/bot", worker=replace(FAKE, ping_interval=0.1, ping_timeout=0.5))
    before = deployment_of(server)["pid"]
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: deployment_of(server)["pid"] not in (None, before))
    wait_until(lambda: not psutil.pid_exists(before))
    assert ask(server).status_code == 200
