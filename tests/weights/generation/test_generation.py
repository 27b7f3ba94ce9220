"""What may be asked of an answer, and when it is over."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.errors import RequestError
from modelyard.weights.generation.loop import (
    Generation,
    GenerationDefaults,
    GenerationParams,
    check_context,
    resolve_params,
)
from tiny_models import make_tokenizer

WRONG: list[tuple[str, Any]] = [
    ("max_new_tokens", 0),
    ("max_new_tokens", True),
    ("max_new_tokens", 1.5),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_k", -1),
    ("min_p", 2),
    ("repetition_penalty", 0),
    ("presence_penalty", 2.5),
    ("frequency_penalty", float("inf")),
    ("seed", 1 << 64),
    ("seed", "lucky"),
    ("stop", [""]),
    ("stop", ["x"] * 17),
    ("stop", [3]),
    ("stop", "x" * 257),
]


def make(limit: int = 10, **params: Any) -> Generation:
    """An answer to a one-token prompt."""
    return Generation((5,), GenerationParams(**params), limit, frozenset({1}), make_tokenizer())


def ids_of(text: str) -> list[int]:
    """Token ids of plain text."""
    return [int(token) for token in make_tokenizer().encode(text, add_special_tokens=False)]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: object) -> None:
    """Every field has a range, and what is outside is a RequestError that names the field."""
    with pytest.raises(RequestError) as caught:
        resolve_params({name: value}, GenerationDefaults())
    assert caught.value.details["field"] == name


def test_an_unknown_parameter_is_refused_with_the_near_match() -> None:
    """A misspelt name is never ignored."""
    with pytest.raises(RequestError, match="unknown parameter `temprature`") as caught:
        resolve_params({"temprature": 1.0}, GenerationDefaults())
    assert caught.value.hint == "did you mean `temperature`?"


def test_defaults_fill_what_is_not_given_and_none_is_not_given() -> None:
    """The caller's value wins over the checkpoint's, and None takes the checkpoint's."""
    defaults = GenerationDefaults(params=GenerationParams(temperature=0.6, top_p=0.9))
    assert resolve_params({"temperature": None, "top_p": 0.5}, defaults) == GenerationParams(temperature=0.6, top_p=0.5)


def test_one_stop_string_may_be_given_by_itself() -> None:
    """A string, a list and a tuple all name stop strings."""
    for given in ("END", ["END"], ("END",)):
        assert resolve_params({"stop": given}, GenerationDefaults()).stop == ("END",)


def test_too_many_tokens_are_an_error_with_both_numbers() -> None:
    """What does not fit the context is refused and never cut off."""
    defaults = GenerationDefaults(context=100)
    with pytest.raises(RequestError, match=r"90 tokens and `max_new_tokens` is 11: 101 is more .* 100") as caught:
        check_context(90, GenerationParams(max_new_tokens=11), defaults)
    assert caught.value.details["field"] == "max_new_tokens"
    with pytest.raises(RequestError, match="100 tokens and the model's context is 100"):
        check_context(100, GenerationParams(), defaults)


def test_an_empty_prompt_is_an_error() -> None:
    """A prompt of no tokens has nothing to continue."""
    with pytest.raises(RequestError, match="the prompt is empty"):
        check_context(0, GenerationParams(), GenerationDefaults())


def test_the_default_length_is_what_still_fits() -> None:
    """Where the caller names no length, the answer is bounded by the default and by the context."""
    defaults = GenerationDefaults(context=300, max_new_tokens=256)
    assert check_context(10, GenerationParams(), defaults) == 256
    assert check_context(290, GenerationParams(), defaults) == 10
    assert check_context(290, GenerationParams(), GenerationDefaults()) == 256


def test_an_ending_token_stops_without_text() -> None:
    """The EOS token ends the answer as `stop`, counts as a token and adds no text."""
    generation = make()
    for token in [*ids_of("my"), 1]:
        generation.take(token)
    assert (generation.text, generation.finish_reason, generation.output_ids[-1]) == ("my", "stop", 1)


def test_the_limit_ends_as_length_and_lets_held_text_out() -> None:
    """At the limit, text that might have become a stop string is part of the answer."""
    ids = ids_of("my card")
    generation = make(limit=len(ids), stop=("card!",))
    for token in ids:
        generation.take(token)
    assert (generation.text, generation.finish_reason) == ("my card", "length")


def test_a_stop_string_over_a_token_boundary_ends_the_answer() -> None:
    """A stop string spread over several tokens is found, and it and what follows are left out."""
    ids = ids_of("my card has")
    boundaries = len(ids)
    assert boundaries > 2
    generation = make(stop=("rd h",))
    for token in ids:
        if not generation.over:
            generation.take(token)
    assert (generation.text, generation.finish_reason) == ("my ca", "stop")


def test_a_cancelled_answer_keeps_its_text() -> None:
    """Cancelling lets held text out and says so."""
    generation = make(stop=("card",))
    for token in ids_of("my ca"):
        generation.take(token)
    assert generation.cancel().text.endswith("ca")
    assert (generation.text, generation.finish_reason) == ("my ca", "cancelled")


def test_a_seed_fixes_the_draws_and_its_absence_does_not() -> None:
    """Equal seeds give equal sequences of numbers; without a seed two answers differ."""
    first, second, other = make(seed=7), make(seed=7), make(seed=8)
    draws = [first.draw() for _ in range(5)]
    assert draws == [second.draw() for _ in range(5)]
    assert draws != [other.draw() for _ in range(5)]
    assert make().draw() != make().draw()
    assert all(0 <= draw < 1 for draw in draws)
