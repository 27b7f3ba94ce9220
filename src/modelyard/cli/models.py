"""`yard generate` and `yard chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelyard.cli import output
from modelyard.cli.loading import Loading, with_loading
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.cli.standard_input import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.weights.model import Model

__all__ = ["chat", "generate"]

Command = TypeVar("Command", bound="Callable[..., Any]")


def with_sampling(command: Command) -> Command:
    """Add the options that decide how tokens are chosen."""
    for option in (
        click.option("--max-new-tokens", type=click.IntRange(min=1), default=None, help="Stop after this many tokens."),
        click.option("--temperature", type=click.FloatRange(0, 2), default=None, help="0 is greedy."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=None),
        click.option("--seed", type=int, default=None, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="Stop before this text; may be repeated."),
    ):
        command = option(command)
    return command


def _chosen(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, ())}


@click.command()
@click.argument("source")
@click.argument("prompt", required=False)
@with_sampling
@with_loading
@with_yard
@with_json
def generate(source: str, prompt: str | None, loading: Loading, home: Home, as_json: bool, **options: Any) -> None:
    """Answer one PROMPT with a version, a model's folder or a hub's model. Without PROMPT, it is read from standard input.

    \b
    Examples:
      yard generate team/intents@production "My card has not arrived"
      yard generate ./my-model "Hello" --dtype bfloat16
      yard generate hf://org/name@main "Hello" --quantization int8-dynamic
    """
    text = prompt if prompt is not None else read_text("prompt")
    model = loading.load(home, source)
    chosen = _chosen(**options, **loading.per_call)
    if as_json:
        with output.warnings_as_notes():
            answer = model.generate(text, **chosen)
        output.json_object({"model": source, "version": _version_id(model), "prompt": text, "answer": answer})
        return
    with output.warnings_as_notes():
        pieces = model.stream(text, **chosen)
    _print_stream(pieces)


@click.command()
@click.argument("source")
@click.option("--system", default=None, help="A system message to begin with.")
@with_sampling
@with_loading
@with_yard
@with_json
def chat(source: str, system: str | None, loading: Loading, home: Home, as_json: bool, **options: Any) -> None:
    """Talk to a version, a model's folder or a hub's model; an empty line or Ctrl-D ends it. With `--json`, prints the
    whole conversation at the end.

    \b
    Examples:
      yard chat team/intents@production
      yard chat ./my-model
    """
    model = loading.load(home, source)
    version = _version_id(model)
    output.note(f"{source}{f' is {version[:12]}' if version else ''}; an empty line ends the conversation")
    chosen = _chosen(**options, **loading.per_call)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    while said := _ask():
        messages.append({"role": "user", "content": said})
        with output.warnings_as_notes():
            pieces = model.stream(messages, **chosen)
        answer = "".join(pieces) if as_json else _print_stream(pieces)
        messages.append({"role": "assistant", "content": answer})
    if as_json:
        output.json_object({"model": source, "version": version, "messages": messages})


def _version_id(model: Model) -> str | None:
    """None for a model that is no version: a folder's, or a hub's."""
    return str(model.version.id) if model.version is not None else None


def _ask() -> str:
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    return sys.stdin.readline().strip()


def _print_stream(pieces: Iterator[str]) -> str:
    """Print pieces as they come, cleaned for the terminal, and return the whole text as it was."""
    said = []
    for piece in pieces:
        said.append(piece)
        click.echo(output.clean(piece), nl=False)
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
    click.echo()
    return "".join(said)
