"""Text from text: no pipeline of transformers 5, so its own `generate` is run here on the same tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelyard.errors import RequestError
from modelyard.weights.predict import predict
from modelyard.weights.predict.results import Text
from task_models.opened import open_tiny
from task_models.text import LONG, TEXTS

TASK = "text2text-generation"


def greedy(model: Any, text: str, **values: Any) -> list[int]:
    """New tokens by transformers' generate, up to and with the end."""
    with torch.no_grad():
        ids: list[int] = model.model.generate(**model.processor(text, return_tensors="pt"), do_sample=False, **values)[
            0, 1:
        ].tolist()
    ends = [at for at, token in enumerate(ids) if token == model.model.generation_config.eos_token_id]
    return ids[: ends[0] + 1] if ends else ids


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_generate(kind: str, beams: int) -> None:
    """Each text of a batch is exactly what transformers' generate writes for it alone, greedily and with beams."""
    model = open_tiny(TASK, kind)
    for text, found in zip(TEXTS, predict(model, TEXTS, max_new_tokens=12, num_beams=beams, batch_size=4), strict=True):
        wanted = greedy(model, text, max_new_tokens=12, num_beams=beams)
        assert list(found.token_ids) == wanted
        assert found.text == model.processor.decode(wanted, skip_special_tokens=True).strip()


def test_languages_are_written_as_the_tokenizer_writes_them() -> None:
    """`src_lang` changes the input's language token and `tgt_lang` the first one of the result, as transformers' user does."""
    model = open_tiny(TASK, "mbart")
    german = model.processor.convert_tokens_to_ids("de_DE")
    found = predict(model, TEXTS[:3], src_lang="ro_RO", tgt_lang="de_DE", max_new_tokens=8)
    assert model.processor.src_lang == "en_XX"
    model.processor.src_lang = "ro_RO"
    try:
        wanted = [greedy(model, text, max_new_tokens=8, forced_bos_token_id=german) for text in TEXTS[:3]]
    finally:
        model.processor.src_lang = "en_XX"
    assert [list(result.token_ids) for result in found] == wanted
    assert all(result.token_ids[0] == german for result in found)


@pytest.mark.parametrize(
    ("kind", "options", "hint"),
    [("mbart", {"tgt_lang": "de_D"}, "did you mean `de_DE`?"), ("t5", {"tgt_lang": "de"}, "prefix=")],
)
def test_languages_that_are_not_there_are_refused(kind: str, options: dict[str, Any], hint: str) -> None:
    """A language that the tokenizer lacks names the near one; a tokenizer without languages says what to do instead."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK, kind), TEXTS[0], **options)
    assert hint in (caught.value.hint or "")


def test_a_prefix_is_part_of_the_input() -> None:
    """`prefix` is put in front of each text."""
    model = open_tiny(TASK)
    prefix = "translate English to German: "
    assert predict(model, TEXTS[0], prefix=prefix, max_new_tokens=6) == predict(
        model, prefix + TEXTS[0], max_new_tokens=6
    )


def test_sampling_is_seeded_and_leaves_the_callers_generator_alone() -> None:
    """The same seed draws the same text, in a batch too; another seed another; torch's generator is as it was."""
    model = open_tiny(TASK)
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 10}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = predict(model, TEXTS[:3], seed=1, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert predict(model, TEXTS[1], seed=1, **options) == found[1]
    assert predict(model, TEXTS[1], seed=2, **options) != found[1]


def test_lengths_are_bounded_by_the_decoder() -> None:
    """By default no more is written than the decoder has places for, and asking for more is an error that says how many."""
    model = open_tiny(TASK, "bart")
    assert len(predict(model, TEXTS[0]).token_ids) <= 64
    with pytest.raises(RequestError, match="writes 64 at most"):
        predict(model, TEXTS[0], max_new_tokens=65)
    with pytest.raises(RequestError, match="row 0 has"):
        predict(model, LONG)
    assert isinstance(predict(model, LONG, truncation="start", max_new_tokens=4), Text)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"num_beams": 0}, {"temperature": -1.0}, {"generation": {"num_beams": 2}}, {"beams": 2}],
)
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """An option that cannot be is an error that names it."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK), TEXTS[0], **options)
    assert caught.value.details["field"] in options


def test_further_arguments_reach_generate() -> None:
    """`generation` passes on what transformers' generate takes."""
    model = open_tiny(TASK, "bart")
    found = predict(model, TEXTS[0], max_new_tokens=20, generation={"no_repeat_ngram_size": 1})
    assert list(found.token_ids) == greedy(model, TEXTS[0], max_new_tokens=20, no_repeat_ngram_size=1)
    assert len(set(found.token_ids)) == len(found.token_ids)
