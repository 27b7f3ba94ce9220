"""Runs, deployments and leases: who is at work."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from modelyard.errors import BusyError, ConflictError, InputError, NotFoundError
from modelyard.registry.leases import is_alive, owner
from registry.registry_helpers import hold_run, processes

if TYPE_CHECKING:
    from registry.registry_helpers import Bench

forks = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # pytest-xdist's threads


def test_a_run_is_found_by_its_key(any_bench: Bench) -> None:
    """A run is started, finished with what it made, and found again by its key."""
    yard = any_bench.yard
    assert yard.run_record("k") is None
    started = yard.start_run("k", step="train", inputs={"rate": 0.1, "seed": 1})
    assert (started.state, started.attempt, started.outputs, started.finished_at) == ("running", 1, {}, None)
    finished = yard.finish_run("k", {"version": "x", "loss": 1.5})
    assert yard.run_record("k") == finished
    assert (finished.state, finished.inputs, finished.outputs) == (
        "finished",
        {"rate": 0.1, "seed": 1},
        {"version": "x", "loss": 1.5},
    )
    assert [run.key for run in yard.runs()] == ["k"]


def test_a_failed_run_is_started_again(bench: Bench) -> None:
    """A failure is kept with its reason; the next start is the next attempt."""
    bench.yard.start_run("k", step="train")
    assert bench.yard.fail_run("k", "the disk is full").error == "the disk is full"
    again = bench.yard.start_run("k", step="train")
    assert (again.state, again.attempt, again.error) == ("running", 2, None)


def test_only_a_running_run_ends(bench: Bench) -> None:
    """A run that is not there, or has ended, cannot be ended; what JSON cannot hold is refused."""
    with pytest.raises(NotFoundError):
        bench.yard.finish_run("k", {})
    bench.yard.start_run("k", step="train")
    with pytest.raises(InputError):
        bench.yard.finish_run("k", {"x": object()})
    bench.yard.finish_run("k", {})
    with pytest.raises(ConflictError):
        bench.yard.fail_run("k", "late")


@forks
def test_a_second_run_of_the_same_key_is_told_who_is_at_work(any_bench: Bench) -> None:
    """While another process works on a key, starting it is BusyError; once that process was killed, it is taken over."""
    context = processes()
    mine, theirs = context.Pipe()
    process = context.Process(target=hold_run, args=(any_bench.url, any_bench.root, "k", theirs))
    process.start()
    assert mine.poll(60)
    with pytest.raises(BusyError, match=f"process {process.pid}"):
        any_bench.yard.start_run("k", step="train")
    with pytest.raises(ConflictError):
        any_bench.yard.finish_run("k", {})
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert any_bench.yard.start_run("k", step="train").attempt == 2


def test_owners_are_told_apart() -> None:
    """A process is named by host, pid and when it started, so a reused pid is another process."""
    host, pid, started = owner().split(":")
    assert is_alive(owner()) is True
    assert is_alive(f"{host}:{pid}:1.00") is False
    assert is_alive(f"{host}:999999999:{started}") is False
    assert is_alive(f"elsewhere:{pid}:{started}") is None


def test_deployments_come_beat_and_go(any_bench: Bench) -> None:
    """A deployment says what it serves, moves to another version, beats, and is forgotten; each but the beat is audited."""
    bench = any_bench
    one, two = bench.model(1.0), bench.model(2.0)
    made = bench.yard.record_deployment(
        "team/model@production", one, address="127.0.0.1:8000", info={"engine": "torch"}
    )
    assert (made.version, made.version_name, made.info, made.alive) == (
        one.id,
        "team/model@v1",
        {"engine": "torch"},
        True,
    )
    bench.yard.beat_deployment(made.id)
    moved = bench.yard.record_deployment("team/model@production", two, address="127.0.0.1:8000", deployment_id=made.id)
    assert [(found.id, found.version) for found in bench.yard.deployments()] == [(made.id, two.id)]
    assert moved.id == made.id
    assert bench.yard.drop_deployment(made.id)
    assert not bench.yard.drop_deployment(made.id)
    with pytest.raises(NotFoundError):
        bench.yard.beat_deployment(made.id)
    log = [(entry.action, entry.version, entry.previous) for entry in bench.yard.log("team/model")[:3]]
    assert log == [
        ("undeploy", None, "team/model@v2"),
        ("deploy", "team/model@v2", "team/model@v1"),
        ("deploy", "team/model@v1", None),
    ]
