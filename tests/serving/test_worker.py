"""The worker's process and the protocol: frames, errors across it, and no worker without a router."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # publishes no types
import pytest

from modelyard.errors import InternalError, ModelError, RequestError, YardError
from modelyard.serving import protocol
from serving.helpers import FAKE, wait_until, write_model

MESSAGES = [
    protocol.Load(folder="/f", base="/b", threads=2),
    protocol.Ready(pid=1, context=None, engine="torch", chat=True, slots=3, seconds=0.5),
    protocol.Failed(error={"code": "bad_model", "message": "é"}),
    protocol.Generate(id=1, messages=[{"role": "user", "content": "\u2028 \U0001f600"}]),
    protocol.Generate(id=2, prompt=[1, 2], sampling=protocol.Sampling(stop=("a", "b"), seed=3, temperature=0.0)),
    protocol.Accepted(id=1, prompt_tokens=3),
    protocol.Chunk(id=1, text="line\nbreak"),
    protocol.Finished(id=1, reason="stop", prompt_tokens=3, completion_tokens=4),
    protocol.Refused(id=1, error={"code": "bad_request", "message": "no"}),
    protocol.Cancel(id=1),
    protocol.Ping(nonce=1),
    protocol.Pong(nonce=1, in_flight=2, resident=3),
    protocol.Shutdown(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_survives_its_frame(message: protocol.Message) -> None:
    """Every message comes out of its frame as it went in, and the length is the body's."""
    frame = protocol.encode(message)
    assert protocol.HEAD.unpack(frame[:4]) == (len(frame) - 4,)
    assert protocol.decode(frame[4:]) == message


def test_every_message_is_tested() -> None:
    """The list above holds every type of message."""
    assert {type(message).__name__ for message in MESSAGES} == set(protocol.Message.TYPES)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"type": "Nope"}', b'{"type": "Cancel"}', b"[" * 100_000])
def test_foreign_frame_is_an_error(body: bytes) -> None:
    """What is no message is an `InternalError`, never something half understood."""
    with pytest.raises(InternalError):
        protocol.decode(body)


def test_errors_cross_the_socket() -> None:
    """An error arrives as its own class with message, hint, code and details; an unknown code as a `YardError`."""
    sent = RequestError("too long", hint="shorten it", field="prompt", context=64)
    got = protocol.error_from(sent.to_dict())
    assert type(got) is RequestError
    assert (got.message, got.hint, got.details) == ("too long", "shorten it", {"field": "prompt", "context": 64})
    assert type(protocol.error_from(ModelError("x", code="worker_died").to_dict())) is YardError


ROUTER = """
import os, socket, subprocess, sys, time
from modelyard.serving import protocol
folder, keep_open, *command = sys.argv[1:]
ours, theirs = socket.socketpair()
worker = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()])
theirs.close()
ours.sendall(protocol.encode(protocol.Load(folder=folder)))
ours.recv(4)
child = os.fork() if keep_open == "True" else None
if child != 0:
    print(worker.pid, child or 0, flush=True)
time.sleep(60)
"""
"""A router of a few lines: starts a worker, prints its pid and that of a forked child, and waits to be killed."""


@pytest.mark.parametrize("keep_open", [False, True])
def test_no_worker_outlives_its_router(tmp_path: Path, keep_open: bool) -> None:
    """When a router is killed its worker exits, even when a forked child still holds the router's end of the socket."""
    folder = write_model(tmp_path / "m", "alpha")
    command = [sys.executable, "-c", ROUTER, str(folder), str(keep_open), *FAKE.command]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as router:
        assert router.stdout is not None
        worker_pid, child = map(int, router.stdout.readline().split())
        worker = psutil.Process(worker_pid)
        assert (child != 0) == keep_open
        router.kill()
        router.wait()
        try:
            wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        finally:
            if child:
                os.kill(child, signal.SIGKILL)


def test_router_imports_no_torch() -> None:
    """Importing the server, its router and its routes does not import torch or transformers."""
    code = (
        "import sys, modelyard.serving, modelyard.serving.router, modelyard.serving.connections\n"
        "found = {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_worker_refuses_frames_over_the_limit(tmp_path: Path) -> None:
    """A frame that claims more than the limit ends the worker instead of filling its memory."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = subprocess.Popen(
            [*FAKE.command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        )
        ours.sendall(protocol.HEAD.pack(protocol.FRAME_LIMIT + 1))
        _, said = worker.communicate(timeout=20)
    assert worker.returncode == 1
    assert b"a frame of" in said
