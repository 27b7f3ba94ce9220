"""What predictions are: frozen dataclasses of plain values and NumPy arrays, and how they are written as JSON.

Knows no models: a result holds no tensor, no device and no file.

>>> to_plain(Classification("good", 0.75, (Label("good", 0.75), Label("bad", 0.25))))["label"]
'good'
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Answer",
    "CellAnswer",
    "Choice",
    "Classification",
    "Decision",
    "Embedding",
    "Entity",
    "Features",
    "Fill",
    "Fills",
    "Follows",
    "Forecast",
    "Label",
    "RawOutput",
    "Regression",
    "Text",
    "to_plain",
]

Floats: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True, slots=True)
class Label:
    """One label and its score (a probability, unless the option `function` says otherwise)."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What a classifier says of one input.

    Attributes:
        label: The likeliest label.
        score: Its score.
        labels: Every label that was asked for (`top_k`), the likeliest first.
    """

    label: str
    score: float
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Regression:
    """Numbers that a model gives for one input, in the order of its labels."""

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The one number of a model that gives one."""
        return self.values[0]


@dataclass(frozen=True, slots=True)
class Entity:
    """A token, or a run of tokens, and its label.

    Attributes:
        label: Without `B-` and `I-` where tokens were put together.
        score: Its probability.
        word: The text, as it stands in the input where the tokenizer knows offsets.
        start: Of its first character in the input; None where the tokenizer knows no offsets.
        end: Behind its last character.
        index: Of the token in the input with special tokens (strategy `none`), else None.
    """

    label: str
    score: float
    word: str
    start: int | None
    end: int | None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context that answers a question.

    Attributes:
        text: `context[start:end]`; empty where the answer is that there is none.
        score: Probability of the span (start times end, each over the context of its window).
        start: Of its first character in the context.
        end: Behind its last character.
        others: Further answers (`top_k`), the likeliest first.
    """

    text: str
    score: float
    start: int
    end: int
    others: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which choice is the likeliest.

    Attributes:
        index: Of the choice in the input.
        text: The choice.
        score: Its probability.
        scores: The probability of every choice, in their order.
    """

    index: int
    text: str
    score: float
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Follows:
    """Whether the second text follows the first: the probability that it does."""

    follows: bool
    score: float


@dataclass(frozen=True, slots=True)
class Fill:
    """One token for a mask: its id, its text, the input with it put in, and its probability."""

    token: str
    token_id: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Fills:
    """For each mask of an input, in order: the likeliest tokens, each tried with the other masks left as they are."""

    masks: tuple[tuple[Fill, ...], ...]

    @property
    def best(self) -> Fill:
        """The likeliest token for the first mask."""
        return self.masks[0][0]


@dataclass(frozen=True, slots=True)
class Text:
    """Text that was generated from one input: without special tokens, and its token ids with them."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """Cells of a table that answer a question.

    Attributes:
        text: The cells, joined by commas, with the aggregation in front where there is one (`SUM > 1, 2`).
        cells: Their texts.
        coordinates: Of each: row and column from 0, the header not counted.
        aggregation: `NONE`, `SUM`, `AVERAGE` or `COUNT`; None where the model aggregates nothing.
    """

    text: str
    cells: tuple[str, ...]
    coordinates: tuple[tuple[int, int], ...]
    aggregation: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Answers to the questions of one request, by name, in the form of transformers' decision models."""

    answers: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Hidden states of one input.

    Attributes:
        values: float32 of shape (tokens, hidden), special tokens included, padding not.
        tokens: The tokens' texts, as many as `values` has rows; empty for inputs that are no text.
    """

    values: Floats
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One vector of one input: float32 of shape (hidden,)."""

    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class RawOutput:
    """Every tensor that the model gave for one input, by its name in transformers, as float32 or integer arrays.

    Attributes:
        values: Name to array, padding taken off.
        tokens: The tokens of a text input.
    """

    values: dict[str, NDArray[Any]]
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """The future of one series.

    Attributes:
        mean: float32 of shape (steps,) or (steps, channels): the mean of the forecast.
        samples: float32 (samples, steps[, channels]) of a model that draws futures, else None.
        quantiles: Level (as "0.1") to float32 (steps,) of a model that gives quantiles.
    """

    mean: Floats
    samples: Floats | None = None
    quantiles: dict[str, Floats] = field(default_factory=dict)


def to_plain(value: Any) -> Any:
    """A result (or a list of them) as what JSON has: objects, lists, numbers, strings; arrays become nested lists.

    >>> to_plain([Choice(0, "a", 1.0, (1.0,))])
    [{'index': 0, 'text': 'a', 'score': 1.0, 'scores': [1.0]}]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # an array of NumPy or one of its scalars
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
