"""`yard plan`: what loading a model would do, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.loading import Loading, with_loading
from modelyard.cli.options import Home, key_values, with_json, with_yard

if TYPE_CHECKING:
    from modelyard.weights.loading.plan import LoadPlan

__all__ = ["plan"]

_PLACES = 12
"""Modules that the text shows with their places; all of them are in the JSON."""


@click.command()
@click.argument("source")
@click.option("--base", metavar="SOURCE", help="For an adapter: its base.")
@click.option("--class", "model_class", metavar="CLASS", help="An exact class of transformers.")
@click.option("--num-labels", type=click.IntRange(min=1), default=None, help="Labels of the head.")
@click.option(
    "--max-memory",
    multiple=True,
    metavar="DEVICE=AMOUNT",
    help="For a device map that is worked out: cpu=8GiB, 0=20GiB; what does not fit goes to the disk.",
)
@with_loading
@with_yard
@with_json
def plan(
    source: str,
    base: str | None,
    model_class: str | None,
    num_labels: int | None,
    max_memory: tuple[str, ...],
    loading: Loading,
    home: Home,
    as_json: bool,
) -> None:
    """Show what loading SOURCE would do: class, dtype, casts, bytes by device, where each module goes. Nothing is loaded.

    SOURCE is a version, ./folder, ./file.gguf or hf://org/name; the options are those of every command that loads.

    \b
    Examples:
      yard plan team/intents@production
      yard plan ./llama --dtype bfloat16 --quantization torchao-int8
      yard plan ./llama --device-map auto --max-memory cpu=8GiB --json
      yard plan ./bert --task text-classification --num-labels 3
    """
    from modelyard.weights.loading.plan import plan_load

    options: dict[str, Any] = dict(loading.options)
    limits = {
        int(key) if key.isdigit() else key: value for key, value in key_values(max_memory, "--max-memory").items()
    }
    options |= {"max_memory": limits} if limits else {}
    options |= {"base": loading.folder(home, base)} if base else {}
    options |= {"adapters": {"adapter": loading.folder(home, loading.adapter)}} if loading.adapter else {}
    options |= {name: value for name, value in (("model_class", model_class), ("num_labels", num_labels)) if value}
    made = plan_load(loading.folder(home, source), **options)
    if as_json:
        output.json_object({"model": source, **made.to_dict()})
        return
    output.table(["what", "is"], _rows(made))
    for text in _notes(made):
        output.note(text)


def _rows(made: LoadPlan) -> list[tuple[str, str]]:
    rows = [
        ("class", made.model_class),
        ("task", made.task),
        ("dtype", made.dtype),
        ("parameters", f"{made.parameters:,}"),
        ("attention", made.attention),
        ("preprocessor", made.preprocessor or "none"),
    ]
    if made.quantization is not None:
        rows.append(("quantization", f"{made.quantization}, {made.quantized} matrices"))
    rows += [(f"on {place}", output.human_bytes(size)) for place, size in sorted(made.bytes.items())]
    rows += [
        ("cast", f"{kinds}: {cast.tensors} tensors, {_change(cast.bytes_before, cast.bytes_after)}")
        for kinds, cast in made.casts.items()
    ]
    if made.mapped:
        shown = list(made.places.items())[:_PLACES]
        rows += [("place", f"{module or 'everything'}: {place}") for module, place in shown]
        if len(made.places) > _PLACES:
            rows.append(("place", f"and {len(made.places) - _PLACES} modules more; --json shows all"))
    rows += [("adapter", f"{name}: {folder}") for name, folder in made.adapters.items()]
    return rows


def _change(before: int, after: int) -> str:
    return f"{output.human_bytes(before)} to {output.human_bytes(after)}"


def _notes(made: LoadPlan) -> list[str]:
    """What a caller may not have meant."""
    notes = []
    if made.added:
        notes.append(f"untrained head: {_few(made.added)} would be drawn at random")
    if made.dropped:
        notes.append(f"left out, as this task has no place for them: {_few(made.dropped)}")
    if made.experts or made.skipped:
        notes.append(f"stays in full precision under {made.quantization}: {_few(made.experts + made.skipped)}")
    return notes


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
