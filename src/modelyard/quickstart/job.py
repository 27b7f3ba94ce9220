"""The main job as one function: the shipped recipe, then one question to the served result.

It runs `recipe.yaml` as `yard run` would, starts the real server on a free loopback port, and asks through the official
`openai` client with streaming on. It renders nothing.
"""

from __future__ import annotations

import random
import string
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from modelyard.errors import InternalError
from modelyard.quickstart import support, values
from modelyard.quickstart.resources import PackageResources
from modelyard.recipes import Recipe, RunResult, StepFinished, StepStarted, parse_recipe, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.recipes import Progress
    from modelyard.registry import Yard

__all__ = ["Answer", "Summary", "ask", "held_out_phrases", "load_recipe", "run_quickstart"]

MODEL = "quickstart/support@production"


@dataclass(frozen=True)
class Answer:
    """One answer of the server.

    Attributes:
        question: What was asked: a held-out phrasing with a value that no corpus contains.
        text: What came back, put together from the stream.
        pieces: How many pieces the stream had.
        version: The id of the version that answered, from the response's header.
    """

    question: str
    text: str
    pieces: int
    version: str


@dataclass(frozen=True)
class Summary:
    """What the quickstart ended with."""

    result: RunResult
    answer: Answer
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The object that `yard quickstart --json` prints."""
        comparison = self.result.comparison or {}
        reports = self.result.reports
        return {
            "base_accuracy": reports["base"]["accuracy"],
            "accuracy": reports["result"]["accuracy"],
            "n": reports["result"]["n"],
            "p_value": comparison.get("p_value"),
            "contamination": self.result.contamination,
            "gate": self.result.verdict,
            "versions": {word: version["id"] for word, version in self.result.versions.items()},
            "question": self.answer.question,
            "answer": self.answer.text,
            "served_version": self.answer.version,
            "did_nothing": self.result.did_nothing,
            "steps": {step.step: round(step.seconds, 3) for step in self.result.steps},
            "seconds": round(self.seconds, 3),
        }


def load_recipe() -> Recipe:
    """The recipe that ships with the package."""
    text = (resources.files("modelyard.quickstart") / "recipe.yaml").read_text("utf-8")
    return parse_recipe(text, label="the quickstart's recipe")


def held_out_values(rows: int = 600) -> list[str]:
    """The test rows' slot values: they occur in no other text."""
    return sorted(support.slot_values(support.generate("test", rows)))


def held_out_phrases(rows: int = 600) -> list[str]:
    """What must not occur in the base's pretraining text: intents, the test rows' values and phrasings."""
    intents = [intent.name for intent in support.INTENTS]
    literals = {
        literal.strip()
        for intent in support.INTENTS
        for template in intent.test
        for literal, *_ in string.Formatter().parse(template)
    }
    # Two words between slots ("please", "is now") are everyday English and no phrasing.
    phrasings = sorted(literal for literal in literals if len(literal.split()) >= 3)
    return intents + held_out_values(rows) + phrasings


def run_quickstart(
    yard: Yard,
    *,
    runs: Path,
    progress: Progress,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _piece: None,
) -> Summary:
    """Run the recipe, serve its result, ask one question.

    Args:
        yard: Where everything is committed.
        runs: The yard's folder for runs: checkpoints, generated files.
        progress: Told what happens.
        threads: Compute threads; None leaves the choice to each step.
        say: Given each piece of the answer as it streams.

    Raises:
        YardError: Whatever stopped a step; what was finished is kept.
    """
    started = time.monotonic()
    result = run(
        load_recipe(),
        yard,
        workspace=runs,
        runs=runs,
        progress=progress,
        resources=PackageResources(runs / "data"),
        threads=threads,
        phrases={"base": held_out_phrases(), "train": held_out_values()},
    )
    count = len(result.steps) + 1
    progress(StepStarted("serve", count, count, "to ask one question"))
    begun = time.monotonic()
    answer = ask(yard, question(), say=say, threads=threads)
    progress(StepFinished("serve", False, time.monotonic() - begun, f"answered by {answer.version[:12]}"))
    if answer.version != result.versions["merged"]["id"]:
        raise InternalError(f"the server answered with {answer.version}, not with the version that was promoted")
    return Summary(result, answer, time.monotonic() - started)


def question() -> str:
    """A held-out phrasing with a number of the test split that the seeded rows do not use."""
    used = support.slot_values(support.generate("test", 600))
    rng = random.Random("question")
    order = values.number(rng, "test")
    while order in used:
        order = values.number(rng, "test")
    return support.INTENTS[0].test[0].format(order=order)


def ask(yard: Yard, text: str, *, say: Callable[[str], None], threads: int | None = None) -> Answer:
    """Serve `MODEL` on a free loopback port and stream one answer through the `openai` client."""
    from openai import OpenAI

    from modelyard.serving import Server, WorkerOptions

    with (
        Server(yard, [MODEL], port=0, worker=WorkerOptions(threads=threads)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="not-needed-on-loopback", max_retries=0) as client,
    ):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, stream=True
        )
        pieces = []
        for chunk in raw.parse():
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                pieces.append(piece)
                say(piece)
        return Answer(text, "".join(pieces), len(pieces), raw.headers["x-modelyard-version"])
