"""Tokens and masks: exactly the answers are trained, and the ids are those that will be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import DataError, ModelError
from modelyard.training.data import Example, Rows
from modelyard.training.tokens import Encoded, encode_rows, load_tokenizer, stop_tokens
from training.training_base import TEMPLATE, make_base, make_tokenizer


def chat(*contents: str, **last: Any) -> Example:
    """A conversation that begins with the user and takes turns."""
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    messages[-1].update(last)
    return Example(messages=messages, source="a.jsonl:1")


def encode(*examples: Example, template: str | None = TEMPLATE, limit: int | None = None) -> tuple[Encoded, Any]:
    """Encode with the tiny tokenizer, whose stop token is <|end|>."""
    tokenizer = make_tokenizer(template)
    return encode_rows(Rows(list(examples)), tokenizer, stops=[tokenizer.eos_token_id], limit=limit), tokenizer


def trained_text(encoded: Encoded, tokenizer: Any, number: int = 0) -> str:
    """The trained tokens of a row as text, pieces joined by |."""
    row = encoded.rows[number]
    borders = np.flatnonzero(np.diff(row.trained.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return "|".join(tokenizer.decode(row.ids[start:end].tolist()) for start, end in borders)


def test_every_answer_and_its_stop_token_is_trained() -> None:
    """In a conversation each assistant turn is trained up to its stop token; the line end after it is not."""
    encoded, tokenizer = encode(chat("what is the sky", "blue", "and today", "the sky is blue"))
    assert trained_text(encoded, tokenizer) == "blue<|end|>|the sky is blue<|end|>"


def test_ids_are_those_of_the_whole_rendering() -> None:
    """The ids are what template and tokenizer give for the conversation, up to the last token that is trained."""
    example = chat("what is the sky", "blue", "and today", "the sky is blue")
    encoded, tokenizer = encode(example)
    whole = tokenizer.apply_chat_template(example.messages, tokenize=True, return_dict=True)["input_ids"]
    assert encoded.rows[0].ids.tolist() == list(whole)[:-1]
    prompt = tokenizer.apply_chat_template(
        (example.messages or [])[:3], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert encoded.rows[0].ids[: len(prompt)].tolist() == list(prompt)


def test_weight_zero_is_context_only() -> None:
    """An assistant message of weight 0 is there and not trained."""
    example = chat("q", "first", "r", "second")
    assert example.messages is not None
    example.messages[1]["weight"] = 0
    encoded, tokenizer = encode(example)
    assert trained_text(encoded, tokenizer) == "second<|end|>"


def test_template_that_writes_the_last_answer_differently() -> None:
    """A template that adds a block to the last answer only still gets every answer marked."""
    template = TEMPLATE.replace(
        "<|{{ message.role }}|>",
        "<|{{ message.role }}|>{% if loop.last and message.role == 'assistant' %}[think]{% endif %}",
    )
    encoded, tokenizer = encode(chat("a", "first", "b", "second"), template=template)
    assert trained_text(encoded, tokenizer) == "first<|end|>|[think]second<|end|>"


def test_template_that_rewrites_history_is_refused() -> None:
    """Where the text before an answer changes once the answer is there, masks cannot be exact: the row is named."""
    template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(DataError, match=r"a.jsonl:1: the base's chat template changes what came before message 1"):
        encode(chat("a", "b"), template=template)


def test_template_that_refuses_a_row() -> None:
    """What the template raises names the row."""
    example = Example(messages=[{"role": "tool", "content": "x"}, *(chat("a", "b").messages or [])], source="a.jsonl:9")
    with pytest.raises(DataError, match=r"a.jsonl:9: the base's chat template refuses the row: unknown role"):
        encode(example)


def test_document_is_trained_whole() -> None:
    """Every token of a text document is trained, and an end token follows."""
    encoded, tokenizer = encode(Example(text="the sky is blue"))
    assert trained_text(encoded, tokenizer) == "the sky is blue<|end|>"
    assert encoded.rows[0].trained.all()


def test_pair_without_chat_template() -> None:
    """A base without a template continues the prompt; the pieces are tokenized apart, as generation will do."""
    pair = Example(messages=chat("the sky", " is blue").messages, prompt="the sky", completion=" is blue")
    encoded, tokenizer = encode(pair, template=None)
    prompt = tokenizer("the sky")["input_ids"]
    assert encoded.rows[0].ids[: len(prompt)].tolist() == prompt
    assert trained_text(encoded, tokenizer) == " is blue<|end|>"


def test_conversation_without_chat_template_is_refused() -> None:
    """A conversation needs a template; the message says what to do."""
    with pytest.raises(ModelError, match=r"the base has no chat template, and a.jsonl:1 is a conversation"):
        encode(chat("a", "b", "c", "d"), template=None)


def test_cut_rows_are_counted_and_empty_ones_left_out() -> None:
    """A row cut before its answer is left out and named; one cut inside it loses its stop token and is named."""
    encoded, _ = encode(chat("a", "b"), chat("what is the colour of the sky" * 3, "blue"), limit=7)
    assert (encoded.truncated, encoded.empty, [row.index for row in encoded.rows]) == ([1], [1], [0])
    encoded, _ = encode(chat("a", "what is the colour of the sky today"), limit=7)
    assert (encoded.truncated, encoded.without_stop, encoded.empty) == ([0], [0], [])
    assert encoded.cut_tokens > 0


def test_token_that_straddles_the_answer_is_noticed() -> None:
    """Where the tokenizer merges across the border of prompt and answer, the row is counted."""
    template = TEMPLATE.replace("<|assistant|>{%- endif", "<|assistant|>th{%- endif").replace(
        "<|{{ message.role }}|>", "<|{{ message.role }}|>{% if message.role == 'assistant' %}th{% endif %}"
    )
    encoded, _ = encode(chat("a", "e sky"), template=template)
    assert encoded.crossing == [0]


def test_special_token_in_content_is_noticed() -> None:
    """Content that spells a special token becomes one; the row is counted."""
    encoded, _ = encode(chat("a", "b"), chat("say <|end|>", "b"))
    assert encoded.injected == [1]


def test_stop_tokens_come_from_both_files(tmp_path: Path) -> None:
    """The tokenizer's end token and those of generation_config.json both stop a generation."""
    base = make_base(tmp_path)
    (base / "generation_config.json").write_text('{"eos_token_id": [1, 4]}')
    assert stop_tokens(base, load_tokenizer(base)) == [1, 4]


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    """A base without a tokenizer is refused by name."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
