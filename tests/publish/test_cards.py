"""Model cards: the Hub's own library reads them, and no value can leave its place."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import DataError
from modelyard.publish import CardEdge, CardFacts, render_card

ID, DATASET = "ab" * 32, "cd" * 32

HOSTILE = (
    "<script>alert(1)</script>",
    "x](javascript:alert(1))",
    "`` ` ``` end | cell",
    "a\n---\nlicense: stolen\n---\n# heading",
    "!!python/object/apply:os.system ['true']",
    "{{ config }} & \u202eevil\x00\x1b[31m",
    '"; import os  # \' """',
    "```\n</code>\n# out",
)


def report(**changes: Any) -> dict[str, Any]:
    """A complete report of the version."""
    return {
        "format": "modelyard/report/1",
        "model": ID,
        "dataset": DATASET,
        "data_digest": "ef" * 32,
        "task": {"name": "json-fields"},
        "n": 4,
        "metrics": {"accuracy": 0.75, "valid_json": 1.0},
        "interval": {"accuracy": [0.3, 0.95]},
        "examples": [{"id": str(i), "score": float(i != 0)} for i in range(4)],
        **changes,
    }


FACTS = CardFacts(
    name="team/intents",
    version="v7",
    id=ID,
    kind="merged",
    description="Names the intent of a support message.",
    license="Apache-2.0",
    base_model="team/base",
    datasets=("team/support",),
    languages=("en",),
    tags=("support",),
    architecture="LlamaForCausalLM",
    parameters=1_234_567,
    dtypes={"F32": 1_234_567},
    size=4_938_268,
    lineage=(
        CardEdge("merged", "team/base@v1", "11" * 32),
        CardEdge("trained-on", "datasets/team/support@v1", DATASET),
    ),
    reports=(report(),),
    dataset_names={DATASET: "team/support"},
    config={"rank": 16, "targets": ["q_proj"], "dropout": 0.0},
    inputs="99" * 32,
)


def test_the_hub_library_reads_every_field() -> None:
    """`huggingface_hub.ModelCard` parses the front matter, results with data set and revision included."""
    data = front(render_card(FACTS))
    assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "team/base", ["team/support"])
    assert (data.pipeline_tag, data.language, data.library_name) == ("text-generation", ["en"], "transformers")
    assert data.tags == ["modelyard", "support"]
    accuracy, valid = data.eval_results or []
    assert (accuracy.metric_type, accuracy.metric_value, accuracy.dataset_name) == ("accuracy", 0.75, "team/support")
    assert accuracy.metric_args == {"n": 4, "interval_95": [0.3, 0.95]}
    assert (valid.metric_type, valid.dataset_revision) == ("valid_json", DATASET)


def test_the_card_survives_the_hub_library() -> None:
    """Saved and read again by the Hub's library, the front matter is the same."""
    card = render_card(FACTS)
    assert front(str(ModelCard(card))).to_dict() == front(card).to_dict()


def test_the_text_says_what_was_measured_and_how_to_use_it() -> None:
    """Id, lineage, metrics with interval and number of examples, configuration and commands are in the text."""
    card = render_card(FACTS)
    for expected in (
        ID,
        "| team/support | `json-fields` | accuracy | 0.750 | 0.300 to 0.950 | 4 |",
        "| merged | `team/base@v1` |",
        "rank: 16",
        "yard chat team/intents@v7",
        "99" * 32,
    ):
        assert expected in card


def test_nothing_is_claimed_without_a_report() -> None:
    """Without reports there is no `model-index`, and the text says that nothing was evaluated."""
    card = render_card(CardFacts(name="team/intents", version="v1", id=ID))
    assert front(card).eval_results is None
    assert "has not been evaluated" in card


def test_an_adapter_is_loaded_with_peft() -> None:
    """The card of an adapter names peft as its library and shows how to load it."""
    card = render_card(CardFacts(name="team/intents", version="v2", id=ID, kind="adapter", base_model="team/base"))
    assert front(card).library_name == "peft"
    assert "AutoPeftModelForCausalLM" in card


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (report(model="22" * 32), "stale_evidence"),
        (report(metrics={}), "incomplete_evidence"),
        (report(n=5), "incomplete_evidence"),
    ],
)
def test_a_card_shows_only_complete_results_of_its_own_version(bad: dict[str, Any], code: str) -> None:
    """A report of another version, or one that is not complete, is refused."""
    with pytest.raises(DataError) as caught:
        render_card(CardFacts(name="team/intents", version="v7", id=ID, reports=(bad,)))
    assert caught.value.code == code


def test_an_unknown_license_is_kept_by_name() -> None:
    """A licence that the Hub does not list becomes `other` with its name."""
    data = front(render_card(CardFacts(name="a/b", version="v1", id=ID, license="My Own 1.0")))
    assert (data.license, data.license_name) == ("other", "My Own 1.0")


def front(card: str) -> Any:
    """The front matter as the Hub's library reads it: an object with an attribute for each key."""
    return ModelCard(card).data


class Tags(HTMLParser):
    """Collects the tags of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


def spoiled(value: str) -> CardFacts:
    """Facts with one hostile string in every place."""
    return CardFacts(
        name=value,
        version=value,
        id=ID,
        kind=value,
        description=value,
        license=value,
        base_model=value,
        datasets=(value,),
        languages=(value,),
        tags=(value,),
        pipeline_tag=value,
        architecture=value,
        dtypes={value: 1},
        lineage=(CardEdge(value, value, value),),
        reports=(report(task={"name": value}, metrics={"accuracy": 0.75, value or "m": 1.0}),),
        dataset_names={DATASET: value},
        config={value: value},
        inputs=value,
    )


def outside_code(card: str) -> str:
    """The card without its front matter, code blocks and inline code."""
    body = card.split("\n---\n", 1)[1]
    body = re.sub(r"(?m)^(`{3,})[a-z]*\n.*?^\1$", "", body, flags=re.DOTALL)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", body)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_strings_stay_text(value: str) -> None:
    """No value adds a tag, a link, a heading, a table cell or a key of the front matter, or ends a code block."""
    card = render_card(spoiled(value))
    data = front(card).to_dict()
    assert data.get("license") == "other"
    assert set(data) <= {
        "license",
        "license_name",
        "language",
        "library_name",
        "pipeline_tag",
        "base_model",
        "datasets",
        "tags",
        "model-index",
    }
    rest = outside_code(card)
    tags = Tags()
    tags.feed(rest)
    assert tags.found == []
    assert not re.search(r"(?<!\\)\]\(", rest)
    assert list(re.findall(r"(?m)^## .*$", rest)) == [
        "## Evaluation",
        "## How to use",
        "## How it was made",
    ]
    for row in re.findall(r"(?m)^\|.*\|$", card):
        assert len(re.findall(r"(?<!\\)\|", row)) in {3, 4, 7}
    assert "\x1b" not in card
    assert "\u202e" not in card


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_string_makes_a_readable_card(value: str) -> None:
    """Whatever the values are, the Hub's library reads the card, and finds the version's own id in its text."""
    card = render_card(spoiled(value))
    assert front(card).library_name == "transformers"
    assert ID in ModelCard(card).text


@pytest.mark.parametrize(
    "value", ["- item", "1. item", "--- ", "=== ", "http://evil.example", "a@b.example", "www.evil.example"]
)
def test_a_description_is_a_paragraph(value: str) -> None:
    """A description that looks like a list, a rule or an address stays plain words: its first sign is escaped."""
    card = render_card(CardFacts(name="a/b", version="v1", id=ID, description=value))
    body = card.split("\n\n")[2]
    assert "\\" in body
    assert not re.match(r"([-+=]|\d+[.)])", body)
