"""`yard predict`: what a model of any task says of inputs, as a table or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.loading import Loading, with_loading
from modelyard.cli.options import Home, key_values, with_json, with_yard
from modelyard.errors import DataError, NotFoundError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelyard.weights.model import Model

__all__ = ["predict"]

_SHOWN = 48
"""Characters of an input that the table shows."""

_NUMBERS = 8
"""Numbers of a list that the table shows; of longer ones it says how many there are."""


@click.command()
@click.argument("source")
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option(
    "--file", "file", metavar="FILE|-", help="Further inputs: a .jsonl file of JSON values, else lines of text."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Inputs of one pass.")
@click.option(
    "--truncation",
    type=click.Choice(["error", "end", "start", "windows"]),
    default="error",
    show_default=True,
    help="What happens to an input that is too long.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the task; VALUE may be JSON.")
@click.option("--jsonl", is_flag=True, help="Print one JSON object a line, batch by batch.")
@with_loading
@with_yard
@with_json
def predict(
    source: str,
    inputs: tuple[str, ...],
    file: str | None,
    batch_size: int,
    truncation: str,
    settings: tuple[str, ...],
    jsonl: bool,
    loading: Loading,
    home: Home,
    as_json: bool,
) -> None:
    """Say what a model of any task says of each INPUT: labels, entities, answers, objects, words, numbers.

    An INPUT is a text, the path of a picture, sound or video, or JSON where the task takes several things. Tasks, their
    inputs and options: docs/reference/tasks.md.

    \b
    Examples:
      yard predict team/intents@production "My card has not arrived"
      yard predict ./ner "Anna lives in Berlin" --set aggregation=simple
      yard predict ./qa '{"question": "Where does Anna live?", "context": "Anna lives in Berlin."}'
      yard predict ./vit cat.png dog.png --set top_k=3 --json
      yard predict ./classifier --file rows.jsonl --jsonl > labels.jsonl
    """
    rows = [*map(_read_input, inputs), *(_read_file(file) if file else ())]
    if not rows:
        raise RequestError("there is no input", hint="give texts, paths or JSON, or `--file FILE`", field="inputs")
    options = {name: _read_value(value) for name, value in key_values(settings, "--set").items()}
    options |= {"truncation": truncation, **loading.per_call}
    model = loading.load(home, source)
    results: list[Any] = []
    size = batch_size if jsonl else len(rows)
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        try:
            found = _predict(model, part, batch_size, options)
        except RequestError as error:
            if not at:
                raise
            # Rows are counted in their part: say where that begins.
            message = f"in the inputs from number {at} on: {error.message}"
            raise RequestError(message, hint=error.hint, **error.details) from error
        if jsonl:
            for row, result in zip(part, found, strict=True):
                click.echo(json.dumps(_entry(row, result), ensure_ascii=False))
        results += found
    if as_json:
        version = str(model.version.id) if model.version is not None else None
        entries = [_entry(row, result) for row, result in zip(rows, results, strict=True)]
        output.json_object({"model": source, "version": version, "task": model.task, "results": entries})
    elif not jsonl:
        _print_table(rows, results)


def _predict(model: Model, rows: list[Any], batch_size: int, options: Mapping[str, Any]) -> list[Any]:
    """The results, with what the library warns of as notes."""
    with output.warnings_as_notes():
        found: list[Any] = model.predict(rows, batch_size=batch_size, **options)
    return found


def _read_input(text: str) -> Any:
    """JSON where it begins as an object or a list, else the text itself."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # a text may well begin with a bracket


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_file(name: str) -> list[Any]:
    if name == "-":
        return [line.rstrip("\n") for line in sys.stdin if line.strip()]
    path = Path(name).expanduser()
    if not path.is_file():
        raise NotFoundError(f"no file `{name}`")
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            rows.append(line)
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{name}, line {number} is no JSON: {error}", file=name, line=number) from error
    return rows


def _entry(row: Any, result: Any) -> dict[str, Any]:
    from modelyard.weights.predict.results import to_plain

    return {"input": row, "result": to_plain(result)}


def _print_table(rows: Sequence[Any], results: Sequence[Any]) -> None:
    """One line for each result, or for each entry of a result that is a list."""
    lines = []
    for row, result in zip(rows, results, strict=True):
        shown = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
        short = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
        entries = result if isinstance(result, list) else [result]
        lines += [{"input": short, **_cells(entry)} for entry in entries or [{"result": "nothing"}]]
    headers = list(dict.fromkeys(name for line in lines for name in line))
    output.table(headers, [[line.get(name, "") for name in headers] for line in lines])


def _cells(result: Any) -> dict[str, str]:
    fields: Iterator[tuple[str, Any]]
    if isinstance(result, Mapping):
        fields = iter(result.items())
    else:
        names = getattr(type(result), "__dataclass_fields__", {})
        fields = ((name, getattr(result, name)) for name in names)
    return {name: shown for name, value in fields if (shown := _show(value))}


def _show(value: Any) -> str:
    """A value in a cell: numbers to four places, arrays by their shape, results in a result in one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_show(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        many = len(value) > _NUMBERS and all(isinstance(item, int | float) for item in value)
        return f"{len(value)} numbers" if many else ", ".join(_show(item) for item in value)
    if hasattr(value, "__dataclass_fields__"):
        return " ".join(_cells(value).values())
    return "" if value is None else str(value)
