"""What segments are made from, as a graph: no way back, and at most `MAX_DEPTH` edges deep.

A change is judged with everything above it in mind: a segment that others are made from makes them deeper, too. Knows
digests and edges; does not know what a segment is, or why it is kept as it is.

>>> graph = InputGraph({"b": ("a",)})
>>> graph.problem("a", ["b"])
'it would be made from itself'
>>> graph.problem("c", ["b"]), graph.put("c", ["b"])
(None, {'c': 2})
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.catalog import segments
from modelyard.catalog.usage import users_of
from modelyard.registry.decoding import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

__all__ = ["InputGraph"]


class InputGraph:
    """Edges from segments to their inputs; a segment that is not in it is made from nothing.

    Args:
        inputs: For each segment that is made from others, those.
    """

    def __init__(self, inputs: Mapping[str, Iterable[str]]) -> None:
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._users: dict[str, set[str]] = {}
        self._known: set[str] = set()
        for segment, sources in inputs.items():
            self._link(segment, tuple(sources))

    def extend(self, connection: Connection, digests: Iterable[str]) -> None:
        """Learn what these segments are made from and what is made from them, as the catalog has it now.

        What the graph knows already stays as it is.
        """
        seen = set(digests) - self._known
        level = set(seen)
        while level:
            level = {user for users in users_of(connection, level).values() for user in users} - seen - self._known
            seen |= level
        for digest, row in segments.closure(connection, seen).items():
            if digest not in self._known:
                self._known.add(digest)
                if row.inputs and digest not in self._inputs:
                    self._link(digest, row.inputs)

    def problem(self, segment: str, inputs: Sequence[str]) -> str | None:
        """Why `segment` may not be made from `inputs`; None when it may."""
        if self._reaches(inputs, segment):
            return "it would be made from itself"
        depth = 1 + max(self.depth(each) for each in inputs) if inputs else 0
        if depth + self._height(segment) > MAX_DEPTH:
            return f"it, or what is made from it, would be more than {MAX_DEPTH} steps deep"
        return None

    def put(self, segment: str, inputs: Sequence[str]) -> dict[str, int]:
        """Make `segment` from `inputs`; returns its new depth, and the new depths of everything above it."""
        self._known.add(segment)
        self._link(segment, tuple(inputs))
        changed, level = {segment: self.depth(segment)}, {segment}
        while level := {user for each in level for user in self._users.get(each, ())} - changed.keys():
            changed |= {user: self.depth(user) for user in level}
        return changed

    def depth(self, segment: str) -> int:
        """How many edges the longest way down has; more than `MAX_DEPTH` where there is a way back."""
        level, depth = {segment}, 0
        while depth <= MAX_DEPTH and (level := {source for each in level for source in self._inputs.get(each, ())}):
            depth += 1
        return depth

    def _height(self, segment: str) -> int:
        level, height = {segment}, 0
        while height <= MAX_DEPTH and (level := {user for each in level for user in self._users.get(each, ())}):
            height += 1
        return height

    def _reaches(self, start: Iterable[str], target: str) -> bool:
        seen: set[str] = set()
        level = set(start)
        while level:
            if target in level:
                return True
            seen |= level
            level = {source for each in level for source in self._inputs.get(each, ())} - seen
        return False

    def _link(self, segment: str, inputs: tuple[str, ...]) -> None:
        for source in self._inputs.pop(segment, ()):
            self._users[source].discard(segment)
        if inputs:
            self._inputs[segment] = inputs
        for source in inputs:
            self._users.setdefault(source, set()).add(segment)
