"""Running an evaluation: a loaded model and examples in, a report out.

Decoding is greedy, in batches of prompts of similar length; the report keeps every example, in the order given. A
report is made only when every example has a finite score, so that half an evaluation can never look like a whole one.
This module knows no registry, no files and no references: the caller fills in `model`, `dataset` and `file`.

Example::

    model = modelyard.open().load("team/intents@v7")
    report = evaluate(model, examples, {"name": "json-fields"})
    report["metrics"]["accuracy"], report["interval"]["accuracy"]
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any, Protocol

from modelyard.digest import digest_bytes
from modelyard.errors import DataError, ModelError, RequestError
from modelyard.evaluation.examples import Example, check_examples, data_digest
from modelyard.evaluation.reports import FORMAT
from modelyard.evaluation.statistics import paired_bootstrap, wilson
from modelyard.evaluation.tasks import Score, TaskConfig, build_task, parse_task

__all__ = ["TextModel", "evaluate"]

Progress = Callable[[int, int], None]
"""Called with the number of examples done and the number of all."""

_PACKAGES = ("modelyard", "torch", "transformers", "tokenizers", "safetensors", "numpy")


class TextModel(Protocol):
    """What evaluation asks of a model; `weights.Model` is one."""

    def batch_generate(self, prompts: Sequence[Any], *, batch_size: int, **params: Any) -> list[str]:
        """One answer for each conversation, in order."""
        ...

    def render(self, messages: Any) -> list[int]:
        """The token ids that the model sees for a conversation, up to where its answer begins."""
        ...


def evaluate(
    model: TextModel,
    examples: Sequence[Example],
    task: TaskConfig | Mapping[str, Any] | str,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask the model every example and score its answers.

    Args:
        model: A loaded model.
        examples: At least one, with unique ids; `task.limit` keeps the first ones only.
        task: A configuration, its mapping, or the name of a family.
        progress: Called after each batch.

    Returns:
        The report: `format`, `data_digest`, `task`, `n`, `metrics`, `interval`, `duplicates` (examples that ask what an
        earlier one asked), `environment` and `examples` (id, expected, output, score, digest of the prompt's token ids).
        It holds no clock and no host, and `model`, `dataset` and `file` are the caller's to add.

    Raises:
        DataError: For unusable examples, or one that the model cannot take (its template, its context).
        RecipeError: For an unknown task or option.
        ModelError: With code `incomplete_evaluation`, if an answer or a score is missing.
    """
    config = parse_task(task)
    chosen = list(examples[: config.limit])
    check_examples(chosen)
    scorer = build_task(config, chosen)
    prompts = [_render(model, example) for example in chosen]
    outputs = _answers(model, chosen, prompts, config, progress)
    scores = [_score(scorer.score(example, output), example) for example, output in zip(chosen, outputs, strict=True)]
    values = [score.value for score in scores]
    metrics = {"accuracy": math.fsum(values) / len(values), **scorer.summarize(scores)}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise _incomplete(f"the metric `{name}` is {value}")
    return {
        "format": FORMAT,
        "data_digest": str(data_digest(chosen)),
        "task": config.model_dump(mode="json"),
        "n": len(chosen),
        "metrics": metrics,
        "interval": {"accuracy": list(_interval(values))},
        "duplicates": len(chosen) - len({json.dumps(example.messages, sort_keys=True) for example in chosen}),
        "environment": dict(_environment()),
        "examples": [
            {
                "id": example.id,
                "expected": example.expected,
                "output": output,
                "score": score.value,
                "prompt_digest": str(digest_bytes(json.dumps(prompt).encode())),
            }
            for example, output, score, prompt in zip(chosen, outputs, scores, prompts, strict=True)
        ],
    }


def _render(model: TextModel, example: Example) -> list[int]:
    try:
        return model.render(example.messages)
    except RequestError as error:
        raise DataError(f"example `{example.id}`: {error.message}", hint=error.hint) from error


def _answers(
    model: TextModel,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    config: TaskConfig,
    progress: Progress | None,
) -> list[str]:
    """Answers in the examples' order, decoded longest prompts first: too little memory shows at once, not at the end."""
    order = sorted(range(len(examples)), key=lambda index: (-len(prompts[index]), index))
    answers: dict[int, str] = {}
    for start in range(0, len(order), config.batch_size):
        batch = order[start : start + config.batch_size]
        try:
            made = model.batch_generate(
                [examples[index].messages for index in batch],
                batch_size=config.batch_size,
                max_new_tokens=config.max_new_tokens,
                temperature=0.0,
            )
        except RequestError as error:
            first = examples[batch[0]].id  # the longest prompt comes first
            raise DataError(f"example `{first}` or one of its batch: {error.message}", hint=error.hint) from error
        if len(made) != len(batch) or not all(isinstance(answer, str) for answer in made):
            raise _incomplete(f"the model gave {len(made)} answers to {len(batch)} prompts")
        answers.update(zip(batch, made, strict=True))
        if progress is not None:
            progress(len(answers), len(order))
    return [answers[index] for index in range(len(examples))]


def _score(score: Score, example: Example) -> Score:
    if not (math.isfinite(score.value) and 0 <= score.value <= 1):
        raise _incomplete(f"example `{example.id}` scored {score.value}")
    return score


def _interval(values: Sequence[float]) -> tuple[float, float]:
    if all(value in (0.0, 1.0) for value in values):
        return wilson(int(sum(values)), len(values))
    found = paired_bootstrap(values)
    return found.low, found.high


def _incomplete(cause: str) -> ModelError:
    return ModelError(f"the evaluation is incomplete: {cause}", hint="no report was made", code="incomplete_evaluation")


@cache
def _environment() -> Mapping[str, str]:
    """Versions of what computes an answer, and nothing about the machine's name or time."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a package that is not installed computed nothing
            continue
    return versions
