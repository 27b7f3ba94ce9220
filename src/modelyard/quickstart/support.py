r"""The quickstart's dataset: support messages to be answered with a small JSON object.

Each row is a conversation of two messages. The answer names one of eight intents and the values that the message
mentions, as JSON with a fixed key order, so that an exact comparison is fair::

    {"messages": [
        {"role": "user", "content": "Parcel KX-4821 never arrived, where is it?"},
        {"role": "assistant", "content": "{\"intent\": \"track_parcel\", \"parcel\": \"KX-4821\"}"}]}

Training and test rows share the intents and nothing else: the phrasings are two disjoint lists and the slot values
come from disjoint splits (`values`). The same seed gives the same rows on every machine.

>>> rows = generate("test", 2, seed=0)
>>> rows == generate("test", 2, seed=0)
True
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Literal

from modelyard.quickstart import values

SupportSplit = Literal["train", "test"]


@dataclass(frozen=True)
class Intent:
    """One thing a customer may want: its slots (name to kind of value) and its phrasings, per split."""

    name: str
    slots: dict[str, str]
    train: tuple[str, ...]
    test: tuple[str, ...]


INTENTS: tuple[Intent, ...] = (
    Intent(
        "refund_order",
        {"order": "number"},
        (
            "I want a refund for order {order}.",
            "Please refund me, order {order} was wrong.",
            "Can I get my money back for order {order}?",
            "Order {order} was charged twice, I need a refund.",
            "I was billed for order {order} and want my money back.",
            "Give me a refund, the number of the order is {order}.",
            "The charge for order {order} is wrong, return the money.",
            "How do I get a refund? It is about order {order}.",
            "My order {order} was no good, pay me back please.",
            "You charged me too much for {order}, refund it.",
            "Money back for {order}, thank you.",
            "I paid for order {order} and ask for a full refund.",
            "Refund {order}.",
            "A refund for order {order}, please.",
            "I need my money returned for order {order}.",
            "Order number {order} was a mistake, I want to be paid back.",
            "Is a refund possible? The order is {order}.",
            "You billed me for {order} by mistake, send the money back.",
            "I never got order {order}, so refund it.",
            "The price of {order} was wrong, please refund the difference.",
            "Cash back for my order {order} please.",
            "I returned order {order} and wait for the refund.",
            "Repay me for {order}.",
            "It is about the payment of {order}, I want it refunded.",
        ),
        (
            "Hello, could you refund order {order} to my card?",
            "I would like my money back, it was order {order}.",
            "A refund is due on order number {order}.",
            "For order {order} I was charged wrong, please pay the money back.",
            "Refund needed: {order}.",
        ),
    ),
    Intent(
        "track_parcel",
        {"parcel": "code"},
        (
            "Where is my parcel {parcel}?",
            "Parcel {parcel} has not arrived yet.",
            "Can you track {parcel} for me?",
            "I am waiting for parcel {parcel}, when does it arrive?",
            "The tracking page shows nothing for {parcel}.",
            "When will the delivery {parcel} be here?",
            "My delivery {parcel} is late, where is it?",
            "Please track the parcel with code {parcel}.",
            "What is the status of parcel {parcel}?",
            "It says {parcel} was delivered but I have no parcel.",
            "Tracking {parcel} please.",
            "Has parcel {parcel} left the depot?",
            "Parcel {parcel}?",
            "Any news of parcel {parcel}?",
            "I cannot find my parcel {parcel}.",
            "The courier lost {parcel}, I think.",
            "Show me where {parcel} is.",
            "How long until {parcel} gets here?",
            "Delivery {parcel} should have come yesterday.",
            "Follow up on parcel {parcel} please.",
            "My parcel with the code {parcel} is missing.",
            "Is {parcel} on its way?",
            "I would like to know when parcel {parcel} arrives.",
            "Still no sign of {parcel}.",
        ),
        (
            "I still have not seen parcel {parcel}, where can it be?",
            "Could you tell me the status of delivery {parcel}?",
            "Track my parcel, its code is {parcel}.",
            "The parcel {parcel} is late and has not arrived.",
            "When does {parcel} arrive?",
        ),
    ),
    Intent(
        "change_address",
        {"city": "place"},
        (
            "I moved to {city}, please change my address.",
            "My new address is in {city}.",
            "Change the address on my account to {city}.",
            "Can you update my home address? I live in {city} now.",
            "We are moving to {city} next month, note the new address.",
            "Send everything to {city} from now on, that is my new home.",
            "I no longer live there, my address is {city}.",
            "Please set my address to {city}.",
            "The address you have is old, I moved to {city}.",
            "New home, new address: {city}.",
            "My family moved, use {city} as the address.",
            "Address change to {city}, please.",
            "Our address changed to {city}.",
            "I now live in {city}.",
            "Could you put {city} as my address?",
            "We live in {city} these days.",
            "Where I live has changed, it is {city} now.",
            "Deliver to my new place in {city}.",
            "Old address out, {city} in.",
            "I have a new home in {city}.",
            "My address is wrong, I live in {city}.",
            "Moved to {city}!",
            "Write down that I live in {city}.",
            "Use my {city} address instead of the old one.",
        ),
        (
            "Hello, I have moved and my address is now {city}.",
            "Could you change where I live to {city}?",
            "Please note that our new home is in {city}.",
            "The old address is wrong, it should be {city}.",
            "Moving to {city}, update the address.",
        ),
    ),
    Intent(
        "cancel_plan",
        {"plan": "word"},
        (
            "Cancel my {plan} plan.",
            "I want to stop the {plan} plan.",
            "Please end my subscription to {plan}.",
            "How can I cancel the {plan} subscription?",
            "I do not need the {plan} plan any more, cancel it.",
            "Stop {plan} at the end of the month.",
            "Do not renew my {plan} plan.",
            "My subscription {plan} should end today.",
            "I would like to cancel {plan} right away.",
            "Close the {plan} subscription for me.",
            "We are leaving, cancel our {plan} plan.",
            "Can the {plan} plan be cancelled?",
            "Cancel {plan}.",
            "Please cancel the {plan} plan today.",
            "I want out of {plan}.",
            "I do not want {plan} any longer.",
            "No more {plan} for me.",
            "End my {plan} plan now.",
            "Take me off the {plan} subscription.",
            "The {plan} plan is too dear, cancel it.",
            "Would you cancel {plan} for us?",
            "I wish to quit the {plan} plan.",
            "We no longer need {plan}.",
            "My {plan} plan must not renew.",
        ),
        (
            "Could you please cancel the plan called {plan}?",
            "I no longer want my {plan} subscription.",
            "End the {plan} plan and do not renew it.",
            "The {plan} subscription must stop, cancel it today.",
            "Cancel {plan} please.",
        ),
    ),
    Intent(
        "update_email",
        {"email": "email"},
        (
            "My new email is {email}.",
            "Please change my email to {email}.",
            "Use {email} to write to me.",
            "I have a new mail address, it is {email}.",
            "Update the email on my account: {email}.",
            "Send my mail to {email} from now on.",
            "The email you have is old, take {email}.",
            "Can you set my login email to {email}?",
            "Write to {email} instead of the old one.",
            "I lost my old inbox, use {email}.",
            "From today my email is {email}, thanks.",
            "Email change: {email}.",
            "{email} is my email now.",
            "Email me at {email}.",
            "My mail changed to {email}.",
            "I would like to use {email} as my email.",
            "Note my new email: {email}.",
            "The right email is {email}.",
            "Could you change the email to {email}?",
            "Log me in with {email} from now on.",
            "My inbox is {email} now.",
            "Replace my email by {email}.",
            "All mail should go to {email}.",
            "I use another email now, {email}.",
        ),
        (
            "Hello, could you update my mail to {email}?",
            "I changed my email, it is now {email}.",
            "Please write to my new inbox {email}.",
            "The login email should be {email}.",
            "New email, {email}.",
        ),
    ),
    Intent(
        "book_call",
        {"name": "person", "day": "date"},
        (
            "Please call me on {day}, my name is {name}.",
            "This is {name}, can someone phone me on {day}?",
            "I would like a call on {day}. Ask for {name}.",
            "Book a call with {name} for {day}.",
            "{name} here, ring me back on {day}.",
            "Can I speak to someone on {day}? I am {name}.",
            "Give {name} a call on {day} please.",
            "My name is {name} and I am free to talk on {day}.",
            "A phone call on {day} would suit me, {name}.",
            "Could an agent ring {name} on {day}?",
            "I want to talk to a person on {day}, I am called {name}.",
            "Call back on {day}, name {name}.",
            "Call {name} on {day}.",
            "{name} wants a call on {day}.",
            "Can we talk on {day}? My name is {name}.",
            "Ring {name} back on {day}.",
            "I need to speak with you on {day}, this is {name}.",
            "Put {name} down for a phone call on {day}.",
            "On {day}, please phone {name}.",
            "It is {name}. Call me on {day}.",
            "Somebody should call {name} on {day}.",
            "Schedule a call for {day}, the name is {name}.",
            "{name} would like to talk on {day}.",
            "A call on {day} for {name} please.",
        ),
        (
            "Hello, {name} speaking, I want a phone call on {day}.",
            "Could you ring me on {day}? The name is {name}.",
            "Please book {day} for a call with {name}.",
            "I am {name}, talk to me on {day}.",
            "Phone {name} on {day}.",
        ),
    ),
    Intent(
        "report_fault",
        {"device": "word"},
        (
            "My {device} is broken.",
            "The {device} does not work any more.",
            "The {device} stopped working today.",
            "There is a fault in my {device}, it will not start.",
            "My {device} makes a strange noise and fails.",
            "The screen of the {device} is broken.",
            "Help, the {device} will not turn on.",
            "I have a problem with the {device}, it is faulty.",
            "The {device} keeps failing, please repair it.",
            "Since yesterday my {device} is dead.",
            "Can you repair a broken {device}?",
            "The {device} I bought is faulty.",
            "Broken {device}.",
            "The {device} broke.",
            "Something is wrong with the {device}.",
            "My {device} fails all the time.",
            "The {device} will not switch on.",
            "I got a faulty {device}.",
            "There is something wrong in my new {device}.",
            "My {device} has stopped, can it be repaired?",
            "Repair my {device} please.",
            "The {device} turns off by itself.",
            "It will not work, my {device}.",
            "Why does the {device} fail?",
        ),
        (
            "Hello, my {device} will not work.",
            "I think the {device} has a fault, can you repair it?",
            "The new {device} is already broken.",
            "Something is wrong, the {device} fails to turn on.",
            "A broken {device}, please help.",
        ),
    ),
    Intent(
        "swap_size",
        {"item": "word", "size": "size"},
        (
            "The {item} is too small, I need size {size}.",
            "Can I swap the {item} for size {size}?",
            "Please exchange my {item}, the right size is {size}.",
            "I ordered the wrong size of {item}, send {size} instead.",
            "The {item} does not fit, change it to size {size}.",
            "Swap: {item} in size {size}.",
            "My {item} is too big, do you have it in {size}?",
            "I want the {item} in size {size}, not this one.",
            "Exchange the {item} for a {size}.",
            "The {item} is tight, a {size} would fit.",
            "Could I have a {size} in place of this {item}?",
            "Size {size} please, the {item} I have is too large.",
            "{item} in {size} instead.",
            "Please swap the {item}, I wear {size}.",
            "I need another size of {item}: {size}.",
            "The {item} is far too large, send {size}.",
            "Exchange: {item}, size {size}.",
            "Give me the {item} in {size}.",
            "This {item} does not fit, I need {size}.",
            "My {item} should have been size {size}.",
            "Change the size of my {item} to {size}.",
            "The size of the {item} is wrong, {size} is right.",
            "I would rather have the {item} in {size}.",
            "Too small, the {item}: {size} please.",
        ),
        (
            "Hello, the {item} does not fit me, I want a size {size}.",
            "Could you exchange the {item} and send size {size}?",
            "This {item} is too large, swap it to {size}.",
            "I need my {item} in size {size}.",
            "Wrong size: the {item} should be {size}.",
        ),
    ),
)


# What people put around what they want; training rows only, so that a greeting decides nothing.
_BEFORE = ("Hi. ", "Hello there. ", "Good morning. ", "Dear team, ", "Hey, ", "Excuse me. ")
_AFTER = (" Thanks.", " Thank you very much.", " Please help me.", " Bye.", " That would be great.", " It is urgent.")


def answer(intent: str, slots: dict[str, str]) -> str:
    """The exact text expected for `intent` with `slots`, keys in the intent's order."""
    return json.dumps({"intent": intent, **slots}, ensure_ascii=False)


def generate(split: SupportSplit, rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make `rows` conversations of one split; every message is distinct and intents are evenly spread."""
    rng = random.Random(f"support/{split}/{seed}")
    made: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(made) < rows:
        intent = INTENTS[len(made) % len(INTENTS)]
        slots = {name: values.MAKERS[kind](rng, split) for name, kind in intent.slots.items()}
        message = rng.choice(intent.train if split == "train" else intent.test).format(**slots)
        if split == "train":
            before = rng.choice(_BEFORE) if rng.random() < 0.25 else ""
            after = rng.choice(_AFTER) if rng.random() < 0.25 else ""
            message = before + message + after
        if message in seen:
            continue
        seen.add(message)
        made.append(
            {
                "messages": [
                    {"role": "user", "content": message},
                    {"role": "assistant", "content": answer(intent.name, slots)},
                ]
            }
        )
    rng.shuffle(made)
    return made


def slot_values(rows: list[dict[str, Any]]) -> set[str]:
    """Every slot value that the answers in `rows` contain."""
    answers = (json.loads(row["messages"][-1]["content"]) for row in rows)
    return {value for slots in answers for key, value in slots.items() if key != "intent"}
