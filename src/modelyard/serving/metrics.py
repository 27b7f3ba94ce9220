"""Counters, gauges and histograms in Prometheus' text format, with label sets fixed when they are made.

Safe from any thread. It does not know what is counted; label values are the caller's, who must not pass what a client
sent (a label per made-up model name would grow without bound).

>>> registry = Registry()
>>> requests = registry.counter("requests_total", "Requests.", ("route",))
>>> requests.add(1, "/health")
>>> print(registry.render().strip())
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{route="/health"} 1
"""

from __future__ import annotations

import bisect
import math
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Histogram", "Registry", "Values"]


class Values:
    """A counter or gauge: one number per combination of label values."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], kind: str) -> None:
        self.name, self.text, self.labels, self.kind = name, text, labels, kind
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, amount: float, *labels: str) -> None:
        """Add to the number at `labels`, which starts at 0."""
        key = self._key(labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def put(self, value: float, *labels: str) -> None:
        """Replace the number at `labels`."""
        with self._lock:
            self._values[self._key(labels)] = value

    def clear(self) -> None:
        """Forget every number: for gauges that are collected anew for each scrape."""
        with self._lock:
            self._values.clear()

    def get(self, *labels: str) -> float:
        """The number at `labels`; 0 when nothing was recorded."""
        with self._lock:
            return self._values.get(self._key(labels), 0)

    def lines(self) -> list[str]:
        """The samples, sorted by label values."""
        with self._lock:
            values = sorted(self._values.items())
        return [f"{self.name}{_labels(self.labels, key)} {_number(value)}" for key, value in values]

    def _key(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {len(labels)} of them")
        return labels


class Histogram:
    """Cumulative buckets of observations in seconds, per combination of label values."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: tuple[str, ...], bounds: Sequence[float]) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, seconds: float, *labels: str) -> None:
        """Count one observation."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {len(labels)} of them")
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
            counts[bisect.bisect_left(self._bounds, seconds)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + seconds

    def lines(self) -> list[str]:
        """Bucket, sum and count samples."""
        with self._lock:
            series = [(key, list(counts), self._sums[key]) for key, counts in sorted(self._counts.items())]
        lines = []
        for key, counts, total in series:
            running = 0
            for bound, count in zip((*self._bounds, math.inf), counts, strict=True):
                running += count
                label = _labels((*self.labels, "le"), (*key, _number(bound)))
                lines.append(f"{self.name}_bucket{label} {running}")
            lines.append(f"{self.name}_sum{_labels(self.labels, key)} {_number(total)}")
            lines.append(f"{self.name}_count{_labels(self.labels, key)} {running}")
        return lines


class Registry:
    """The metrics of one server, rendered together."""

    def __init__(self) -> None:
        self._metrics: list[Values | Histogram] = []

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Values:
        """A number that only grows."""
        return self._keep(Values(name, text, labels, "counter"))

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Values:
        """A number that goes up and down."""
        return self._keep(Values(name, text, labels, "gauge"))

    def histogram(self, name: str, text: str, labels: tuple[str, ...], bounds: Sequence[float]) -> Histogram:
        """Observations in buckets with the upper `bounds` (ascending)."""
        histogram = Histogram(name, text, labels, bounds)
        self._metrics.append(histogram)
        return histogram

    def render(self) -> str:
        """Everything in Prometheus' text exposition format 0.0.4."""
        lines = []
        for metric in self._metrics:
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"

    def _keep(self, values: Values) -> Values:
        self._metrics.append(values)
        return values


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))
