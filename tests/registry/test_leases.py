"""Leases: they beat, they end with their block, and whoever lost one learns it; and which ones are dead."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelyard.catalog import liveness
from modelyard.catalog.leases import LeaseRecord, listing, release
from modelyard.catalog.transaction import moment
from modelyard.errors import ConflictError
from modelyard.registry import leases
from modelyard.registry.leases import Watch, owner
from registry.registry_helpers import Bench

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def rows(bench: Bench) -> list[LeaseRecord]:
    """Every lease."""
    with bench.yard._context.catalog.read() as connection:
        return listing(connection)


def take_away(bench: Bench) -> None:
    """Remove every lease, as a collection does that takes its holder for dead."""
    for found in rows(bench):
        with bench.yard._context.catalog.write(author="x", at=NOW) as tx:
            release(tx, found.id)


def abroad(heartbeat: int = 5, **seen: object) -> LeaseRecord:
    """A lease on another machine."""
    return LeaseRecord("1", 5, "load", "elsewhere:1:2", heartbeat, moment(NOW), **seen)  # type: ignore[arg-type]


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_that_was_removed_is_noticed(any_bench: Bench) -> None:
    """A beat after somebody removed the lease is a conflict, and so is the end of the block."""

    def work() -> None:
        with any_bench.yard.lease("merge") as beat:
            assert [(found.purpose, found.owner) for found in rows(any_bench)] == [("merge", owner())]
            beat()
            take_away(any_bench)
            with pytest.raises(ConflictError, match="removed"):
                beat()

    with pytest.raises(ConflictError, match="removed") as caught:
        work()
    assert caught.value.code == "lease_lost"


def test_the_end_of_a_block_tells_without_a_beat(bench: Bench) -> None:
    """Work that never beats learns at its end that it was unprotected."""
    with pytest.raises(ConflictError, match="removed"), bench.yard.lease("merge"):
        take_away(bench)


def test_an_error_in_the_block_goes_first(bench: Bench) -> None:
    """What went wrong inside is what is reported, and the lease ends all the same."""

    def fail(*, lost: bool) -> None:
        with bench.yard.lease("merge"):
            if lost:
                take_away(bench)
            raise KeyError("inside")

    for lost in (True, False):
        with pytest.raises(KeyError):
            fail(lost=lost)
    assert rows(bench) == []


def test_a_lease_beats_by_itself(any_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to call anything: the heartbeat moves, and stops with the block."""
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    with any_bench.yard.lease("merge"):
        first = rows(any_bench)[0].heartbeat_seq
        deadline = time.monotonic() + 30
        while rows(any_bench)[0].heartbeat_seq < first + 2:
            assert time.monotonic() < deadline, "the lease does not beat"
            time.sleep(0.01)
    assert rows(any_bench) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease-")]


def test_a_lease_names_versions_which_are_hot(bench: Bench) -> None:
    """Compaction leaves alone what somebody is at work with."""
    first = bench.data("1")
    bench.data("2")
    with bench.yard._context.catalog.read() as connection:
        before = liveness.hot_versions(connection, used_since=None)
    with (
        leases.lease(bench.yard._context, "merge", versions=[first.id]),
        bench.yard._context.catalog.read() as connection,
    ):
        during = liveness.hot_versions(connection, used_since=None)
    assert len(during - before) == 1


@pytest.mark.row(48)
def test_a_lease_of_a_dead_process_is_dead_at_once(bench: Bench) -> None:
    """A process of this machine is looked at itself: its pid used again by another process does not keep its lease."""
    host, pid, started = owner().split(":")
    mine = LeaseRecord("1", 1, "load", owner(), 1, moment(NOW))
    assert not Watch().is_dead(mine, NOW)
    assert Watch().is_dead(LeaseRecord("1", 1, "load", f"{host}:{pid}:0{started}", 1, moment(NOW)), NOW)
    assert Watch().is_dead(LeaseRecord("1", 1, "load", f"{host}:999999999:{started}", 1, moment(NOW)), NOW)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="containers as Linux makes them")
@pytest.mark.parametrize("place", ["00000000.1", "{boot}.1"])
def test_a_process_out_of_sight_is_watched(place: str) -> None:
    """A container with this machine's name, and a machine of the same name, count processes for themselves: only silence tells."""
    host, pid, started = owner().split(":")
    ticks, _, here = started.partition("@")
    there = place.format(boot=here.partition(".")[0])
    clock = Clock()
    watch = Watch(clock)
    record = LeaseRecord("1", 1, "load", f"{host}:{pid}0:{ticks}@{there}", 1, moment(NOW))
    assert not watch.is_dead(record, NOW)
    clock.now += 120
    assert watch.is_dead(record, NOW)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="processes as Linux shows them")
def test_a_process_that_is_hidden_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `/proc` does not show other users' processes, one of them is neither alive nor dead, and is waited for."""
    text = owner()
    assert leases.is_alive(text) is True
    monkeypatch.setattr(leases, "_PROCESSES", tmp_path)
    assert leases.is_alive(text) is False

    def refused(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", refused)
    assert leases.is_alive(text) is None


def test_a_heartbeat_elsewhere_is_watched(bench: Bench) -> None:
    """On another machine a lease is dead when it stood still for two minutes of the collector's own clock, never sooner."""
    clock = Clock()
    watch = Watch(clock)
    assert not watch.is_dead(abroad(), NOW)
    clock.now += 119
    assert not watch.is_dead(abroad(), NOW + timedelta(days=3650))
    assert not watch.is_dead(abroad(heartbeat=6), NOW)
    clock.now += 119
    assert not watch.is_dead(abroad(heartbeat=6), NOW)
    clock.now += 1
    assert watch.is_dead(abroad(heartbeat=6), NOW)


@pytest.mark.row(51)
def test_a_jump_of_the_clock_kills_no_lease(bench: Bench) -> None:
    """What an earlier collection saw an hour ago by the clock counts only if the heartbeat stands still for three beats more."""
    clock = Clock()
    watch = Watch(clock)
    seen = abroad(observed_seq=5, observed_at=moment(NOW))
    assert not watch.is_dead(seen, NOW + timedelta(minutes=59))
    assert not watch.is_dead(seen, NOW + timedelta(days=3650))
    clock.now += 31
    assert not watch.is_dead(abroad(6, observed_seq=5, observed_at=moment(NOW)), NOW + timedelta(days=3650))
    watch = Watch(clock)
    assert not watch.is_dead(seen, NOW + timedelta(hours=2))
    clock.now += 31
    assert not watch.is_dead(seen, NOW - timedelta(days=3650))
    assert watch.is_dead(seen, NOW + timedelta(hours=2))
