"""Bodies of inference requests: what is accepted, what is refused, and under which name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.errors import RequestError
from modelyard.serving.requests import ChatRequest, CompletionRequest, parse

CHAT: dict[str, Any] = {"model": "team/bot", "messages": [{"role": "user", "content": "hi"}]}

NO_MESSAGES: list[Any] = [[], "hi", {}, None, [{"role": "user", "content": "x"}] * 10_001]

WRONG: list[tuple[dict[str, Any], str]] = [
    *[({"n": value}, "n") for value in (0, 2, True, "1", 10**30)],
    *[({"max_tokens": value}, "max_tokens") for value in (0, -1, 2**63, True, "12", 1e3, 1.5, [1])],
    *[({"temperature": value}, "temperature") for value in (-0.1, 2.1, True, "1", [1])],
    *[({"top_p": value}, "top_p") for value in (0, 1.1, False, "x")],
    *[({"top_k": value}, "top_k") for value in (-1, 2**31, True, 1.0)],
    *[({"seed": value}, "seed") for value in (2**63, -(2**63) - 1, True, "7", 1.5)],
    *[({"presence_penalty": value}, "presence_penalty") for value in (-2.1, 2.1, True)],
    *[({"frequency_penalty": value}, "frequency_penalty") for value in (-2.1, 2.1, "0")],
    *[({"stop": value}, "stop") for value in (3, ["a"] * 17, ["a"] * 10_000, [""], "", ["x" * 257], [["a"]], True)],
    *[({"stream": value}, "stream") for value in ("true", 1)],
    *[({"messages": value}, "messages") for value in NO_MESSAGES],
    *[({"model": value}, "model") for value in ("", None, 3, "m" * 513)],
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "User", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages[0].weight"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
    ),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 0}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"store": True}, "store"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"include": True}}, "stream_options.include"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("extra", "field"), WRONG, ids=lambda item: str(item)[:60])
def test_wrong_field_is_named(extra: dict[str, Any], field: str) -> None:
    """A field that is unknown, not supported, of the wrong type or out of range is refused by its name."""
    with pytest.raises(RequestError) as caught:
        parse(ChatRequest, json.dumps({**CHAT, **extra}).encode())
    assert caught.value.details["field"] == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 1},
        {"logprobs": False},
        {"tools": []},
        {"tool_choice": "none"},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"temperature": None, "seed": None, "stop": None, "stream": None, "n": None, "tools": None},
        {"user": "somebody"},
        {"stop": []},
        {"temperature": 0},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}]},
    ],
    ids=str,
)
def test_neutral_value_means_absent(extra: dict[str, Any]) -> None:
    """Null, and a value that asks for nothing, are as good as leaving a field out."""
    parse(ChatRequest, json.dumps({**CHAT, **extra}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model":' * 50_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"model": "a", "model": "b"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        json.dumps({**CHAT, "model": "\ud800"}).encode(),
        json.dumps(CHAT)[:-1].encode() + b', "temperature": 1e400}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_body_that_is_no_request_is_refused(body: bytes) -> None:
    """Broken, deep, ambiguous or unrepresentable JSON is the client's error, never a crash."""
    with pytest.raises(RequestError):
        parse(ChatRequest, body)


def test_unknown_field_has_near_match() -> None:
    """A misspelt field is answered with the one that was meant."""
    with pytest.raises(RequestError) as caught:
        parse(ChatRequest, json.dumps({**CHAT, "temprature": 1}).encode())
    assert caught.value.hint == "did you mean `temperature`?"


def test_text_parts_and_roles() -> None:
    """Text parts are joined, and `developer` is `system`."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    request = parse(ChatRequest, json.dumps({**CHAT, "messages": messages}).encode())
    assert request.generate().messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


def test_sampling_is_passed_on_or_left_to_the_version() -> None:
    """What a request gives reaches the worker; what it does not is left to the version's generation_config."""
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stop": "END", "max_completion_tokens": 9}
    sampling = parse(ChatRequest, json.dumps({**CHAT, **given}).encode()).sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 3, 7)
    assert (sampling.stop, sampling.max_tokens) == (("END",), 9)
    absent = parse(ChatRequest, json.dumps(CHAT).encode()).sampling()
    assert set(vars(absent).values()) == {None}


@pytest.mark.parametrize("prompt", ["x", ["x"], [1, 2], [[1, 2]]], ids=str)
def test_completion_takes_one_prompt(prompt: Any) -> None:
    """A prompt is text or token ids, alone or as the only item of a list, and 16 tokens are the default."""
    request = parse(CompletionRequest, json.dumps({"model": "a/b", "prompt": prompt}).encode())
    assert request.generate().prompt in ("x", [1, 2])
    assert request.sampling().max_tokens == 16


@pytest.mark.parametrize("prompt", ["", [], ["x", "y"], [[1], [2]], [True], [-1], [2**31], [1, "x"], None, 3], ids=str)
def test_other_prompts_are_refused(prompt: Any) -> None:
    """Several prompts, empty ones and what is neither text nor token ids are refused as `prompt`."""
    with pytest.raises(RequestError) as caught:
        parse(CompletionRequest, json.dumps({"model": "a/b", "prompt": prompt}).encode())
    assert caught.value.details["field"] == "prompt"


@pytest.mark.parametrize("extra", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 1}], ids=str)
def test_completion_names_what_it_does_not_do(extra: dict[str, Any]) -> None:
    """Completion fields that are not honoured are refused by name."""
    with pytest.raises(RequestError) as caught:
        parse(CompletionRequest, json.dumps({"model": "a/b", "prompt": "x", **extra}).encode())
    assert caught.value.details["field"] == next(iter(extra))
