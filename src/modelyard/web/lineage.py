"""A lineage graph as shapes: what was made from what, left to right.

Layers go by the longest way from a source; the result is numbers and texts for a template, and the same graph gives the
same picture. Knows no yard and no HTML.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Arrow", "Box", "Node", "Picture", "draw"]

BOX_WIDTH, BOX_HEIGHT = 220, 52
GAP_X, GAP_Y = 110, 22
MARGIN = 12
MOST = 60
"""Nodes in one picture: the nearest to the version it is about."""


@dataclass(frozen=True)
class Node:
    """A version in the graph.

    Attributes:
        id: Its digest.
        name: Its name, or empty where this yard has none for it.
        note: A second line, such as its kind.
    """

    id: str
    name: str
    note: str


@dataclass(frozen=True)
class Box:
    """A node with its place, in SVG units from the top left."""

    node: Node
    x: int
    y: int
    root: bool
    width: int = BOX_WIDTH
    height: int = BOX_HEIGHT


@dataclass(frozen=True)
class Arrow:
    """An edge from a source's right side to a child's left side, as the path of a curve, with where its label stands."""

    label: str
    path: str
    x: int
    y: int


@dataclass(frozen=True)
class Picture:
    """All shapes, the size of the whole, and how many nodes were left out."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    width: int
    height: int
    left_out: int


def draw(nodes: Sequence[Node], edges: Sequence[tuple[str, str, str]], root: str) -> Picture:
    """Lay out a graph.

    Args:
        nodes: Every version that an edge names, and the root.
        edges: (child, how, source) by digest.
        root: The version the picture is about.

    >>> picture = draw([Node("a", "base", ""), Node("b", "mine", "")], [("b", "merged", "a")], "b")
    >>> [(box.node.name, box.root) for box in picture.boxes], len(picture.arrows)
    ([('base', False), ('mine', True)], 1)
    """
    known = {node.id: node for node in nodes}
    kept = _nearest(known, edges, root)
    lines = [(child, how, source) for child, how, source in edges if child in kept and source in kept]
    layers = _layers([node.id for node in nodes if node.id in kept], lines)
    routes = [_route(number, line, layers) for number, line in enumerate(lines)]
    columns = _columns(layers, routes)
    places = {
        member: (MARGIN + column * (BOX_WIDTH + GAP_X), MARGIN + row * (BOX_HEIGHT + GAP_Y))
        for column, members in enumerate(columns)
        for row, member in enumerate(members)
    }
    return Picture(
        boxes=tuple(
            Box(known[member], *places[member], member == root)
            for members in columns
            for member in members
            if isinstance(member, str)
        ),
        arrows=tuple(
            _arrow(how, [places[spot] for spot in route]) for (_, how, _), route in zip(lines, routes, strict=True)
        ),
        width=2 * MARGIN + len(columns) * (BOX_WIDTH + GAP_X) - GAP_X,
        height=2 * MARGIN + max(map(len, columns)) * (BOX_HEIGHT + GAP_Y) - GAP_Y,
        left_out=len(known) - len(kept),
    )


_Spot = str | tuple[int, int]
"""A place in a column: a node's id, or (edge, layer) where a long edge passes between the boxes."""


def _nearest(known: Mapping[str, Node], edges: Sequence[tuple[str, str, str]], root: str) -> set[str]:
    """At most `MOST` nodes, by their distance from the root in either direction."""
    beside: dict[str, list[str]] = defaultdict(list)
    for child, _, source in edges:
        beside[child].append(source)
        beside[source].append(child)
    kept, level = {root}, [root]
    while level:
        following = []
        for node in level:
            for other in beside[node]:
                if other not in kept and other in known and len(kept) < MOST:
                    kept.add(other)
                    following.append(other)
        level = following
    return kept


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str, str]]) -> dict[str, int]:
    """Each node's layer: the longest way to it from a source."""
    sources: dict[str, set[str]] = defaultdict(set)
    for child, _, source in edges:
        sources[child].add(source)
    layer = dict.fromkeys(nodes, 0)
    # Lineage is a graph without cycles, so the longest way has fewer steps than there are nodes.
    for _ in nodes:
        deeper = {child: max((layer[source] + 1 for source in sources[child]), default=0) for child in nodes}
        if deeper == layer:
            break
        layer = deeper
    return layer


def _route(number: int, line: tuple[str, str, str], layer: Mapping[str, int]) -> list[_Spot]:
    """The spots that an edge goes through, from its source to its child."""
    child, _, source = line
    between: list[_Spot] = [(number, depth) for depth in range(layer[source] + 1, layer[child])]
    return [source, *between, child]


def _columns(layer: Mapping[str, int], routes: Sequence[Sequence[_Spot]]) -> list[list[_Spot]]:
    """Spots by layer, each layer ordered by the mean place of what leads to its spots; passing edges go last."""
    before: dict[_Spot, list[_Spot]] = defaultdict(list)
    for route in routes:
        for spot, following in itertools.pairwise(route):
            before[following].append(spot)
    columns: list[list[_Spot]] = [[] for _ in range(max(layer.values()) + 1)]
    for node, depth in layer.items():
        columns[depth].append(node)
    for route in routes:
        for spot in route:
            if not isinstance(spot, str):
                columns[spot[1]].append(spot)
    place: dict[_Spot, int] = {}
    for members in columns:
        rank = {spot: _mean([place[source] for source in before[spot]]) for spot in members}
        members.sort(key=lambda spot: rank[spot])
        place.update({spot: index for index, spot in enumerate(members)})
    return columns


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _arrow(how: str, corners: Sequence[tuple[int, int]]) -> Arrow:
    """Curves between the boxes, straight lines where the edge passes one; the label stands on the first curve."""
    middle = BOX_HEIGHT // 2
    x1, y1 = corners[0][0] + BOX_WIDTH, corners[0][1] + middle
    path = [f"M {x1} {y1}"]
    label = ((x1 + corners[1][0]) // 2, (y1 + corners[1][1] + middle) // 2 - 6)
    for x2, top in corners[1:]:
        y2 = top + middle
        path.append(f"C {x1 + GAP_X // 2} {y1}, {x2 - GAP_X // 2} {y2}, {x2} {y2}")
        if (x2, top) != corners[-1]:
            path.append(f"H {x2 + BOX_WIDTH}")
        x1, y1 = x2 + BOX_WIDTH, y2
    return Arrow(how, " ".join(path), *label)
