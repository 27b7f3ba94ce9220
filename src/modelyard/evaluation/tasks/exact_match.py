"""`exact-match`: the output is the expected text, after the normalisation that was asked for.

Surrounding white space never counts, and texts are compared in Unicode's composed form (NFC). Everything else counts
unless an option says otherwise.

>>> normalise("  Hello,   World! ", ExactMatchConfig(name="exact-match", ignore_case=True, ignore_punctuation=True))
'hello world'
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Literal

from modelyard.evaluation.tasks.base import Family, Score, Task, TaskConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.evaluation.examples import Example

__all__ = ["FAMILY", "ExactMatchConfig", "normalise"]


class ExactMatchConfig(TaskConfig):
    """Options of `exact-match`.

    Attributes:
        ignore_case: Compare without case.
        ignore_punctuation: Drop punctuation before comparing.
        collapse_spaces: Treat any run of white space, line breaks too, as one space.
        first_line: Compare only the first line of the output that is not empty.
    """

    name: Literal["exact-match"] = "exact-match"
    ignore_case: bool = False
    ignore_punctuation: bool = False
    collapse_spaces: bool = True
    first_line: bool = False


def normalise(text: str, config: ExactMatchConfig) -> str:
    """The form of `text` in which it is compared."""
    text = unicodedata.normalize("NFC", text).strip()
    if config.ignore_case:
        text = text.casefold()
    if config.ignore_punctuation:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
    if config.collapse_spaces:
        text = " ".join(text.split())
    return text.strip()


class ExactMatch:
    """Scores 1 where the normalised texts are equal."""

    def __init__(self, config: ExactMatchConfig) -> None:
        self._config = config

    def score(self, example: Example, output: str) -> Score:
        """1.0 for equal texts, else 0.0."""
        if self._config.first_line:
            output = output.strip().split("\n", 1)[0]
        return Score(float(normalise(output, self._config) == normalise(example.expected, self._config)))

    def summarize(self, scores: Sequence[Score]) -> dict[str, float]:  # noqa: ARG002  # accuracy says it all
        """No secondary metrics."""
        return {}


def _build(config: ExactMatchConfig, examples: Sequence[Example]) -> Task:  # noqa: ARG001  # any text can be compared
    return ExactMatch(config)


FAMILY = Family("exact-match", ExactMatchConfig, _build)
