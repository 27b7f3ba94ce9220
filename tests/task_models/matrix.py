"""Every task really run: a tiny model of it is loaded, predicts, is saved, loaded again and must say the same.

`run_row(task, folder)` runs one task; `render(rows)` makes docs/reference/tasks.md of all of them. `scripts/tasks_page.py`
writes the page, and tests/weights/test_tasks_page.py runs each row again and finds its lines in it.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from modelyard.errors import YardError
from modelyard.weights.load import load
from modelyard.weights.predict.batching import PREDICTORS, PredictOptions, find_predictor, predict
from modelyard.weights.predict.results import to_plain
from modelyard.weights.tasks import TASKS
from task_models import audio, multimodal, text, timeseries, vision

__all__ = ["PAGE", "STEPS", "Row", "lines", "render", "run_row"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "tasks.md"
STEPS = ("load", "predict", "save", "reload")
MODULES = (text, timeseries, vision, audio, multimodal)


@dataclass(frozen=True)
class Row:
    """What came of one task.

    Attributes:
        task: Its name.
        tried: The class that was loaded, or an empty text.
        steps: For each of `STEPS` `yes`, or why not; empty where an earlier step failed.
        given: The form of the input.
        result: The type of the result.
        options: Names of the task's own options.
    """

    task: str
    tried: str
    steps: tuple[str, ...]
    given: str = ""
    result: str = ""
    options: tuple[str, ...] = ()


def run_row(task: str, folder: Path) -> Row:
    """Load, predict, save and load again a tiny model of `task` in `folder`; only our own errors become reasons."""
    module = next((each for each in MODULES if task in each.MODELS), None)
    if module is None:
        reason = next(
            (each.REASONS[task] for each in MODULES if task in each.REASONS), "no tiny model of it is made here"
        )
        return Row(task, "", (reason, "", "", ""))
    made, sample = module.MODELS[task](folder / "made"), module.SAMPLES[task]
    done: list[str] = []
    tried = result = ""
    seen: list[type[Any]] = []
    try:
        model = load(made, task=task)
        tried = type(model.model).__name__
        assert model.task == task
        assert tried in TASKS[task].architectures()
        done.append("yes")
        with recorded(seen):
            first = predict(model, sample)
        result = describe_result(first)
        done.append("yes")
        saved = model.save(folder / "saved")
        assert list(saved.glob("*.safetensors"))
        done.append("yes")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = load(saved, task=task)
        assert type(again.model).__name__ == tried
        assert same(to_plain(first), to_plain(predict(again, sample))), (
            f"{task}: the reloaded model says something else"
        )
        done.append("yes")
    except YardError as error:
        said = error.message.replace(str(folder / "made"), "the model").replace(
            str(folder / "saved"), "the saved model"
        )
        done.append(" ".join(said.replace("|", "/").split()))
    done += [""] * (len(STEPS) - len(done))
    options = tuple(field.name for kind in seen for field in dataclasses.fields(kind))
    if task == "text-generation":
        options = ("those of `Model.generate`",)
    return Row(task, tried, tuple(done), describe(sample), result, options)


def recorded(seen: list[type[Any]]) -> Any:
    """Write down the options dataclass that a predictor reads."""
    take = PredictOptions.take

    def record(self: PredictOptions, kind: type[Any]) -> Any:
        if kind not in seen:
            seen.append(kind)
        return take(self, kind)

    return mock.patch.object(PredictOptions, "take", record)


def same(left: Any, right: Any) -> bool:
    """Whether two results in plain form agree, numbers within 1e-4 of one another."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict) and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return bool(np.isclose(left, right, rtol=1e-4, atol=1e-5, equal_nan=True))
    return bool(left == right)


def describe(sample: Any) -> str:
    """The form of an input in a few words."""
    if isinstance(sample, str):
        return "text"
    if isinstance(sample, bytes):
        return "bytes of a file"
    if isinstance(sample, np.ndarray):
        return f"array {sample.shape}".replace(",)", ")")
    if isinstance(sample, dict):
        return "{" + ", ".join(f'"{name}": {describe(value)}' for name, value in sample.items()) + "}"
    if isinstance(sample, list | tuple):
        return f"[{describe(sample[0])}, ...]" if isinstance(sample, list) else f"({', '.join(map(describe, sample))})"
    return type(sample).__name__


def describe_result(result: Any) -> str:
    """The type of a result; of a list that of its entries."""
    if isinstance(result, list):
        return f"list[{type(result[0]).__name__}]" if result else "list"
    return type(result).__name__


def lines(row: Row) -> tuple[str, str]:
    """The two lines of the page that a row is: what works, and what goes in and comes out."""
    task = TASKS[row.task]
    names = f"`{row.task}`" + "".join(f", `{alias}`" for alias in task.aliases)
    auto = f"`{task.auto}`" if task.auto else "none"
    tried = f"`{row.tried}`" if row.tried else ""
    works = f"| {names} | {auto} | {len(task.model_types())} | {tried} | {' | '.join(row.steps)} |"
    said = ""
    if row.task in PREDICTORS:
        said = ((find_predictor(row.task).__doc__ or "").strip().splitlines() or [""])[0].rstrip()
    options = ", ".join(name if "`" in name else f"`{name}`" for name in row.options)
    result = f"`{row.result}`" if row.result else ""
    given = f"`{row.given}`" if row.given else ""
    return works, f"| `{row.task}` | {given} | {result} | {said.replace('|', '/')} | {options} |"


HEAD = """# Tasks

Every task that transformers has a table of classes for, and what really came of it here: `python scripts/tasks_page.py`
loads a tiny model of each with `load(folder, task=...)`, predicts, saves it, loads it again and compares the two answers; a test
runs every row again and compares it with this page, and the tasks with transformers' own tables. `yes` or the reason why not.

`types` counts the model types that transformers 5.23 has a class of this task for. One was tried, with random weights.

| task | class | types | tried with | load | predict | save | reload |
|---|---|---|---|---|---|---|---|
"""

MIDDLE = """
## Inputs and results

What `predict` takes and gives, by the example that was run. Every task takes `batch_size` and `truncation` too. Results are the
dataclasses of `modelyard.weights.predict.results` and its neighbours. Zero-shot classification of texts is `text-classification` with
`candidate_labels`; summaries and translations are `text2text-generation`.

| task | an input | a result | what it is | options |
|---|---|---|---|---|
"""


def render(rows: list[Row]) -> str:
    """The page."""
    both = [lines(row) for row in rows]
    return HEAD + "\n".join(first for first, _ in both) + "\n" + MIDDLE + "\n".join(second for _, second in both) + "\n"
