"""Parameters by module: a tree of names, with layers that are alike told once. Knows names and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.weights.inspection.counting import Counted

__all__ = ["Module", "make_tree"]


@dataclass(frozen=True, slots=True)
class Module:
    """A part of a model.

    Attributes:
        name: The last part of its name; `0-31` for so many alike, `0` to `31`.
        parameters: In all of it, and in all of those alike.
        bytes: As stored.
        times: How many are alike.
        parts: What it consists of: of those alike, what each does.
    """

    name: str
    parameters: int
    bytes: int
    times: int = 1
    parts: tuple[Module, ...] = field(default=())

    def lines(self, depth: int = 0) -> Iterable[tuple[int, Module]]:
        """(depth, part) of it and everything below, in order."""
        yield depth, self
        for part in self.parts:
            yield from part.lines(depth + 1)


def make_tree(counted: Iterable[Counted]) -> Module:
    """The tree of all names; its root has the name ``.

    >>> from modelyard.weights.inspection.counting import Counted
    >>> tree = make_tree([Counted(f"layers.{i}.weight", 4, 8, 4) for i in range(3)])
    >>> [(depth, part.name, part.parameters, part.times) for depth, part in tree.lines()][2:]
    [(2, '0-2', 12, 3), (3, 'weight', 4, 1)]
    """
    root: _Node = _Node()
    for item in counted:
        node = root
        for word in item.name.split(".")[:_DEPTH]:
            node = node.parts.setdefault(word, _Node())
        node.parameters += item.parameters
        node.bytes += item.bytes
    return _grown("", root)


_DEPTH = 64  # parts of a name: deeper ones are one part


class _Node:
    def __init__(self) -> None:
        self.parameters = self.bytes = 0
        self.parts: dict[str, _Node] = {}


def _grown(name: str, node: _Node) -> Module:
    parts = [_grown(word, part) for word, part in sorted(node.parts.items(), key=lambda item: _natural(item[0]))]
    parameters = node.parameters + sum(part.parameters for part in parts)
    return Module(name, parameters, node.bytes + sum(part.bytes for part in parts), 1, tuple(_folded(parts)))


def _natural(word: str) -> tuple[int, int, str]:
    return (1, int(word), "") if word.isdecimal() and len(word) < 10 else (0, 0, word)


def _folded(parts: list[Module]) -> list[Module]:
    """Numbered neighbours that are alike, as one."""
    made: list[Module] = []
    for part in parts:
        last = made[-1] if made else None
        if last is not None and part.name.isdecimal() and _alike(last, part):
            first = last.name.partition("-")[0]
            made[-1] = Module(
                f"{first}-{part.name}",
                last.parameters + part.parameters,
                last.bytes + part.bytes,
                last.times + 1,
                last.parts,
            )
        else:
            made.append(part)
    return made


def _alike(one: Module, other: Module) -> bool:
    return (
        one.name.partition("-")[0].isdecimal()
        and one.parts == other.parts
        and one.parameters == other.parameters * one.times
        and one.bytes == other.bytes * one.times
    )
