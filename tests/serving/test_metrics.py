"""Prometheus' text format."""

from __future__ import annotations

import pytest

from modelyard.serving.metrics import Registry


def test_histogram_buckets_are_cumulative() -> None:
    """Buckets count everything up to their bound, the last is the count, and a bound includes itself."""
    registry = Registry()
    histogram = registry.histogram("t_seconds", "T.", ("model",), (0.1, 1.0))
    for seconds in (0.1, 0.5, 2.0):
        histogram.observe(seconds, "m")
    assert registry.render().splitlines()[2:] == [
        't_seconds_bucket{model="m",le="0.1"} 1',
        't_seconds_bucket{model="m",le="1"} 2',
        't_seconds_bucket{model="m",le="+Inf"} 3',
        't_seconds_sum{model="m"} 2.6',
        't_seconds_count{model="m"} 3',
    ]


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line breaks in a label cannot make another line."""
    registry = Registry()
    registry.gauge("g", "G.", ("a",)).put(1, 'x"y\\z\n')
    assert registry.render().splitlines()[-1] == r'g{a="x\"y\\z\n"} 1'


def test_labels_are_fixed() -> None:
    """A sample with other labels than the metric's is our bug and raises."""
    counter = Registry().counter("c", "C.", ("a",))
    with pytest.raises(ValueError, match="has the labels"):
        counter.add(1)
