"""Text into Markdown without letting it become Markdown.

Names, messages and labels come from people who may not mean well: nothing in them can open a tag, a link, a heading, a
table cell or a code block of the card they are put in. Knows no models.

>>> text("<b>x</b>"), code("a`b")
('&lt;b&gt;x&lt;/b&gt;', '``a`b``')
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["block", "code", "line", "table", "text"]

# `:`, `@` and `www.` would otherwise become links by themselves, `$` a formula.
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~:@$]|(?<=www)\.)")
_LEADING = re.compile(r"^(\d*)([-+=.)])")  # a list, a rule or an underlined heading
_LONGEST = 500


def line(value: object) -> str:
    """One line without control or direction-changing characters, at most 500 characters long."""
    kept = "".join(" " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char for char in str(value))
    kept = "".join(char for char in kept if unicodedata.category(char) not in {"Cf", "Cs", "Co", "Cn"})
    flat = " ".join(kept.split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"


def text(value: object) -> str:
    """Plain text inside a paragraph or a table cell."""
    escaped = line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LEADING.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", escaped))


def code(value: object) -> str:
    """Inline code, safe in a table cell too; its fence is longer than any run of backticks inside."""
    inside = line(value) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", inside)), default=0))
    pad = " " if inside.startswith("`") or inside.endswith("`") else ""
    # A bar ends a table's cell even inside code, unless it is escaped.
    return f"{fence}{pad}{inside}{pad}{fence}".replace("|", "\\|")


def block(content: str, language: str = "") -> str:
    """A fenced code block; its fence is longer than any run of backticks inside."""
    kept = "".join(char for char in content if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs"})
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", kept)), default=0))
    return f"{fence}{language}\n{kept.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
