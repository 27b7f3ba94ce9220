"""`yard compare`: two models' answers to the same prompts, side by side."""

from __future__ import annotations

import json
import shutil
import textwrap
import unicodedata
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.loading import Loading, with_loading
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.errors import DataError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelyard.weights.model import Model

__all__ = ["compare"]

_MOST_PROMPTS = 10_000


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--prompts",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="A prompt a line (.txt), or .jsonl whose lines hold `prompt` or `messages`.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Both answer with this one.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=None, help="Stop after this many tokens.")
@click.option("--temperature", type=click.FloatRange(0, 100), default=None, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=None)
@click.option("--num-beams", type=click.IntRange(min=1), default=None, help="Search with so many beams.")
@click.option("--stop", multiple=True, help="Stop before this text; may be repeated.")
@click.option("--different", is_flag=True, help="Show only the prompts that are answered differently.")
@with_loading
@with_yard
@with_json
def compare(
    first: str,
    second: str,
    file: str,
    seed: int,
    different: bool,
    loading: Loading,
    home: Home,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer the prompts in FILE with two models, A and B, and show the answers side by side.

    A and B are versions, folders or a hub's models. One is loaded after the other, so that memory holds one at a time.
    Models that generate are asked with one seed; classifiers and others are asked for their predictions.

    \b
    Examples:
      yard compare team/intents@production team/intents@candidate --prompts prompts.txt
      yard compare ./base ./tuned --prompts prompts.jsonl --max-new-tokens 40 --different
    """
    prompts = _read_prompts(file)
    asked = {name: value for name, value in options.items() if value not in (None, ())}
    if "stop" in asked:
        asked["stop"] = list(asked["stop"])
    answers, versions = [], []
    for source in (first, second):
        model = loading.load(home, source)
        try:
            with output.warnings_as_notes():
                answers.append(_ask(model, prompts, {"seed": seed, **asked}, loading.per_call))
            versions.append(str(model.version.id) if model.version is not None else None)
        finally:
            model.release()
    equal = [a == b for a, b in zip(*answers, strict=True)]
    if as_json:
        rows = [
            {"prompt": prompt, "a": a, "b": b, "equal": same}
            for prompt, a, b, same in zip(prompts, *answers, equal, strict=True)
            if not (different and same)
        ]
        sides = {
            name: {"source": source, "version": version}
            for name, source, version in zip("ab", (first, second), versions, strict=True)
        }
        counts = {"equal": sum(equal), "different": len(equal) - sum(equal)}
        output.json_object({**sides, "seed": seed, **counts, "rows": rows})
        return
    for at, (prompt, a, b, same) in enumerate(zip(prompts, *answers, equal, strict=True), 1):
        if not (different and same):
            _show(at, prompt, (first, _words(a)), (second, _words(b)), same=same)
    output.note(f"{sum(equal)} of {len(equal)} answers are equal, {len(equal) - sum(equal)} are different")


def _read_prompts(file: str | Path) -> list[Any]:
    """The prompts of a file: its lines that are not blank, or the `prompt` or `messages` of each JSON line."""
    found: list[Any] = []
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(
                        _parse(line, f"{file}:{number}")
                        if str(file).endswith((".jsonl", ".ndjson"))
                        else line.rstrip("\r\n")
                    )
                if len(found) > _MOST_PROMPTS:
                    raise DataError(f"`{file}` has more than {_MOST_PROMPTS} prompts", hint="compare on a part of them")
    except UnicodeDecodeError as error:
        raise DataError(f"`{file}` is no text in UTF-8", hint="iconv -t utf-8 FILE") from error
    if not found:
        raise DataError(f"`{file}` holds no prompt", hint="write one a line")
    return found


def _parse(line: str, where: str) -> Any:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"`{where}` is no JSON: {error}") from error
    names = [name for name in ("prompt", "messages") if isinstance(row, dict) and name in row]
    if len(names) != 1:
        raise DataError(f"`{where}` holds neither `prompt` nor `messages`, or both", hint='{"prompt": "..."}')
    return row[names[0]]


def _ask(model: Model, prompts: Sequence[Any], params: Mapping[str, Any], per_call: Mapping[str, Any]) -> list[Any]:
    """What a model says to each prompt: text where it generates, else its prediction as plain values."""
    from modelyard.weights.model import GENERATING

    if model.task in GENERATING:
        return list(model.batch_generate(prompts, **params, **per_call))
    extra = sorted(set(params) - {"seed"})
    if extra:
        raise RequestError(
            f"`{model.folder}` is a {model.task} model: it takes no `--{extra[0].replace('_', '-')}`",
            hint="leave it out",
            field=extra[0],
        )
    return [_plain(result) for result in model.predict(list(prompts), **per_call)]


def _plain(value: Any) -> Any:
    """A result as JSON holds it; floats to six digits, which is what two runs of one model agree in."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return round(value, 6) if isinstance(value, float) else value


def _words(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, dict) and {"label", "score"} <= set(answer):
        return f"{answer['label']} ({answer['score']:.3f})"
    return json.dumps(answer, ensure_ascii=False)


def _show(at: int, prompt: Any, first: tuple[str, str], second: tuple[str, str], *, same: bool) -> None:
    """One prompt and both answers, in two columns as wide as the terminal allows."""
    wide = max(24, (shutil.get_terminal_size((120, 24)).columns - 3) // 2)
    words = prompt if isinstance(prompt, str) else _last_words(prompt)
    output.data(f"#{at} {'=' if same else '≠'} {_shorten(words, 2 * wide)}")
    columns = [[source, *_wrap(answer, wide)] for source, answer in (first, second)]
    for row in range(max(map(len, columns))):
        left, right = (column[row] if row < len(column) else "" for column in columns)
        output.data(f"{left}{' ' * (wide - _width(left))} | {right}".rstrip())
    output.data()


def _last_words(messages: Any) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else messages
    content = last.get("content") if isinstance(last, dict) else last
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def _wrap(text: str, wide: int) -> list[str]:
    """`text` in lines of at most `wide` columns; wide characters of East Asia take two."""
    lines: list[str] = []
    for line in output.clean(text).expandtabs(4).split("\n"):
        shrunk = wide if _width(line) == len(line) else wide // 2
        lines += textwrap.wrap(line, shrunk, drop_whitespace=False) or [""]
    return lines


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _shorten(text: str, most: int) -> str:
    plain = " ".join(output.clean(text).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
