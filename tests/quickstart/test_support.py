"""The generated dataset, and that it shares nothing with what the base was trained on."""

from __future__ import annotations

import itertools
import json
import random
import string

import pytest

from modelyard.quickstart import corpus, support, values


def fillers(template: str) -> list[str]:
    """The literal parts of a phrasing."""
    return [literal for literal, *_ in string.Formatter().parse(template) if literal.strip(" .,?!:")]


@pytest.mark.parametrize("kind", values.MAKERS)
def test_a_value_belongs_to_one_split(kind: str) -> None:
    """No value that one split draws is ever drawn for another, whatever the seed."""
    drawn = {
        split: {values.MAKERS[kind](random.Random(seed), split) for seed in range(300)}
        for split in ("base", "train", "test")
    }

    for one, other in itertools.combinations(drawn.values(), 2):
        assert {value.lower() for value in one} & {value.lower() for value in other} == set()


def test_rows_depend_on_the_seed_alone() -> None:
    """The same seed gives the same rows, another seed other rows."""
    assert support.generate("test", 50, seed=1) == support.generate("test", 50, seed=1)
    assert support.generate("test", 50, seed=1) != support.generate("test", 50, seed=2)


def test_train_and_test_share_intents_and_nothing_else() -> None:
    """Phrasings and slot values of the test rows are held out."""
    train, test = support.generate("train", 9600), support.generate("test", 600)

    assert {row["messages"][0]["content"] for row in train} & {row["messages"][0]["content"] for row in test} == set()
    assert support.slot_values(train) & support.slot_values(test) == set()
    for intent in support.INTENTS:
        assert set(intent.train) & set(intent.test) == set()


def test_answers_are_json_with_the_message_s_own_values() -> None:
    """Every answer is one JSON object whose slot values stand in the message, word for word."""
    for row in support.generate("test", 200):
        question, reply = (message["content"] for message in row["messages"])
        slots = json.loads(reply)
        assert slots.pop("intent") in {intent.name for intent in support.INTENTS}
        assert slots
        assert all(value in question for value in slots.values())


def test_the_corpus_shares_no_intent_value_or_phrasing_with_the_test_rows() -> None:
    """Intent names, slot values and phrasings of the test rows occur nowhere in the base's pretraining text."""
    text = "\n".join(corpus.text_of(document) for document in corpus.documents())
    words = set(text.split())
    rows = support.generate("test", 600)

    assert not [intent.name for intent in support.INTENTS if intent.name in text]
    assert not [value for value in support.slot_values(rows) if value in words]
    phrasings = [part for intent in support.INTENTS for template in intent.test for part in fillers(template)]
    assert not [part for part in phrasings if len(part.split()) >= 3 and part.strip() in text]


def test_the_corpus_depends_on_the_seed_alone() -> None:
    """The same seed gives the same documents."""
    assert list(corpus.documents(200, seed=3)) == list(corpus.documents(200, seed=3))
