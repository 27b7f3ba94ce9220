"""What an engine takes and what it gives back; the same for every backend.

A request becomes a stream of events: any number of `Token`, then exactly one `Finished` or `Failed`. Values only: no
tensors, no threads, no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from modelyard.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "Answer",
    "Capabilities",
    "Engine",
    "EngineRequest",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Stats",
    "Token",
    "Usage",
]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request: a conversation, raw text or token ids, and how to answer.

    Attributes:
        id: Names the request among those that run at the same time.
        messages: A conversation, rendered by the model's chat template.
        prompt: Raw text, tokenized as it is.
        token_ids: A prompt that is tokenized already.
        params: By name, as the engine's capabilities list them; what is not given, or None, is the checkpoint's.

    Raises:
        RequestError: Not exactly one of `messages`, `prompt` and `token_ids`.
    """

    id: str
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    token_ids: Sequence[int] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a request with no prompt, or with two."""
        given = [name for name in ("messages", "prompt", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(f'`{name}`' for name in given)}" if given else "has no prompt"
            hint = "give exactly one of `messages`, `prompt` and `token_ids`"
            raise RequestError(f"request `{self.id}` {what}", hint=hint, field=given[0] if given else "messages")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost: tokens of its prompt and tokens generated, an ending one included."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """One more token. `text` is what became certain with it: whole characters, often none, sometimes several tokens'."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that could not be answered; `code` is a `YardError`'s."""

    code: str
    message: str


Event = Token | Finished | Failed


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine with its model can do; a request that needs more is refused by the name of the field.

    Attributes:
        engine: The backend's name.
        chat: Whether the model has a chat template, hence takes `messages`.
        context: Most tokens of prompt and answer together; None for no bound.
        slots: How many requests run at once.
        queue: How many more may wait.
        params: Every parameter that is honoured.
    """

    engine: str
    chat: bool
    context: int | None
    slots: int
    queue: int
    params: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """What an engine is doing, and has done since it was made."""

    running: int
    waiting: int
    steps: int
    prompt_tokens: int
    completion_tokens: int


class Answer(Protocol):
    """A request that was taken: iterate it for its events, once. Leaving the iteration early cancels the request."""

    id: str
    prompt_tokens: int

    def __iter__(self) -> Iterator[Event]:
        """The events as they come; ends after `Finished` or `Failed`. May be called in any one thread."""
        ...


class Engine(Protocol):
    """A model that answers many requests at once. Every method may be called from any thread."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def submit(self, request: EngineRequest) -> Answer:
        """Take a request.

        Raises:
            RequestError: The request is wrong, asks for what the engine lacks, or its id is running already.
            BusyError: The queue is full, or the engine is closing; nothing was taken.
        """
        ...

    def cancel(self, request: str) -> bool:
        """End a request within one step, as `Finished("cancelled")`; False if no such request runs or waits."""
        ...

    def stats(self) -> Stats:
        """What it is doing."""
        ...

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, cancel what runs (or with `drain` finish it), and stop. May be called twice."""
        ...
