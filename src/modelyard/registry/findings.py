"""What a check found: plain values, and the object that gathers them. Knows levels and words, not how anything is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CheckReport", "Finding", "Findings", "Level"]

Level = Literal["damage", "warning", "info"]
"""`damage`: something that a version needs is missing or wrong; `warning`: somebody should look; `info`: good to know."""

_WARNINGS, _DAMAGE = 3, 8


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        level: How bad it is.
        code: A stable name of the fault, for programs.
        object: What it is about: `files/<digest>`, `ns/name@v7`, `journal/12`, a table.
        text: What is wrong, for people.
        holders: Who needs the object: names of versions, at most ten.
        hint: The next step.
        repaired: Whether this check put it right.
    """

    level: Level
    code: str
    object: str
    text: str
    holders: tuple[str, ...] = ()
    hint: str = ""
    repaired: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain JSON values."""
        return {
            "level": self.level,
            "code": self.code,
            "object": self.object,
            "text": self.text,
            "holders": list(self.holders),
            "hint": self.hint,
            "repaired": self.repaired,
        }


@dataclass(frozen=True)
class CheckReport:
    """What a check looked at and found.

    Attributes:
        findings: The worst first.
        checked: How many there were of `versions`, `files`, `packs`, `segments`, `manifests`, `reports`, `journal`, and
            how many objects (`read`) and bytes (`bytes`) were read and hashed.
    """

    findings: tuple[Finding, ...]
    checked: dict[str, int]

    @property
    def exit_code(self) -> int:
        """8 with damage that was not repaired, else 3 with warnings, else 0."""
        levels = {finding.level for finding in self.findings if not finding.repaired}
        return _DAMAGE if "damage" in levels else _WARNINGS if "warning" in levels else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "checked": dict(self.checked),
            "damaged": self.exit_code == _DAMAGE,
        }


@dataclass
class Findings:
    """Gathers findings; one object and code is kept once, at its worst."""

    found: dict[tuple[str, str], Finding] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)

    def add(
        self, level: Level, code: str, about: str, text: str, *, holders: Iterable[str] = (), hint: str = ""
    ) -> None:
        """Note something."""
        order = ("damage", "warning", "info")
        known = self.found.get((code, about))
        if known is None or order.index(level) < order.index(known.level):
            self.found[code, about] = Finding(level, code, about, text, tuple(holders), hint)

    def count(self, what: str, more: int = 1) -> None:
        """Say that so many more were looked at."""
        self.checked[what] = self.checked.get(what, 0) + more

    def report(self) -> CheckReport:
        """Everything, the worst first."""
        order = ("damage", "warning", "info")
        chosen = sorted(self.found.values(), key=lambda each: (order.index(each.level), each.code, each.object))
        return CheckReport(tuple(chosen), dict(self.checked))
