"""`yard convert`, `yard quantize` and `yard export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, key_values, with_json, with_yard
from modelyard.cli.transforming import bench, place, report

if TYPE_CHECKING:
    from modelyard.registry.merging import Merging

__all__ = ["convert", "export", "quantize"]

_TO = "A repo of the yard, or a new ./FOLDER."
_SHOWN = 40
"""Tensors of a plan that the text shows; all of them are in the JSON."""


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--to", "target", metavar="TARGET", help=_TO)
@click.option(
    "--to-format",
    "format_",
    type=click.Choice(("safetensors", "bin", "gguf")),
    default="safetensors",
    show_default=True,
    help="What is written; `bin` for tools that still want pickles, to a folder only.",
)
@click.option("--dtype", type=click.Choice(("float32", "float16", "bfloat16")), help="Cast every weight.")
@click.option("--dtype-of", multiple=True, metavar="PATTERN=DTYPE", help="Cast these, e.g. '*norm*=float32'.")
@click.option("--shard-size", metavar="SIZE", help="The most of one file, e.g. 5GB.")
@click.option("--names", type=click.Choice(("disk", "module")), help="Names as transformers 4 wrote, or as 5 has them.")
@click.option(
    "--type",
    type=click.Choice(("F32", "F16", "BF16", "Q8_0", "Q4_0")),
    default="F16",
    help="For gguf.",
    show_default=True,
)
@click.option("--plan", is_flag=True, help="Show what would become of each tensor; nothing is written.")
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def convert(
    source: str,
    target: str | None,
    format_: str,
    dtype_of: tuple[str, ...],
    plan: bool,
    branch: str,
    home: Home,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the same weights in another form: dtype, shards, names, safetensors, pickles, GGUF. SOURCE is a version, ./folder,
    ./file.gguf or hf://org/name; a folder of pickles is read in an isolated process.

    \b
    Examples:
      yard convert ./old-model --to ./model
      yard convert team/intents@production --to team/intents-bf16 --dtype bfloat16 --dtype-of '*norm*=float32'
      yard convert team/intents@production --to ./gguf --to-format gguf --type Q8_0
    """
    options |= {"dtypes": key_values(dtype_of, "--dtype-of"), "format": format_}
    if plan:
        _show_plan(bench(home, target, source), source, options, as_json)
        return
    if target is None:
        raise click.UsageError("say where to: `--to TARGET` (or `--plan` to see what would be done)")
    from modelyard.cli.progress import byte_bar

    yard = bench(home, target, source)
    with byte_bar("converting", quiet=as_json) as progress:
        made = yard.convert(place(source), place(target), branch=branch, progress=progress, **options)
    report(made, as_json=as_json)


def _show_plan(yard: Merging, source: str, options: dict[str, Any], as_json: bool) -> None:
    planned = yard.plan_conversion(place(source), **options)
    if as_json:
        output.json_object({"source": source, "tensors": [each.to_dict() for each in planned]})
        return
    rows = [
        (each.name, each.before, each.after, each.operation, each.file, output.human_bytes(each.size))
        for each in planned[:_SHOWN]
    ]
    output.table(("TENSOR", "FROM", "TO", "OPERATION", "FILE", "SIZE"), rows)
    if len(planned) > _SHOWN:
        output.note(f"and {len(planned) - _SHOWN} more: --json has them all")


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option(
    "--method",
    metavar="METHOD",
    required=True,
    help="torchao-int8 or bnb-4bit; docs/guides/quantizing.md says why others are not offered.",
)
@click.option("--to", "target", required=True, metavar="TARGET", help=_TO)
@click.option("--tolerance", type=float, help="The largest difference that passes, relative to the outputs' scale.")
@click.option("--check/--no-check", default=True, help="Compare with the source.  [default: on]")
@click.option("--threads", type=click.IntRange(min=1), help="Compute threads.")
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def quantize(source: str, target: str, home: Home, as_json: bool, **options: Any) -> None:
    """Write a model in fewer bits a weight, measured against the one that it was made from.

    \b
    Example:
      yard quantize team/intents@production --method torchao-int8 --to team/intents-int8
    """
    from modelyard.cli.progress import count_bar

    with count_bar("quantizing", quiet=as_json) as progress:
        made = bench(home, target, source).quantize(place(source), place(target), progress=progress, **options)
    report(made, as_json=as_json)


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option(
    "--format", type=click.Choice(("onnx", "openvino", "genai", "gguf")), required=True, help="Whose form it takes."
)
@click.option("--to", "target", required=True, metavar="TARGET", help=_TO)
@click.option("--type", metavar="TYPE", help="Of the weights: fp32, int8, int4 (genai); F16, Q8_0, ... (gguf).")
@click.option("--task", metavar="TASK", help="Of the model (default: that of its class).")
@click.option("--tolerance", type=float, help="The largest difference that passes, relative to the outputs' scale.")
@click.option("--threads", type=click.IntRange(min=1), help="Compute threads.")
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def export(source: str, target: str, home: Home, as_json: bool, **options: Any) -> None:
    """Write a model in another engine's form; one that answers differently is not written.

    \b
    Examples:
      yard export team/intents@production --format onnx --to team/intents-onnx
      yard export ./model --format genai --type int4 --to ./model-int4
    """
    from modelyard.cli.progress import count_bar

    with count_bar("exporting", quiet=as_json) as progress:
        made = bench(home, target, source).export(place(source), place(target), progress=progress, **options)
    report(made, as_json=as_json)
