"""The lineage picture: every version has its place, sources stand to the left, and it stays small."""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.web.lineage import BOX_HEIGHT, BOX_WIDTH, MOST, Node, draw


@st.composite
def graphs(draw_from: st.DrawFn) -> tuple[list[Node], list[tuple[str, str, str]]]:
    """A connected graph without cycles: each node but the first was made from at least one earlier one."""
    size = draw_from(st.integers(1, 14))
    edges: list[tuple[str, str, str]] = []
    for child in range(1, size):
        sources = draw_from(st.sets(st.integers(0, child - 1), min_size=1, max_size=3))
        edges += [(str(child), "merged", str(source)) for source in sources]
    return [Node(str(index), "", "") for index in range(size)], edges


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_sources_stand_left_and_nothing_overlaps(graph: tuple[list[Node], list[tuple[str, str, str]]]) -> None:
    """Every node has one box inside the picture, no two boxes overlap, and each edge goes from left to right."""
    nodes, edges = graph
    picture = draw(nodes, edges, nodes[-1].id)
    boxes = {box.node.id: box for box in picture.boxes}
    assert boxes.keys() == {node.id for node in nodes}
    assert len(picture.arrows) == len(edges)
    for child, _, source in edges:
        assert boxes[source].x + BOX_WIDTH < boxes[child].x
    for box in boxes.values():
        assert 0 <= box.x <= picture.width - BOX_WIDTH
        assert 0 <= box.y <= picture.height - BOX_HEIGHT
    places = sorted((box.x, box.y) for box in boxes.values())
    for (x, y), (next_x, next_y) in itertools.pairwise(places):
        assert next_x > x or next_y >= y + BOX_HEIGHT


def test_a_long_edge_passes_between_boxes() -> None:
    """An edge over several layers gets its own row in the ones it passes, so that no box hides it."""
    nodes = [Node(name, "", "") for name in ("base", "adapter", "merged")]
    edges = [("adapter", "finetuned", "base"), ("merged", "merged", "adapter"), ("merged", "merged", "base")]
    picture = draw(nodes, edges, "merged")
    adapter = next(box for box in picture.boxes if box.node.id == "adapter")
    passing = re.findall(r", (\d+) (\d+) H", picture.arrows[2].path)
    assert [(int(x), int(y) > adapter.y + BOX_HEIGHT) for x, y in passing] == [(adapter.x, True)]


def test_a_large_graph_keeps_what_is_near() -> None:
    """A base with a thousand descendants shows the version itself and says how many are left out."""
    nodes = [Node(str(index), "", "") for index in range(1001)]
    edges = [(str(index), "finetuned", "0") for index in range(1, 1001)]
    picture = draw(nodes, edges, "1000")
    assert len(picture.boxes) == MOST
    assert picture.left_out == 1001 - MOST
    assert [box.node.id for box in picture.boxes if box.root] == ["1000"]


def test_a_version_alone_is_a_picture() -> None:
    """Without edges there is one box."""
    picture = draw([Node("a", "x/y@v1", "base")], [], "a")
    assert (len(picture.boxes), len(picture.arrows), picture.left_out) == (1, 0, 0)
