"""What the router and a worker say to one another: typed messages, one length-prefixed JSON frame each.

A frame is four bytes of length (big endian) and that many bytes of UTF-8 JSON with the message's name under `type`.
Everything about one request carries its `id`, so any number of requests share the socket. A worker answers a
`Generate` with `Refused`, or with `Accepted`, any number of `Chunk` and one `Finished`; after `Cancel` the terminal
message still comes. Nothing here knows of HTTP, of processes or of models.

>>> decode(encode(Cancel(id=7))[4:])
Cancel(id=7)
"""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar

from modelyard import errors
from modelyard.errors import InternalError, YardError

__all__ = [
    "FRAME_LIMIT",
    "HEAD",
    "Accepted",
    "Cancel",
    "Chunk",
    "Failed",
    "Finished",
    "Generate",
    "Load",
    "Message",
    "Ping",
    "Pong",
    "Ready",
    "Refused",
    "Sampling",
    "Shutdown",
    "decode",
    "encode",
    "error_from",
]

HEAD = struct.Struct(">I")
"""The length that precedes each frame's body."""

FRAME_LIMIT = 64 << 20
"""Longest body of a frame in bytes; a request's body is limited to less by the router."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all messages; `TYPES` finds the class by its name."""

    TYPES: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls) -> None:
        """Register the message under its class name."""
        Message.TYPES[cls.__name__] = cls


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose tokens; None means "as the version's generation_config says"."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Load(Message):
    """To the worker, first and once: the model to host. `base` is the folder an adapter applies to."""

    folder: str
    base: str | None = None
    label: str = "model"
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """From the worker: the model is loaded. `slots` is how many requests it takes at once, None for no opinion."""

    pid: int
    context: int | None
    engine: str
    chat: bool
    slots: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failed(Message):
    """From the worker: the model could not be loaded; the process exits."""

    error: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Generate(Message):
    """To the worker: continue `messages` through the chat template, or `prompt` as raw text or token ids."""

    id: int
    messages: list[dict[str, str]] | None = None
    prompt: str | list[int] | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Accepted(Message):
    """From the worker: the prompt fits; decoding begins."""

    id: int
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Chunk(Message):
    """From the worker: the next piece of text."""

    id: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Finished(Message):
    """From the worker: the end of a request, `reason` being stop, length or cancelled."""

    id: int
    reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class Refused(Message):
    """From the worker: the request ends with an error, before its first token or in the middle."""

    id: int
    error: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cancel(Message):
    """To the worker: stop generating for `id` within one step; unknown ids are ignored."""

    id: int


@dataclass(frozen=True, kw_only=True)
class Ping(Message):
    """To the worker: are you alive, and how are you?"""

    nonce: int


@dataclass(frozen=True, kw_only=True)
class Pong(Message):
    """From the worker: requests in work and resident memory in bytes."""

    nonce: int
    in_flight: int
    resident: int


@dataclass(frozen=True, kw_only=True)
class Shutdown(Message):
    """To the worker: cancel what is left and exit."""


def encode(message: Message) -> bytes:
    """The frame of `message`, length included; `InternalError` when it is over `FRAME_LIMIT`."""
    body = json.dumps({"type": type(message).__name__, **dataclasses.asdict(message)}).encode()
    if len(body) > FRAME_LIMIT:
        raise InternalError(
            f"a {type(message).__name__} message of {len(body)} bytes is over the limit of {FRAME_LIMIT}"
        )
    return HEAD.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """The message in a frame's body; `InternalError` for anything that `encode` did not make."""
    try:
        plain = json.loads(body)
        kind = Message.TYPES[plain.pop("type")]
        if kind is Generate:
            sampling = plain["sampling"]
            plain["sampling"] = Sampling(**{**sampling, "stop": sampling["stop"] and tuple(sampling["stop"])})
        return kind(**plain)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InternalError(f"a worker and the router do not understand one another: {error}") from error


def error_from(plain: dict[str, Any]) -> YardError:
    """The error whose `to_dict` the other process sent, as an instance of its class."""
    named = (getattr(errors, name) for name in errors.__all__)
    kinds = {kind.code: kind for kind in named if isinstance(kind, type) and issubclass(kind, YardError)}
    kind = kinds.get(str(plain.get("code")), YardError)
    return kind(
        str(plain.get("message", "unknown failure")),
        hint=plain.get("hint"),
        code=plain.get("code"),
        **plain.get("details", {}),
    )
