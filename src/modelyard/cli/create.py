"""`yard create`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, key_values, with_json, with_yard
from modelyard.cli.versions import version_json
from modelyard.errors import RequestError

if TYPE_CHECKING:
    from modelyard.weights.model import Model

__all__ = ["create"]


_OPTIONS = {"task": "--task", "model_class": "--class", "seed": "--seed", "dtype": "--dtype"}


@click.command()
@click.argument("source", metavar="MODEL_TYPE|./FOLDER")
@click.option("--to", "target", required=True, metavar="./FOLDER|NAMESPACE/NAME", help="A new folder, or a repo.")
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the configuration, e.g. num_hidden_layers=2 or text_config.hidden_size=32; values are JSON.",
)
@click.option("--task", metavar="TASK", help="What it is for (default: what its type is mostly for).")
@click.option("--class", "model_class", metavar="CLASS", help="An exact class of transformers instead.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="What the weights are drawn from."
)
@click.option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")), default="float32", show_default=True)
@with_yard
@with_json
def create(
    source: str,
    target: str,
    values: tuple[str, ...],
    task: str | None,
    model_class: str | None,
    seed: int,
    dtype: str,
    home: Home,
    as_json: bool,
) -> None:
    """Make a model from a configuration, with weights drawn from a seed.

    The weights are marked `random`: predictions warn, promote and serve refuse, until somebody trains them. From a
    folder, its configuration and preprocessors are taken, none of its weights.

    \b
    Examples:
      yard create bert --set num_hidden_layers=2 --seed 0 --to ./small-bert
      yard create llama --set hidden_size=64 --set num_attention_heads=4 --task text-generation --to team/scratch
    """
    from modelyard.weights.create import create as make
    from modelyard.weights.sources import is_path

    given = key_values(values, "--set")
    for key in _OPTIONS.keys() & given.keys():
        raise RequestError(f"`--set {key}`: `{key}` has an option of its own", hint=f"use {_OPTIONS[key]}", field=key)
    model = make(
        Path(source).expanduser() if is_path(source) else source,
        task=task,
        model_class=model_class,
        seed=seed,
        dtype=dtype,
        **{key: _value(text) for key, text in given.items()},
    )
    made: dict[str, Any] = {
        "task": model.task,
        "model_class": type(model.model).__name__,
        "parameters": model.num_parameters(),
        "seed": seed,
        "dtype": dtype,
        "untrained": "random",
    }
    if is_path(target):
        where = str(model.save(Path(target).expanduser()))
        plain = {"to": where, **made}
    else:
        plain = _commit(model, target, home, seed, made)
        where = str(plain["name"])
    if as_json:
        output.json_object(plain)
        return
    output.data(where)
    output.note(
        f"{made['model_class']} for {made['task']}, {made['parameters']:,} random parameters; train it before use"
    )


def _commit(model: Model, target: str, home: Home, seed: int, made: dict[str, Any]) -> dict[str, Any]:
    yard = home.open(create=True)
    runs = home.settings.home / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="create-", dir=runs) as scratch:
        folder = model.save(Path(scratch) / "model")
        version = yard.commit(folder, target, kind="base", message=f"random weights from seed {seed}")
    return version_json(version, **made)


def _value(text: str) -> Any:
    """JSON, or the text itself where it is none: `gelu` needs no quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text
