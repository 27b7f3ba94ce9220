"""`yard tokenize` and `yard detokenize`."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.cli.standard_input import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.registry import Version, Yard

__all__ = ["detokenize", "tokenize"]

# What weights are stored in: a tokenizer needs none of it, and it is most of a version's bytes.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot")


@click.command()
@click.argument("source")
@click.argument("text", required=False)
@click.option("--special/--no-special", default=True, help="Add what frames a text, such as BOS (default: yes).")
@click.option("--chat", is_flag=True, help="Render TEXT as a user's message by the chat template first.")
@with_yard
@with_json
def tokenize(source: str, text: str | None, special: bool, chat: bool, home: Home, as_json: bool) -> None:
    """Show the tokens of TEXT: ids, pieces, where they stand, which are control tokens. No weight is loaded.

    Without TEXT, it is read from standard input.

    \b
    Examples:
      yard tokenize team/intents@production "My card has not arrived"
      yard tokenize ./my-model "My card has not arrived" --no-special
      yard tokenize ./my-model "Hello" --chat --json
    """
    from modelyard.weights.generation import chat as chats
    from modelyard.weights.generation import vocabulary

    given = text if text is not None else read_text("text")
    with _tokenizer(home, source) as tokenizer:
        if chat:
            ids = chats.render(tokenizer, [{"role": "user", "content": given}])
            found = vocabulary.pieces_of(tokenizer, ids)
        else:
            found = vocabulary.tokenize(tokenizer, given, special=special)
        size = vocabulary.vocabulary_size(tokenizer)
    if as_json:
        tokens = [asdict(piece) for piece in found]
        output.json_object(
            {"source": source, "text": given, "count": len(tokens), "vocabulary": size, "tokens": tokens}
        )
        return
    rows = [
        (
            piece.id,
            piece.piece,
            repr(piece.text),
            "special" if piece.special else "added" if piece.added else "",
            f"{piece.start}-{piece.end}" if piece.start is not None else "",
        )
        for piece in found
    ]
    output.table(("ID", "PIECE", "TEXT", "KIND", "CHARACTERS"), rows)
    output.note(f"{len(found)} tokens of a vocabulary of {size}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("source")
@click.argument("ids", nargs=-1, required=True, type=int, metavar="ID...")
@click.option("--special/--no-special", default=True, help="Show control tokens (default: yes).")
@with_yard
@with_json
def detokenize(source: str, ids: tuple[int, ...], special: bool, home: Home, as_json: bool) -> None:
    """Show the text of token IDs; an id that the vocabulary does not have is an error. No weight is loaded.

    \b
    Examples:
      yard detokenize team/intents@production 318 262 3797
      yard detokenize ./my-model 1 318 262 --no-special
    """
    from modelyard.weights.generation import vocabulary

    with _tokenizer(home, source) as tokenizer:
        text = vocabulary.detokenize(tokenizer, ids, skip_special=not special)
        found = vocabulary.pieces_of(tokenizer, ids)
    if as_json:
        output.json_object({"source": source, "text": text, "tokens": [asdict(piece) for piece in found]})
        return
    output.data(text)


@contextmanager
def _tokenizer(home: Home, source: str) -> Iterator[Any]:
    """The tokenizer of a version, a folder, a .gguf file or a hub's model."""
    from modelyard import app
    from modelyard.weights import hub
    from modelyard.weights.generation.vocabulary import load_tokenizer
    from modelyard.weights.sources import source_form

    form = source_form(source)
    if form == "path":
        yield load_tokenizer(Path(source).expanduser())
    elif form == "hub":
        yield load_tokenizer(hub.fetch(source, weights=False, **app.hub_access(home.settings)))
    else:
        yard = home.open()
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
            yield load_tokenizer(_write_small(yard, yard.resolve(source), Path(folder)))


def _write_small(yard: Yard, version: Version, folder: Path) -> Path:
    """A version's files but its weights, in `folder`; those of an adapter's base where the adapter has no tokenizer."""
    from modelyard.weights.filenames import TOKENIZER_FILES

    if version.kind == "adapter" and not {entry.path for entry in version.files} & TOKENIZER_FILES:
        version = yard.base_of(version)
    files = yard.files(version)
    for name in files.names():
        # The adapter's configuration would send the reader on to its base.
        if not name.endswith(_WEIGHTS) and name != "adapter_config.json":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files.path(name), target)
    return folder
