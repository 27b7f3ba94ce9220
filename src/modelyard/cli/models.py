"""`yard generate` and `yard chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

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
@click.argument("reference")
@click.argument("prompt", required=False)
@with_sampling
@with_yard
@with_json
def generate(reference: str, prompt: str | None, home: Home, as_json: bool, **options: Any) -> None:
    """Answer one PROMPT with a version. Without PROMPT, it is read from standard input.

    \b
    Example:
      yard generate team/intents@production "My card has not arrived"
    """
    text = prompt if prompt is not None else sys.stdin.read()
    model = home.open().load(reference, threads=home.settings.threads)
    if as_json:
        answer = model.generate(text, **_chosen(**options))
        output.json_object({"model": reference, "version": _version_id(model), "prompt": text, "answer": answer})
        return
    _print_stream(model.stream(text, **_chosen(**options)))


@click.command()
@click.argument("reference")
@click.option("--system", default=None, help="A system message to begin with.")
@with_sampling
@with_yard
@with_json
def chat(reference: str, system: str | None, home: Home, as_json: bool, **options: Any) -> None:
    """Talk to a version; an empty line or Ctrl-D ends it. With `--json`, prints the whole conversation at the end.

    \b
    Example:
      yard chat team/intents@production
    """
    model = home.open().load(reference, threads=home.settings.threads)
    output.note(f"{reference} is {_version_id(model)[:12]}; an empty line ends the conversation")
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    while said := _ask():
        messages.append({"role": "user", "content": said})
        pieces = model.stream(messages, **_chosen(**options))
        answer = "".join(pieces) if as_json else _print_stream(pieces)
        messages.append({"role": "assistant", "content": answer})
    if as_json:
        output.json_object({"model": reference, "version": _version_id(model), "messages": messages})


def _version_id(model: Model) -> str:
    return str(model.version.id)


def _ask() -> str:
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    return sys.stdin.readline().strip()


def _print_stream(pieces: Iterator[str]) -> str:
    """Print pieces as they come, cleaned for the terminal, and return the whole text as it was."""
    said = []
    for piece in pieces:
        said.append(piece)
        click.echo(output.clean(piece), nl=False)
        sys.stdout.flush()
    click.echo()
    return "".join(said)
