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

from modelyard.quickstart import support, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Document = list[dict[str, str]]
"""A conversation; a plain text is one message whose role is `text`."""

DOCUMENTS = 120_000
SEED = 0

# Subjects, verbs and things for plain sentences. Everyday words that a support message may use as well occur here, in
# other company: a pretrained model that never saw the word "broken" would be no model of English.
_PEOPLE = (
    "the baker",
    "a teacher",
    "my sister",
    "the old sailor",
    "our neighbour",
    "the farmer",
    "a nurse",
    "the painter",
    "his uncle",
    "the young clerk",
    "a customer",
    "the driver",
    "her friend",
    "the postman",
    "an agent",
    "the doctor",
)
_VERBS = (
    "found",
    "lost",
    "sold",
    "bought",
    "repaired",
    "painted",
    "carried",
    "wanted",
    "returned",
    "sent",
    "moved",
    "cancelled",
    "ordered",
    "changed",
    "opened",
    "closed",
    "broke",
    "tracked",
    "charged",
    "swapped",
    "exchanged",
    "called",
    "booked",
    "updated",
    "delivered",
    "paid for",
    "asked for",
    "stopped",
    "renewed",
    "fitted",
    "phoned",
)
_THINGS = (
    "the garden gate",
    "a small boat",
    "the red lamp",
    "two tickets",
    "an old clock",
    "the long letter",
    "a parcel",
    "the wooden chair",
    "a plan of the town",
    "the bill",
    "an account book",
    "the shoes",
    "a warm coat",
    "the address",
    "the radio",
    "some money",
    "a size of paper",
    "the email",
    "a refund",
    "the order of songs",
    "a delivery of coal",
    "the phone",
    "a subscription to the paper",
    "the screen",
    "a strange noise",
    "a card",
    "the wrong key",
    "a broken cup",
    "the faulty bell",
    "a call from home",
    "the charge sheet",
    "the inbox",
    "the login book",
)
_WHEN = (
    "yesterday",
    "today",
    "last week",
    "in the morning",
    "at noon",
    "at night",
    "in spring",
    "before dawn",
    "for years",
    "next month",
    "again",
    "too late",
    "right away",
)
_LINKS = (
    "because it was too small",
    "but it did not work",
    "and it was late",
    "although it was new",
    "so that it would fit",
    "because the old one was dead",
    "and then went home",
    "but nobody came",
    "while the rain fell",
    "since it was free",
)

# Other domains for one-line JSON: a label, its keys, and ways to say it.
_Record = tuple[str, dict[str, str], tuple[str, ...]]
_RECORDS: tuple[_Record, ...] = (
    (
        "planet",
        {"name": "place", "moons": "digit"},
        (
            "The planet {name} has {moons} moons.",
            "{name} is a world with {moons} moons.",
            "There are {moons} moons above {name}.",
            "Astronomers count {moons} moons at {name}.",
        ),
    ),
    (
        "recipe",
        {"dish": "word", "minutes": "digit"},
        (
            "Cook the {dish} for {minutes} minutes.",
            "{dish} takes {minutes} minutes on the stove.",
            "Leave the {dish} in the oven, {minutes} minutes are enough.",
        ),
    ),
    (
        "match",
        {"home": "place", "away": "place"},
        (
            "{home} played against {away} on grass.",
            "The game between {home} and {away} was even.",
            "{away} travelled to {home} for the cup.",
        ),
    ),
    (
        "book",
        {"title": "word", "author": "person"},
        (
            "{author} wrote a novel called {title}.",
            "The novel {title} is by {author}.",
            "Have you read {title} by {author}?",
            "{title} made {author} famous.",
        ),
    ),
    (
        "train",
        {"line": "code", "stop": "place"},
        (
            "Train {line} halts at {stop}.",
            "At {stop} you may board {line}.",
            "The engine {line} runs through {stop}.",
            "{line} was seen near {stop}.",
        ),
    ),
    (
        "animal",
        {"kind": "word", "legs": "digit"},
        (
            "A {kind} walks on {legs} legs.",
            "Count the legs of a {kind}: {legs}.",
            "The {kind} is an animal with {legs} legs.",
        ),
    ),
    (
        "letter",
        {"from": "person", "to": "person"},
        (
            "{from} wrote a long letter to {to}.",
            "{to} was glad to read what {from} wrote.",
            "Dear {to}, I miss you. {from}",
        ),
    ),
    (
        "contact",
        {"name": "person", "mail": "email"},
        ("{name} reads {mail} every evening.", "The club lists {mail} for {name}.", "Ask {name}, that is {mail}."),
    ),
    (
        "weight",
        {"thing": "word", "grams": "number"},
        (
            "One {thing} weighs {grams} grams.",
            "{grams} grams is a lot for a {thing}.",
            "The scale shows {grams} for the {thing}.",
        ),
    ),
    (
        "star",
        {"id": "code"},
        (
            "The star {id} is blue.",
            "Look north to see {id}.",
            "Nobody named {id} until now.",
            "{id} shines over the sea.",
        ),
    ),
    (
        "year",
        {"number": "number"},
        ("The castle was built in {number}.", "It happened in the year {number}.", "{number} was a cold year."),
    ),
    (
        "river",
        {"name": "place"},
        (
            "The river {name} is wide.",
            "We swam in the {name}.",
            "A bridge crosses the {name}.",
            "Fish live in the {name}.",
        ),
    ),
    (
        "song",
        {"title": "word", "key": "note"},
        ("Sing {title} in {key}.", "The tune {title} is written in {key}.", "In {key}, {title} sounds sad."),
    ),
    (
        "concert",
        {"where": "place", "when": "date"},
        ("The choir sings in {where} on {when}.", "On {when} there is music in {where}.", "{where} waits for {when}."),
    ),
    (
        "cloth",
        {"pattern": "word", "cut": "size"},
        ("The {pattern} pattern was cut at {cut}.", "Cut {cut} for a {pattern}.", "A {pattern} of {cut} hangs there."),
    ),
    (
        "plant",
        {"name": "word"},
        (
            "Water the {name} at night.",
            "A {name} needs sun.",
            "The leaves of the {name} are green.",
            "In spring the {name} grows.",
        ),
    ),
)
_NOTES = ("C", "D", "E", "F", "G", "A", "B")
_ASK_RECORD = ("Write it as JSON: {}", "{}", "{}", "As JSON please. {}", "Note this down. {}")
_KINDS = tuple(values.MAKERS)

# Everyday words for texts that mean little: they teach copying into named fields, whatever stands around the values.
_WORDS = tuple(
    """about account address after again agent all already also and answer any arrive ask at away back bad before begin
    better big bill blue book break bring broken build business buy call can cancel car card care carry case change charge
    check child city clean clear close cold come company cost could country customer cut dark day dead deliver delivery device
    different do does door down early easy end enough evening every exchange fail far fast fault feel few find first fit fix
    follow food for free friend from full further garden get give go good great green ground hand happy hard have hear
    heavy hello help here high hold home hope hot hour house how idea important inbox instead issue item job just keep kind
    know large last late learn leave left letter light like line list little live long look lose lost low mail make many may
    mean meet message middle money month more morning most move much must my name near need never new next night no noise
    not note nothing now number off office old on one open or order other our out over own paid paper parcel part pay person
    phone place plan play please point price problem put question quick quiet rain read ready reason receive red refund
    remember renew repair reply return right ring road room round run safe same save say screen second see sell send service
    set shop short should show side simple since size small so some soon speak stand start status stay still stop strange
    street strong subscription such sure swap table take talk tell thank that the there thing think this tight time to today
    together too town track true try turn type under until update use very visit wait walk want warm wash water way we wear
    week well what when where which while white why will window wish with without wonder work world would write wrong year
    yes yesterday yet you young your""".split()  # noqa: SIM905  # three hundred quoted words would fill a screen
)
_RESERVED = frozenset(intent.name for intent in support.INTENTS)
"""What the test rows are about is never a label here; the contamination check looks for it all the same."""

_FIELDS = ("topic", "kind", "type", "class", "task", "about", "what", "form")


def _value(rng: random.Random, kind: str) -> str:
    if kind == "digit":
        return str(rng.randint(2, 99))
    if kind == "note":
        return rng.choice(_NOTES)
    return values.MAKERS[kind](rng, "base")


def _talk(question: str, answer: str) -> Document:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _sentence(rng: random.Random) -> str:
    parts = [rng.choice(_PEOPLE), rng.choice(_VERBS), rng.choice(_THINGS)]
    if rng.random() < 0.4:
        parts.append(rng.choice(_WHEN))
    if rng.random() < 0.3:
        parts.append(rng.choice(_LINKS))
    text = " ".join(parts)
    return text[0].upper() + text[1:] + "."


def _story(rng: random.Random) -> Document:
    return [{"role": "text", "content": " ".join(_sentence(rng) for _ in range(rng.randint(2, 5)))}]


def _record(rng: random.Random) -> Document:
    label, kinds, phrasings = rng.choice(_RECORDS)
    fields = {name: _value(rng, kind) for name, kind in kinds.items()}
    said = rng.choice(phrasings).format(**fields)
    return _talk(rng.choice(_ASK_RECORD).format(said), json.dumps({"topic": label, **fields}, ensure_ascii=False))


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
    who, verb, what = rng.choice(_PEOPLE), rng.choice(_VERBS), rng.choice(_THINGS)
    text = f"{who} {verb} {what} {rng.choice(_WHEN)}."
    question, reply = rng.choice(((f"Who {verb} it?", who), ("What was it about?", what), ("What happened?", verb)))
    return _talk(f"{text[0].upper()}{text[1:]} {question}", reply)


def _words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(least, most)))


def _schema(rng: random.Random) -> Document:
    """Fill named fields from a text of loose words: the fields are named in the question, the values stand in the text."""
    first, *rest = rng.sample(_WORDS, 2 + rng.randint(1, 2))
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
