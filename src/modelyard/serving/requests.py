"""The bodies of inference requests: what is accepted, and what is refused by the name of the field.

A field that this server would not honour is an error, never dropped in silence; `null` and a field's neutral value
(`n: 1`, `logprobs: false`, `tools: []`) mean the same as leaving it out. Types are strict: `true`, `"12"` and `1e3` are
not whole numbers. The module knows nothing of models, versions or HTTP.

>>> parse(ChatRequest, b'{"model": "a/b", "messages": [{"role": "user", "content": "hi"}]}').messages[0].text
'hi'
>>> parse(ChatRequest, b'{"model": "a/b", "mesages": []}')
Traceback (most recent call last):
    ...
modelyard.errors.RequestError: unknown field `mesages`
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from modelyard.errors import RequestError, near_match
from modelyard.serving.protocol import Generate, Sampling

__all__ = ["ChatRequest", "CompletionRequest", "InferenceRequest", "parse", "read_json"]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

_ABSENT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI's fields that are not honoured yet, each with the values that ask for nothing (besides null)."""

_MESSAGE_ABSENT: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def _drop_absent(value: Any, known: dict[str, tuple[Any, ...]]) -> Any:
    """Leave out what asks for nothing; refuse a field of OpenAI's that asks for something we do not do."""
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, item in value.items():
        if item is None:
            if name in known:
                continue
        elif name in known:
            if any(item == neutral and type(item) is type(neutral) for neutral in known[name]):
                continue
            raise PydanticCustomError(
                "unsupported_field",
                "the field is not supported; leave it out{allowed}",
                {"field": name, "allowed": f" or send {json.dumps(known[name][0])}" if known[name] else ""},
            )
        kept[name] = item
    return kept


_SHAPES = {
    "content": "a string or a list of text parts",
    "prompt": "one non-empty string, a list that holds one, or one list of token ids: a request has one prompt",
    "stop": "a string or a list of at most 16 strings, each of 1 to 256 characters",
}
"""What a field with several forms takes, because the complaint about one of its forms would mislead."""


class TextPart(BaseModel):
    """One part of a message's content; only text is understood."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message. `developer` is today's name for `system` and is treated as that."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        return _drop_absent(value, _MESSAGE_ABSENT)

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = _STRICT
    include_usage: bool = False


class InferenceRequest(BaseModel):
    """The fields that chat and plain completions share."""

    model_config = _STRICT
    default_max_tokens: ClassVar[int | None] = None

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        return _drop_absent(value, _ABSENT)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> InferenceRequest:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options", "stream_options is only for streams", {"field": "stream_options"}
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> Sampling:
        """The request's choice of tokens, as the worker takes it."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=self.limit(),
            # -0.0 passes the bounds; adding zero makes it the 0.0 that means greedy.
            temperature=None if self.temperature is None else self.temperature + 0.0,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=stop or None,
            seed=self.seed,
        )

    def limit(self) -> int | None:
        """The most tokens to generate; None leaves it to the engine."""
        return self.max_tokens if self.max_tokens is not None else self.default_max_tokens

    def generate(self) -> Generate:
        """The message that asks a worker for this; the process gives it its id."""
        return Generate(id=0, sampling=self.sampling())


class ChatRequest(InferenceRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise PydanticCustomError(
                "two_limits", "differs from max_tokens; send one of them", {"field": "max_completion_tokens"}
            )
        return self

    def limit(self) -> int | None:
        """`max_completion_tokens`, or its older name `max_tokens`."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def generate(self) -> Generate:
        """The conversation, for the version's own chat template."""
        messages = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text}
            for message in self.messages
        ]
        return Generate(id=0, messages=messages, sampling=self.sampling())


class CompletionRequest(InferenceRequest):
    """The body of `POST /v1/completions`: one prompt, as text or token ids; 16 tokens unless `max_tokens` says more."""

    default_max_tokens: ClassVar[int | None] = 16

    prompt: (
        Annotated[str, StringConstraints(min_length=1)]
        | Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1, max_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=1)]
    )

    def generate(self) -> Generate:
        """The prompt as it is, without a chat template."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        return Generate(id=0, prompt=prompt, sampling=self.sampling())


Request = TypeVar("Request", bound=InferenceRequest)


def parse(kind: type[Request], body: bytes) -> Request:
    """The request in `body`; `RequestError` names the field that is wrong."""
    plain = read_json(body)
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise _request_error(kind, error.errors(include_url=False)) from error


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`: UTF-8, no duplicate keys, no NaN; anything else is a `RequestError`."""
    try:
        plain = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and integers of thousands of digits
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if b"\\u" in body and not _encodable(plain):
        raise RequestError("the body holds half of a surrogate pair, which is no text")
    if not isinstance(plain, dict):
        raise RequestError(f"the body must be a JSON object, not {_json_type(plain)}")
    return plain


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise RequestError(f"the key `{twice[:80]}` appears twice", field=twice[:80])
    return plain


def _refuse_constant(name: str) -> None:
    raise RequestError(f"{name} is not a JSON number")


def _encodable(plain: Any) -> bool:
    try:
        json.dumps(plain, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _request_error(kind: type[InferenceRequest], found: list[ErrorDetails]) -> RequestError:
    """The most telling of pydantic's complaints as one error with the path to the field."""
    # A union complains once per branch; an unknown field or an unsupported one is the cause when there is one.
    causes = ("literal_error", "extra_forbidden", "unsupported_field", "two_limits", "stream_options")
    detail = min(found, key=lambda item: causes.index(item["type"]) if item["type"] in causes else len(causes))
    path = _path(detail["loc"])
    shape = next((text for name, text in _SHAPES.items() if name in detail["loc"]), None)
    if shape is not None and detail["type"] not in causes and detail["type"] != "missing":
        path = re.match(r"messages\[\d+\]\.content|\w+", path)[0]  # type: ignore[index]  # it begins with a field's name
        return RequestError(f"`{path}` must be {shape}", field=path)
    context = detail.get("ctx", {})
    if "field" in context:
        path = f"{path}.{context['field']}" if path else str(context["field"])
    if detail["type"] == "extra_forbidden":
        name = str(detail["loc"][-1])
        meant = near_match(name, [*kind.model_fields, *_ABSENT]) if len(detail["loc"]) == 1 else None
        return RequestError(
            f"unknown field `{path[:120]}`", hint=f"did you mean `{meant}`?" if meant else None, field=path[:120]
        )
    if detail["type"] == "missing":
        return RequestError(f"`{path}` is required", field=path)
    return RequestError(f"`{path}`: {detail['msg']}", field=path)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` from pydantic's location, without the names it gives to the branches of a union."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "int", "float", "TextPart"}:
            path += f".{part}" if path else part
        elif not path:  # an unknown field that is no identifier
            path = part
    return path
