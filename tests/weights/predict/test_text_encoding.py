"""Lengths, truncation, windows and padding of texts."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.errors import RequestError
from modelyard.weights.predict import PredictOptions, predict
from modelyard.weights.predict.encoding import Encoded, collate, encode, find_limit, hold, plan_batches
from task_models.opened import open_tiny
from task_models.text import LONG, TEXTS

CLASSIFY = "text-classification"


def options(truncation: str) -> PredictOptions:
    """Options of that truncation."""
    return PredictOptions(CLASSIFY, truncation=truncation)


@pytest.mark.parametrize(
    ("task", "kind", "limit"),
    [
        (CLASSIFY, "bert", 64),
        (CLASSIFY, "roberta", 64),  # 66 positions, of which it never uses the first two
        (CLASSIFY, "gpt2", 64),
        ("text2text-generation", "t5", 64),  # relative positions: what the tokenizer was saved with
    ],
)
def test_the_limit_is_what_the_model_really_takes(task: str, kind: str, limit: int) -> None:
    """The longest input that is let through runs, and one token more is refused by us and not by torch."""
    model = open_tiny(task, kind)
    assert find_limit(model) == limit
    words = " card" * 300
    cut = hold(encode(model.processor, [(words, None)]), limit, options("end"))[0]
    assert len(cut.ids) == limit
    with pytest.raises(RequestError, match=f"and the model takes {limit}"):
        predict(model, words)
    assert predict(model, words, truncation="end") is not None


@pytest.mark.parametrize(("where", "side"), [("end", "right"), ("start", "left")])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_cut_texts_are_the_tokenizers_own(kind: str, where: str, side: str) -> None:
    """What is left of a text, and of a pair cut in its first text, is what the tokenizer's truncation leaves."""
    tokenizer = open_tiny(CLASSIFY, kind).processor
    before = tokenizer.truncation_side
    for texts, strategy, cut in (((LONG, None), True, None), ((LONG, TEXTS[1]), "only_first", 0)):
        ours = hold(encode(tokenizer, [texts]), 20, options(where), cut=cut)[0]
        tokenizer.truncation_side = side
        theirs = tokenizer(*texts, truncation=strategy, max_length=20)
        tokenizer.truncation_side = before
        assert list(ours.ids) == theirs["input_ids"]
        assert "token_type_ids" not in ours.extra or list(ours.extra["token_type_ids"]) == theirs["token_type_ids"]


def test_windows_are_the_tokenizers_own() -> None:
    """Windows over the second text with a stride are those of the tokenizer's overflowing tokens."""
    tokenizer = open_tiny(CLASSIFY).processor
    whole = encode(tokenizer, [(TEXTS[1], LONG)])
    ours = hold(whole, 24, options("windows"), cut=1, stride=5)
    theirs = tokenizer(
        TEXTS[1], LONG, truncation="only_second", max_length=24, stride=5, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    assert [list(item.ids) for item in ours] == theirs["input_ids"]
    assert [list(item.offsets or ()) for item in ours] == [list(map(tuple, row)) for row in theirs["offset_mapping"]]
    seen = {position for item in ours for position in item.positions}
    assert seen == set(range(len(whole[0].ids)))


def test_a_pair_is_cut_in_its_longer_text() -> None:
    """Where nothing says which text is cut, the shorter one is left whole."""
    tokenizer = open_tiny(CLASSIFY).processor
    whole = encode(tokenizer, [(LONG, "where is my card")])[0]
    cut = hold([whole], 30, options("end"))[0]
    assert cut.sequence.count(1) == whole.sequence.count(1)
    assert len(cut.ids) == 30


@pytest.mark.parametrize("truncation", ["end", "start", "windows"])
def test_what_may_not_be_cut_must_fit(truncation: str) -> None:
    """Where the other text fills the model, the row is refused: nothing of the text would be left."""
    tokenizer = open_tiny(CLASSIFY).processor
    whole = encode(tokenizer, [("card", LONG)])
    with pytest.raises(RequestError, match="row 0"):
        hold(whole, 16, options(truncation), cut=0)


def test_a_stride_that_never_ends_is_refused() -> None:
    """A stride as long as a window is an error that says what fits."""
    whole = encode(open_tiny(CLASSIFY).processor, [(LONG, None)])
    with pytest.raises(RequestError, match="`stride` is 14") as caught:
        hold(whole, 16, options("windows"), cut=0, stride=14)
    assert caught.value.hint == "0 to 13"


def test_the_refusal_names_row_and_lengths() -> None:
    """The default refuses what is too long; the error has row, tokens and limit for programs."""
    model = open_tiny(CLASSIFY)
    with pytest.raises(RequestError, match="row 2 has") as caught:
        predict(model, [*TEXTS[:2], LONG])
    count = len(model.processor(LONG)["input_ids"])
    assert {name: caught.value.details[name] for name in ("row", "tokens", "limit")} == {
        "row": 2,
        "tokens": count,
        "limit": 64,
    }


def test_padding_is_what_the_model_is_configured_for() -> None:
    """Rows are padded with the model's own padding id, at the right, under a mask."""
    model = open_tiny(CLASSIFY, "roberta")
    items = encode(model.processor, [(TEXTS[1], None), (TEXTS[0], None)])
    batch = collate(model, items)
    short = len(items[0].ids)
    assert batch["input_ids"][0, short:].unique().tolist() == [1]
    assert batch["attention_mask"].sum(1).tolist() == [len(item.ids) for item in items]
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("kind", ["convbert", "fnet", "funnel", "xlnet"])
def test_the_types_that_padding_changes_are_really_changed_by_it(kind: str) -> None:
    """These model types are kept from padding with cause: padded by hand, a short row says something else."""
    model = open_tiny(CLASSIFY, kind)
    texts = [TEXTS[1], TEXTS[1] + " now", TEXTS[1] + " a", TEXTS[3]]
    items = encode(model.processor, [(text, None) for text in texts])
    padded = model.model(**collate(model, items)).logits.tolist()
    alone = [model.model(**collate(model, [item])).logits[0].tolist() for item in items]
    assert padded != [pytest.approx(row, abs=1e-4) for row in alone]
    assert all(len({len(items[at].ids) for at in places}) == 1 for places in plan_batches(model, items, 8))


def test_an_empty_text_without_special_tokens_is_refused() -> None:
    """A text of no tokens names its row instead of failing inside the model."""
    with pytest.raises(RequestError, match="row 1 has no tokens"):
        predict(open_tiny(CLASSIFY, "gpt2"), [TEXTS[0], ""])


def test_tokenizers_in_python_are_cut_too() -> None:
    """A slow tokenizer gives no offsets, and its texts are told apart and cut as the fast one's."""
    fast = open_tiny(CLASSIFY).processor

    class Slow:
        """The same tokenizer without what only a fast one has."""

        is_fast = False

        def __call__(self, *texts: Any, return_offsets_mapping: bool = False, **values: Any) -> Any:
            return dict(fast(*texts, **values))

    def plain(item: Encoded) -> tuple[Any, ...]:
        return item.ids, item.extra, item.sequence

    pair = [(LONG, TEXTS[1])]
    slow, wanted = encode(Slow(), pair), encode(fast, pair)
    assert plain(slow[0]) == plain(wanted[0])
    assert slow[0].offsets is None
    assert plain(hold(slow, 20, options("end"))[0]) == plain(hold(wanted, 20, options("end"))[0])
