"""What the server counts, with fixed names and labels. Labels hold references of the command line, routes and statuses
only: nothing that a client could choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.serving.metrics import Registry

if TYPE_CHECKING:
    from modelyard.serving.deployments import Fleet
    from modelyard.serving.protocol import Finished

__all__ = ["Telemetry"]

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Telemetry:
    """All metrics of one server."""

    def __init__(self) -> None:
        registry = Registry()
        self._registry = registry
        self.requests = registry.counter("modelyard_requests_total", "Answered requests.", ("route", "status"))
        self.failed_streams = registry.counter(
            "modelyard_failed_streams_total", "Streams that ended with an error.", ("model",)
        )
        self.prompt_tokens = registry.counter(
            "modelyard_prompt_tokens_total", "Tokens of accepted prompts.", ("model",)
        )
        self.completion_tokens = registry.counter("modelyard_completion_tokens_total", "Generated tokens.", ("model",))
        self.first_token = registry.histogram(
            "modelyard_time_to_first_token_seconds", "From a request's body to its first text.", ("model",), _LATENCY
        )
        self.per_token = registry.histogram(
            "modelyard_time_per_output_token_seconds", "Mean time between a request's tokens.", ("model",), _PER_TOKEN
        )
        self.duration = registry.histogram(
            "modelyard_request_seconds", "From a request's body to its last token.", ("model",), _LATENCY
        )
        self._queue = registry.gauge("modelyard_queue_depth", "Requests that wait for a slot.", ("model",))
        self._in_flight = registry.gauge("modelyard_in_flight", "Requests in work.", ("model",))
        self._ready = registry.gauge("modelyard_ready", "1 while requests are taken.", ("model",))
        self._memory = registry.gauge("modelyard_worker_resident_bytes", "Memory of the worker.", ("model",))
        self._loaded = registry.gauge(
            "modelyard_loaded_version", "The version that answers.", ("model", "ref", "version")
        )
        self._swaps = registry.counter("modelyard_swaps_total", "Moves to another version.", ("model", "outcome"))
        self._restarts = registry.gauge("modelyard_worker_restarts", "Restarts of the current worker.", ("model",))

    def finished(self, model: str, end: Finished, seconds: float, since_first: float) -> None:
        """Count a request that its worker ended."""
        self.completion_tokens.add(end.completion_tokens, model)
        self.duration.observe(seconds, model)
        if end.completion_tokens > 1:
            self.per_token.observe(since_first / (end.completion_tokens - 1), model)

    def render(self, fleet: Fleet) -> str:
        """The scrape: counters as they stand, gauges as the fleet is now."""
        for gauge in (
            self._queue,
            self._in_flight,
            self._ready,
            self._memory,
            self._loaded,
            self._swaps,
            self._restarts,
        ):
            gauge.clear()
        for deployment in fleet.deployments:
            state, name = deployment.describe(), deployment.reference
            self._queue.put(state["queued"], name)
            self._in_flight.put(state["in_flight"], name)
            self._ready.put(int(deployment.ready), name)
            self._memory.put(state["memory_bytes"], name)
            self._loaded.put(1, name, state["ref"], state["version"])
            self._restarts.put(state["restarts"], name)
            for outcome, count in deployment.swaps.items():
                self._swaps.put(count, name, outcome)
        return self._registry.render()
