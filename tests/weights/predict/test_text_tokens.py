"""Labels of tokens, against transformers' pipeline on the same tiny models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from modelyard.errors import RequestError
from modelyard.weights.predict import predict
from modelyard.weights.predict.results import Entity
from task_models.opened import open_tiny, pipeline
from task_models.text import LONG, TAGS, TEXTS

TASK = "token-classification"


def place(entity: Entity) -> tuple[Any, ...]:
    """What an entity says, its score aside."""
    return entity.label, entity.start, entity.end


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_entities_are_the_pipelines(aggregation: str) -> None:
    """Labels, places and scores of every strategy are the pipeline's, over words with subwords and punctuation."""
    model = open_tiny(TASK)
    ours = predict(model, TEXTS, aggregation=aggregation, batch_size=4)
    theirs = pipeline(TASK, model)(TEXTS, aggregation_strategy=aggregation)
    key = "entity" if aggregation == "none" else "entity_group"
    for mine, wanted in zip(ours, theirs, strict=True):
        assert [place(entity) for entity in mine] == [(row[key], row["start"], row["end"]) for row in wanted]
        assert [entity.score for entity in mine] == pytest.approx([float(row["score"]) for row in wanted], abs=1e-5)
        if aggregation == "none":
            assert [entity.index for entity in mine] == [row["index"] for row in wanted]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("aggregation", ["none", "simple", "first"])
def test_places_are_exact(kind: str, aggregation: str) -> None:
    """The word is the text between start and end, with no blank around it, also where tokens begin with one."""
    for text, entities in zip(TEXTS, predict(open_tiny(TASK, kind), TEXTS, aggregation=aggregation), strict=True):
        assert entities
        for entity in entities:
            assert entity.start is not None
            assert entity.word == text[entity.start : entity.end]
            assert entity.word.strip() == entity.word


def test_blanks_are_no_entities() -> None:
    """A token that is a blank and nothing more has no entity, and no entity ends in one."""
    model = open_tiny(TASK, "roberta")
    text = "  Anna   works \n in Berlin.   "
    found = predict(model, text, aggregation="simple", ignore=())
    assert found
    assert all(entity.word == entity.word.strip() == text[entity.start : entity.end] != "" for entity in found)


def test_words_of_byte_level_tokenizers_are_real_words() -> None:
    """Strategies over words keep the full stop apart from the word before it, where the pipeline takes both for one."""
    model = open_tiny(TASK, "roberta")
    ends = {entity.end for entity in predict(model, TEXTS[3], aggregation="first", ignore=())}
    starts = {entity.start for entity in predict(model, TEXTS[3], aggregation="none", ignore=())}
    assert starts >= {TEXTS[3].index(","), TEXTS[3].index(".")}
    assert len(TEXTS[3]) in ends


def test_ignored_labels_are_left_out() -> None:
    """`O` is left out unless `ignore` says otherwise; any label can be."""
    model = open_tiny(TASK)
    every = predict(model, TEXTS[3], ignore=())
    assert len(every) == len(model.processor(TEXTS[3], add_special_tokens=False)["input_ids"])
    some = predict(model, TEXTS[3], ignore=TAGS[1:])
    assert [entity.index for entity in some] == [entity.index for entity in every if entity.label == "O"]


def test_a_row_of_a_batch_equals_its_solo_result() -> None:
    """Entities of a text do not depend on the texts beside it."""
    model = open_tiny(TASK)
    for text, together in zip(TEXTS, predict(model, TEXTS, aggregation="simple"), strict=True):
        alone = predict(model, text, aggregation="simple")
        assert [place(entity) for entity in alone] == [place(entity) for entity in together]
        assert [entity.score for entity in alone] == pytest.approx([entity.score for entity in together], abs=1e-5)


def test_windows_give_each_token_the_scores_of_its_best_window() -> None:
    """A long text's tokens are labelled once each, by the window that has most text around them: computed here by hand."""
    model = open_tiny(TASK)
    found = predict(model, LONG, truncation="windows", stride=20, ignore=())
    ids = model.processor(LONG, add_special_tokens=False)["input_ids"]
    first, last = model.processor.cls_token_id, model.processor.sep_token_id
    best: dict[int, tuple[int, float, str]] = {}
    for start in range(0, len(ids) - 20, 62 - 20):
        part = ids[start : start + 62]
        batch = model.processor.pad([{"input_ids": [first, *part, last]}], return_tensors="pt")
        rows = model.model(**batch).logits[0].softmax(-1)
        for at in range(len(part)):
            margin = min(at + 1, len(part) - at)
            score, label = rows[at + 1].max(-1)
            if margin > best.get(start + at, (-1, 0.0, ""))[0]:
                best[start + at] = (margin, score.item(), TAGS[label])
    assert [entity.label for entity in found] == [best[at][2] for at in range(len(ids))]
    assert [entity.score for entity in found] == pytest.approx([best[at][1] for at in range(len(ids))], abs=1e-5)


def test_windows_neither_lose_nor_double_an_entity() -> None:
    """Put together over the whole text, entities cover every labelled token once, also at the seams."""
    model = open_tiny(TASK)
    entities = predict(model, LONG, truncation="windows", stride=10, aggregation="simple", ignore=())
    tokens = predict(model, LONG, truncation="windows", stride=10, ignore=())
    assert [entity.start for entity in entities] == sorted({entity.start for entity in entities})
    assert all(left.end <= right.start for left, right in pairwise(entities))
    assert entities[0].start == tokens[0].start
    assert entities[-1].end == tokens[-1].end


def test_a_cut_text_has_no_entities_behind_the_cut() -> None:
    """With `truncation="end"` what was cut off has no label, instead of a made-up one."""
    model = open_tiny(TASK)
    found = predict(model, LONG, truncation="end", ignore=())
    assert len(found) == 62
    assert place(found[0]) == place(predict(model, LONG, truncation="windows", ignore=())[0])


def test_words_are_joined() -> None:
    """A list of words is the text of the words with blanks between, and places are in that text."""
    model = open_tiny(TASK)
    assert predict(model, [["where", "is", "my", "card"]]) == [predict(model, "where is my card")]


@pytest.mark.parametrize(
    ("options", "field"),
    [({"aggregation": "sum"}, "aggregation"), ({"aggregations": "max"}, "aggregations")],
)
def test_wrong_options_are_named(options: dict[str, Any], field: str) -> None:
    """An option that is none is an error that names it."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK), TEXTS[0], **options)
    assert caught.value.details["field"] == field
