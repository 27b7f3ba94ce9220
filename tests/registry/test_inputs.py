"""What segments are made from: never themselves, never more than four steps deep, whatever is asked for in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.registry.decoding import MAX_DEPTH
from modelyard.registry.inputs import InputGraph

NAMES = st.sampled_from("abcdefgh")
CHANGES = st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=3, unique=True)), max_size=40)


def longest(edges: dict[str, list[str]], start: str, seen: tuple[str, ...] = ()) -> int:
    """The longest way down from `start`, walked plainly; fails on a way back."""
    assert start not in seen, f"a ring: {seen}"
    return max((1 + longest(edges, source, (*seen, start)) for source in edges.get(start, [])), default=0)


@given(CHANGES)
def test_what_is_allowed_never_makes_a_ring_and_never_gets_too_deep(changes: list[tuple[str, list[str]]]) -> None:
    """Random changes, made where the graph has no objection: a plain walk finds no ring, the bound kept, and the depths told right."""
    graph, edges, depths = InputGraph({}), dict[str, list[str]](), dict[str, int]()
    for segment, inputs in changes:
        if graph.problem(segment, inputs) is None:
            edges[segment] = inputs
            depths |= graph.put(segment, inputs)
    for segment in edges:
        assert longest(edges, segment) == graph.depth(segment) == depths[segment] <= MAX_DEPTH


@given(CHANGES, NAMES, st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_what_is_refused_would_make_a_ring_or_get_too_deep(
    changes: list[tuple[str, list[str]]], segment: str, inputs: list[str]
) -> None:
    """The graph refuses nothing that a plain walk has no objection to."""
    graph, edges = InputGraph({}), dict[str, list[str]]()
    for each, sources in changes:
        if graph.problem(each, sources) is None:
            edges[each] = sources
            graph.put(each, sources)
    tried = edges | {segment: inputs}
    try:
        fine = all(longest(tried, each) <= MAX_DEPTH for each in tried)
    except AssertionError:
        fine = False
    assert (graph.problem(segment, inputs) is None) == fine


def test_a_segment_that_others_are_made_from_makes_them_deeper() -> None:
    """A change is judged with everything above it in mind, and the new depths of all of it are told."""
    graph = InputGraph({"e": ("d",), "d": ("c",), "c": ("b",)})
    assert graph.put("b", ["a"]) == {"b": 1, "c": 2, "d": 3, "e": 4}
    assert graph.problem("a", ["z"]) == "it, or what is made from it, would be more than 4 steps deep"
    assert graph.problem("a", ["e"]) == "it would be made from itself"
    assert graph.put("c", []) == {"c": 0, "d": 1, "e": 2}
