"""The words and phrasings that `corpus` puts together: data, and nothing else."""

from __future__ import annotations

__all__ = ["ASK_RECORD", "LINKS", "NOTES", "PEOPLE", "RECORDS", "THINGS", "VERBS", "WHEN", "WORDS"]

# Subjects, verbs and things for plain sentences. Everyday words that a support message may use as well occur here, in
# other company: a pretrained model that never saw the word "broken" would be no model of English.
PEOPLE = (
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
VERBS = (
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
THINGS = (
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
WHEN = (
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
LINKS = (
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
Record = tuple[str, dict[str, str], tuple[str, ...]]
RECORDS: tuple[Record, ...] = (
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
NOTES = ("C", "D", "E", "F", "G", "A", "B")
ASK_RECORD = ("Write it as JSON: {}", "{}", "{}", "As JSON please. {}", "Note this down. {}")

# Everyday words for texts that mean little: they teach copying into named fields, whatever stands around the values.
WORDS = tuple(
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
