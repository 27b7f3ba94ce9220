"""The text that the shipped base model was pretrained on: generated, so that anyone may read and redistribute it.

Documents are short conversations in the base's own chat format, or plain sentences. They teach what a general small
model would know — everyday English words, copying names, numbers and codes exactly, writing one-line JSON — in domains
that have nothing to do with customer support. No template, intent name or slot value of `support` occurs here; the
quickstart checks that on every run rather than promising it.

Values come from the `base` split of `values`. The same seed gives the same documents on every machine.

>>> next(documents(1, seed=0)) == next(documents(1, seed=0))
True
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from modelyard.quickstart import support, values, vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Document = list[dict[str, str]]
"""A conversation; a plain text is one message whose role is `text`."""

DOCUMENTS = 120_000
SEED = 0

_KINDS = tuple(values.MAKERS)

_RESERVED = frozenset(intent.name for intent in support.INTENTS)
"""What the test rows are about is never a label here; the contamination check looks for it all the same."""

_FIELDS = ("topic", "kind", "type", "class", "task", "about", "what", "form")


def _value(rng: random.Random, kind: str) -> str:
    if kind == "digit":
        return str(rng.randint(2, 99))
    if kind == "note":
        return rng.choice(vocabulary.NOTES)
    return values.MAKERS[kind](rng, "base")


def _talk(question: str, answer: str) -> Document:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _sentence(rng: random.Random) -> str:
    parts = [rng.choice(vocabulary.PEOPLE), rng.choice(vocabulary.VERBS), rng.choice(vocabulary.THINGS)]
    if rng.random() < 0.4:
        parts.append(rng.choice(vocabulary.WHEN))
    if rng.random() < 0.3:
        parts.append(rng.choice(vocabulary.LINKS))
    text = " ".join(parts)
    return text[0].upper() + text[1:] + "."


def _story(rng: random.Random) -> Document:
    return [{"role": "text", "content": " ".join(_sentence(rng) for _ in range(rng.randint(2, 5)))}]


def _record(rng: random.Random) -> Document:
    label, kinds, phrasings = rng.choice(vocabulary.RECORDS)
    fields = {name: _value(rng, kind) for name, kind in kinds.items()}
    said = rng.choice(phrasings).format(**fields)
    return _talk(
        rng.choice(vocabulary.ASK_RECORD).format(said), json.dumps({"topic": label, **fields}, ensure_ascii=False)
    )


def _repeat(rng: random.Random) -> Document:
    things = [_value(rng, rng.choice(_KINDS)) for _ in range(rng.randint(1, 4))]
    ask = rng.choice(("Repeat: {}", "Say {} again.", "Copy this line: {}", "Echo {}"))
    return _talk(ask.format(" ".join(things)), " ".join(things))


def _listing(rng: random.Random) -> Document:
    things = [_value(rng, rng.choice(_KINDS)) for _ in range(rng.randint(2, 4))]
    ask = rng.choice(("List {} as JSON.", "Make a JSON list of {}.", "JSON list: {}"))
    return _talk(ask.format(" and ".join(things)), json.dumps(things, ensure_ascii=False))


def _pick(rng: random.Random) -> Document:
    """Find the one code, number, address or name in a sentence about something else."""
    kind = rng.choice(("number", "code", "email", "place", "person", "date", "size"))
    value = _value(rng, kind)
    before, after = _sentence(rng), _sentence(rng)
    shape = rng.choice(
        ("{a} Note {v}. {b}", "{a} It says {v}. {b}", "{v}: {b}", "{a} {v}", "{b} See {v}.", "With {v}, {w}")
    )
    text = shape.format(a=before, b=after, v=value, w=before[0].lower() + before[1:])
    return _talk(f"Which {kind} is in this text? {text}", value)


def _recall(rng: random.Random) -> Document:
    people = list(dict.fromkeys(_value(rng, "person") for _ in range(rng.randint(2, 3))))
    kind, verb, question = rng.choice(
        (
            ("place", "lives in", "Where does {} live?"),
            ("word", "owns a", "What does {} own?"),
            ("number", "counted", "What did {} count?"),
            ("code", "drew", "What did {} draw?"),
            ("email", "reads", "What does {} read?"),
        )
    )
    facts = [(person, _value(rng, kind)) for person in people]
    asked = rng.choice(facts)
    told = " ".join(f"{person} {verb} {value}." for person, value in facts)
    return _talk(f"{told} {question.format(asked[0])}", asked[1])


def _fields(rng: random.Random) -> Document:
    """Copy values into JSON under keys that the question itself names: the general skill behind every record."""
    keys = rng.sample(("alpha", "tag", "mark", "ref", "key", "spot", "who", "what", "unit", "part"), rng.randint(1, 3))
    pairs = {key: _value(rng, rng.choice(_KINDS)) for key in keys}
    said = ", ".join(f"{key} is {value}" for key, value in pairs.items())
    return _talk(f"JSON with {said}", json.dumps(pairs, ensure_ascii=False))


def _about(rng: random.Random) -> Document:
    """Name who did what to what: reading a sentence for its meaning."""
    who, verb, what = rng.choice(vocabulary.PEOPLE), rng.choice(vocabulary.VERBS), rng.choice(vocabulary.THINGS)
    text = f"{who} {verb} {what} {rng.choice(vocabulary.WHEN)}."
    question, reply = rng.choice(((f"Who {verb} it?", who), ("What was it about?", what), ("What happened?", verb)))
    return _talk(f"{text[0].upper()}{text[1:]} {question}", reply)


def _words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(vocabulary.WORDS) for _ in range(rng.randint(least, most)))


def _schema(rng: random.Random) -> Document:
    """Fill named fields from a text of loose words: the fields are named in the question, the values stand in the text."""
    first, *rest = rng.sample(vocabulary.WORDS, 2 + rng.randint(1, 2))
    label = first if rng.random() < 0.3 else f"{first}_{rest[0]}"
    if label in _RESERVED:
        label = first
    keys = rest[1:]
    pairs = {key: _value(rng, rng.choice(_KINDS)) for key in keys}
    marked = rng.random() < 0.5
    parts = [_words(rng, 0, 4)]
    for key, value in pairs.items():
        parts += [f"{key} {value}" if marked else value, _words(rng, 0, 4)]
    text = " ".join(part for part in parts if part)
    text = text[0].upper() + text[1:] + rng.choice((".", ".", "?", "!", ""))
    field = rng.choice(_FIELDS)
    ask = rng.choice(("{f} {l} with {k}. {t}", "{l}: {k}? {t}", "JSON {f} {l}, {k}: {t}", "{t} {f} {l}, {k}"))
    question = ask.format(f=field, l=label, k=" and ".join(keys), t=text)
    field = field if "{f}" in ask else "topic"
    return _talk(question, json.dumps({field: label, **pairs}, ensure_ascii=False))


_MIX: tuple[tuple[Callable[[random.Random], Document], int], ...] = (
    (_record, 26),
    (_schema, 34),
    (_story, 6),
    (_repeat, 8),
    (_listing, 4),
    (_pick, 8),
    (_recall, 2),
    (_fields, 6),
    (_about, 6),
)


def documents(count: int = DOCUMENTS, *, seed: int = SEED) -> Iterator[Document]:
    """Yield `count` documents of the corpus, always the same for one seed."""
    rng = random.Random(f"corpus/{seed}")
    makers, weights = zip(*_MIX, strict=True)
    for _ in range(count):
        yield rng.choices(makers, weights)[0](rng)


def text_of(document: Document) -> str:
    """The document as plain text, for counting and for the contamination check."""
    return "\n".join(message["content"] for message in document)
