"""What the commands share that make new weights: where their inputs are, how far they are, and what they say at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.cli import output
from modelyard.cli.versions import version_json
from modelyard.errors import InputError
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from modelyard.cli.options import Home
    from modelyard.registry.merging import Merging
    from modelyard.registry.transforms import Transformed

__all__ = ["bench", "numbers", "place", "report"]


def place(text: str) -> str | Path:
    """A source or a target as the library takes it: a path with its home directory filled in, else the text."""
    return Path(text).expanduser() if source_form(text) == "path" else text


def bench(home: Home, target: str | None, *sources: str | None) -> Merging:
    """The yard, which a target in it makes where there is none; no yard at all where everything is a folder or a hub's."""
    from modelyard.app import open_bench

    given = [each for each in (target, *sources) if each is not None]
    if all(source_form(each) != "reference" for each in given):
        return open_bench(home.settings)
    return home.open(create=target is not None and source_form(target) == "reference")


def report(made: Transformed, *, as_json: bool) -> None:
    """What was made, and from what: one line on stdout, the certificate's on stderr."""
    from modelyard.weights.certificate_text import summarize

    if as_json:
        plain = version_json(made.version) if made.version is not None else {}
        output.json_object({**plain, **made.to_dict()})
        return
    output.data(f"{made.version.name}  {made.version.id.short}" if made.version is not None else made.name)
    for line in summarize(made.certificate):
        output.note(line)
    if made.version is not None:
        output.note(f"all of it: yard show {made.version.name}")


def numbers(text: str | None, option: str) -> list[float] | None:
    """`0.5,0.5` as numbers; None for None."""
    if text is None:
        return None
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"`{option} {text}` is no list of numbers", hint=f"for example {option} 0.7,0.3") from None
