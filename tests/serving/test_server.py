"""The server over the fake worker: what it answers, under which names, and what it turns away."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil  # type: ignore[import-untyped]  # publishes no types
import pytest

from modelyard.errors import AuthError, BusyError, ConflictError, InputError, ModelError, NotFoundError
from modelyard.serving import Server, read_status, sources
from serving.helpers import FAKE, CommitWord, Serve, ask, deployment_of, get, wait_until

if TYPE_CHECKING:
    from modelyard.registry import Yard


def events(response: httpx.Response) -> list[Any]:
    """The server-sent events of a stream, `[DONE]` included."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def test_every_answer_carries_its_version(commit_word: CommitWord, serve: Serve) -> None:
    """Full id and `repo@v7` are in the headers, the short id is the fingerprint, `model` is what was asked for."""
    version = commit_word("alpha")
    server = serve("team/bot")
    cases: list[dict[str, Any]] = [{}, {"stream": True}]
    for fields in cases:
        response = ask(server, **fields)
        assert response.headers["x-modelyard-version"] == version.id
        assert response.headers["x-modelyard-ref"] == "team/bot@v1"
        assert "server" not in response.headers
        bodies = [response.json()] if not fields else events(response)[:-1]
        for body in bodies:
            assert (body["system_fingerprint"], body["model"]) == (version.id.short, "team/bot")
    assert ask(server).json()["choices"][0]["message"]["content"] == "alpha alpha alpha alpha"


def test_stream_ends_with_reason_usage_and_done(commit_word: CommitWord, serve: Serve) -> None:
    """A chat stream is: role, pieces, reason, usage if asked, `[DONE]`; usage is null before."""
    commit_word("alpha")
    *chunks, done = events(ask(serve("team/bot"), stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "alpha alpha alpha alpha"
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 5 + ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_usage_is_absent_unless_asked(commit_word: CommitWord, serve: Serve) -> None:
    """Without stream_options no chunk mentions usage."""
    commit_word("alpha")
    chunks = events(ask(serve("team/bot"), stream=True))[:-1]
    assert not any("usage" in chunk for chunk in chunks)


def test_names_of_a_model(commit_word: CommitWord, serve: Serve) -> None:
    """The reference as given, the repo, `repo@v1` and the digest, whole or shortened, all mean the loaded version."""
    version = commit_word("alpha")
    server = serve("team/bot@main")
    for name in ("team/bot@main", "team/bot", "team/bot@v1", f"team/bot@{version.id}", version.id[:8], version.id):
        response = ask(server, model=name)
        assert (response.status_code, response.json()["model"]) == (200, name)
        assert get(server, f"/v1/models/{name}").json()["id"] == name
    assert [m["id"] for m in get(server, "/v1/models").json()["data"]] == ["team/bot@main"]


@pytest.mark.parametrize(
    "name", ["team/bto", "Team/bot", "team/bot@v2", "team/bot@mian", "../../etc/passwd", "/etc", "x", "team/bot@", "é"]
)
def test_unknown_model_is_404(commit_word: CommitWord, serve: Serve, name: str) -> None:
    """A name that is not loaded is a 404 in OpenAI's envelope that says what is loaded."""
    commit_word("alpha")
    response = ask(serve("team/bot"), model=name)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert "`team/bot" in error["message"]


def test_repo_loaded_twice_is_ambiguous(commit_word: CommitWord, serve: Serve) -> None:
    """With two versions of a repo loaded, its bare name is refused and the references are listed."""
    commit_word("alpha")
    commit_word("beta")
    server = serve("team/bot@v1", "team/bot@v2")
    message = ask(server).json()["error"]["message"]
    assert "`team/bot@v1`, `team/bot@v2`" in message
    assert ask(server, model="team/bot@v2").json()["choices"][0]["message"]["content"].startswith("beta")


def test_two_references_share_a_worker(commit_word: CommitWord, yard: Yard, serve: Serve) -> None:
    """Two names of one version are served by one process."""
    yard.tag(commit_word("alpha"), "stable")
    server = serve("team/bot", "team/bot@stable")
    first, second = get(server, "/ready").json()["deployments"]
    assert first["pid"] == second["pid"] is not None
    assert ask(server).status_code == 200


@pytest.mark.parametrize(
    ("extra", "field"), [({"n": 2}, "n"), ({"temprature": 1}, "temprature"), ({"max_tokens": True}, "max_tokens")]
)
def test_wrong_field_is_400(commit_word: CommitWord, serve: Serve, extra: dict[str, Any], field: str) -> None:
    """A refused field is a 400 whose `param` is the field."""
    commit_word("alpha")
    response = ask(serve("team/bot"), **extra)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_hostile_bodies_are_400(commit_word: CommitWord, serve: Serve) -> None:
    """Deep, broken and huge-number JSON is a 400; the server goes on."""
    commit_word("alpha")
    server = serve("team/bot")
    for body in (b"[" * 200_000, b'{"a":' * 100_000, b"{", b'{"seed":' + b"9" * 5000 + b"}", b"\xff"):
        response = httpx.post(
            f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
    assert ask(server).status_code == 200


def test_prompt_over_the_context_is_400_with_both_numbers(commit_word: CommitWord, serve: Serve) -> None:
    """A prompt that does not fit is refused before a stream begins, with its length and the context's."""
    commit_word("alpha")
    server = serve("team/bot")
    for stream in (False, True):
        response = ask(server, "word " * 70, stream=stream)
        assert response.status_code == 400
        assert "70 tokens" in response.json()["error"]["message"]
        assert "context is 64" in response.json()["error"]["message"]


def test_fault_says_only_an_id(commit_word: CommitWord, serve: Serve) -> None:
    """What breaks inside is a 500 with an id and nothing of the cause; the worker goes on."""
    commit_word("alpha")
    server = serve("team/bot")
    response = ask(server, "surprise")
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["message"].startswith("internal error (id ")
    assert "shadow" not in response.text
    assert "ValueError" not in response.text
    assert ask(server).status_code == 200


def test_full_queue_is_429(commit_word: CommitWord, serve: Serve) -> None:
    """Beyond the slots and the queue, requests are turned away at once with Retry-After; the others are answered."""
    commit_word("alpha")
    server = serve("team/bot", worker=replace(FAKE, slots=1, queue=1))
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(ask(server, "slow", max_tokens=3).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: deployment_of(server)["queued"] == 1)
    began = time.monotonic()
    turned = ask(server)
    assert time.monotonic() - began < 0.5
    assert turned.status_code == 429
    assert 1 <= int(turned.headers["retry-after"]) <= 60
    assert turned.json()["error"]["code"] == "queue_full"
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_client_frees_its_slot(commit_word: CommitWord, serve: Serve, stream: bool) -> None:
    """When a client disconnects, streaming or not, its request ends within one step and the slot is free."""
    commit_word("alpha")
    server = serve("team/bot", worker=replace(FAKE, slots=1))
    body = json.dumps(
        {
            "model": "team/bot",
            "messages": [{"role": "user", "content": "slow"}],
            "max_tokens": 50,
            "stream": stream,
        }
    ).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_until(lambda: deployment_of(server)["in_flight"] == 1)
    began = time.monotonic()
    wait_until(lambda: deployment_of(server)["in_flight"] == 0)
    # A step of the slow answer takes 0.2 s; all of it would take 10 s.
    assert time.monotonic() - began < 1.0


def test_leaving_client_leaves_the_queue(commit_word: CommitWord, serve: Serve) -> None:
    """A client that gives up while it waits in line leaves the line."""
    commit_word("alpha")
    server = serve("team/bot", worker=replace(FAKE, slots=1))
    thread = threading.Thread(target=ask, args=(server, "slow"), kwargs={"max_tokens": 10})
    thread.start()
    wait_until(lambda: deployment_of(server)["in_flight"] == 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/completions", json={"model": "team/bot", "prompt": "hi"}, timeout=httpx.Timeout(0.3)
        )
    wait_until(lambda: deployment_of(server)["queued"] == 0)
    assert deployment_of(server)["in_flight"] == 1
    thread.join()


def test_metrics_have_fixed_labels(commit_word: CommitWord, serve: Serve) -> None:
    """Metrics count requests, tokens and latencies; nothing that a client made up becomes a label."""
    version = commit_word("alpha")
    server = serve("team/bot")
    ask(server)
    ask(server, model="made/up")
    get(server, "/made-up")
    get(server, "/v1/models/made/up")
    text = get(server, "/metrics").text
    for line in (
        'modelyard_requests_total{route="/v1/chat/completions",status="200"} 1',
        'modelyard_requests_total{route="/v1/chat/completions",status="404"} 1',
        'modelyard_requests_total{route="/v1/models/{model}",status="404"} 1',
        'modelyard_requests_total{route="other",status="404"} 1',
        'modelyard_prompt_tokens_total{model="team/bot"} 2',
        'modelyard_completion_tokens_total{model="team/bot"} 4',
        'modelyard_time_to_first_token_seconds_count{model="team/bot"} 1',
        'modelyard_time_per_output_token_seconds_count{model="team/bot"} 1',
        'modelyard_queue_depth{model="team/bot"} 0',
        'modelyard_in_flight{model="team/bot"} 0',
        f'modelyard_loaded_version{{model="team/bot",ref="team/bot@v1",version="{version.id}"}} 1',
    ):
        assert line in text.splitlines()
    assert "made" not in text


def test_health_answers_while_a_model_loads(commit_word: CommitWord, yard: Yard) -> None:
    """While a model loads, /health is 200 and /ready 503; requests are told to come back."""
    commit_word("sluggish")
    server = Server(yard, ["team/bot"], port=0, worker=FAKE)
    starting = threading.Thread(target=server.start)
    starting.start()

    def health() -> bool:
        try:
            return get(server, "/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(health)
        assert get(server, "/ready").status_code == 503
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "worker_unavailable")
        assert "retry-after" in refused.headers
        starting.join()
        assert get(server, "/ready").status_code == 200
    finally:
        starting.join()
        server.stop()


def test_start_fails_with_the_reason(commit_word: CommitWord, yard: Yard, serve: Serve) -> None:
    """What cannot be served raises from `start`, by its cause, and leaves no thread behind."""
    commit_word("broken")
    commit_word("mute", to="team/mute")
    commit_word("alpha", to="team/fine")
    with pytest.raises(NotFoundError, match="team/bto"):
        serve("team/bto")
    with pytest.raises(ModelError, match="the weights are broken"):
        serve("team/bot")
    with pytest.raises(ModelError, match=r"loads and cannot answer: nothing but NaN"):
        serve("team/mute")
    with pytest.raises(InputError, match="nothing to serve"):
        serve()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConflictError, match="cannot listen"):
        serve("team/fine", port=taken.getsockname()[1])
    assert not any(thread.name == "modelyard-server" for thread in threading.enumerate())
    assert yard.deployments() == []


def test_memory_is_checked_first() -> None:
    """A version that does not fit is refused with both numbers."""
    with pytest.raises(BusyError, match=r"needs 5400 MiB of memory and 4096 MiB are available") as caught:
        sources.check_memory("team/bot@v1", 5000 << 20, available=4096 << 20)
    assert caught.value.details["available"] == 4096 << 20


def test_yard_shows_the_deployment(commit_word: CommitWord, yard: Yard, serve: Serve) -> None:
    """While a server runs the yard lists what it serves, and nothing afterwards."""
    version = commit_word("alpha")
    server = serve("team/bot@main")
    (found,) = yard.deployments()
    assert (found.reference, found.version, found.address) == ("team/bot@main", version.id, server.url)
    assert found.info["pid"] == deployment_of(server)["pid"]
    assert found.alive
    server.stop()
    assert yard.deployments() == []


def test_stop_lets_requests_finish(commit_word: CommitWord, serve: Serve) -> None:
    """A request in work when the server is told to stop is answered in full; new ones find nobody."""
    commit_word("alpha")
    server = serve("team/bot")
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, "slow", max_tokens=5, stream=True)))
    thread.start()
    wait_until(lambda: deployment_of(server)["in_flight"] == 1)
    server.stop()
    thread.join()
    assert events(answers[0])[-1] == "[DONE]"
    with pytest.raises(httpx.ConnectError):
        ask(server)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_reachable_address_needs_a_token(yard: Yard, host: str) -> None:
    """Listening where others reach the server is refused without a token, with the reason."""
    with pytest.raises(AuthError, match="no token is set"):
        Server(yard, ["team/bot"], host=host)
    Server(yard, ["team/bot"], host=host, token="0123456789abcdef")
    with pytest.raises(AuthError, match="shorter than 16"):
        Server(yard, ["team/bot"], host=host, token="short")


def test_status_is_what_ready_says(commit_word: CommitWord, serve: Serve) -> None:
    """`read_status` gives the live state, nothing to strangers of a server with a token, None where nobody answers."""
    commit_word("alpha")
    server = serve("team/bot")
    (state,) = read_status(server.url) or []
    assert (state["reference"], state["ref"], state["in_flight"]) == ("team/bot", "team/bot@v1", 0)
    assert state["memory_bytes"] > 1 << 20
    server.stop()
    assert read_status(server.url) is None
    guarded = serve("team/bot", token="0123456789abcdef")
    assert read_status(guarded.url) == []
    assert len(read_status(guarded.url, "0123456789abcdef") or []) == 1


SERVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from serving.helpers import FAKE, open_yard
from modelyard.serving import serve
yard = open_yard(Path(sys.argv[1])).open()
serve(yard, ["team/bot"], port=0, worker=FAKE, ready=lambda url: print(url, flush=True))
print("done", flush=True)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_serve_ends_at_a_signal(commit_word: CommitWord, tmp_path: Path, signals: int) -> None:
    """SIGTERM lets a request in work finish and `serve` return; a second one cuts it off; no worker is left."""
    commit_word("alpha")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "yard"), str(Path(__file__).parent.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        (state,) = read_status(url) or []
        outcome: list[str] = []

        def request() -> None:
            try:
                outcome.append(
                    httpx.post(
                        f"{url}/v1/completions",
                        json={"model": "team/bot", "prompt": "slow", "max_tokens": 10},
                        timeout=20,
                    ).json()["choices"][0]["text"]
                )
            except (httpx.HTTPError, KeyError) as error:
                outcome.append(type(error).__name__)

        thread = threading.Thread(target=request)
        thread.start()
        wait_until(lambda: (read_status(url) or [{}])[0].get("in_flight") == 1)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        thread.join()
        assert process.stdout.read().strip() == "done"
        assert process.wait(10) == 0
    assert (outcome == [" ".join(["alpha"] * 10)]) == (signals == 1)
    wait_until(lambda: not psutil.pid_exists(state["pid"]))
