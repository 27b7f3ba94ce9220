"""`yard estimate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.inspect import source_files
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.weights.estimate.workload import MODES, OPTIMIZERS, QUANTIZATIONS

if TYPE_CHECKING:
    from modelyard.weights.estimate import Estimate

__all__ = ["estimate"]

_MODES = {
    "inference": "inference",
    "lora": "a training step of a LoRA adapter",
    "full": "a training step of all parameters",
}


@click.command()
@click.argument("source")
@click.option("--mode", type=click.Choice(MODES), default="inference", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Rows at a time.")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    default=None,
    help="Tokens of a row.  [default: 2048, or as many as the model has positions for]",
)
@click.option("--new-tokens", type=click.IntRange(min=0), default=256, show_default=True, help="Generated after them.")
@click.option("--dtype", type=click.Choice(("auto", "float32", "bfloat16", "float16")), default="auto")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda", help="Where it would run.")
@click.option("--quantization", type=click.Choice(tuple(QUANTIZATIONS)), default=None, help="Load in fewer bits.")
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="LoRA's rank.")
@click.option("--targets", default="all-linear", show_default=True, metavar="NAME,...", help="Modules for LoRA.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", show_default=True)
@click.option("--gradient-checkpointing", is_flag=True, help="Compute activations again instead of keeping them.")
@click.option("--options", "options", is_flag=True, help="Show what else would do, also where it fits.")
@with_yard
@with_json
def estimate(source: str, targets: str, options: bool, home: Home, as_json: bool, **workload: Any) -> None:
    """Say how much memory a model takes, and whether it fits here, before anything is loaded.

    SOURCE is ./folder (weights need not be there), a version, hf://org/name[@revision], or a URL. Needed are its
    config.json and the headers of its weights.

    \b
    Examples:
      yard estimate ./llama --length 4096
      yard estimate ./llama --mode lora --batch 4 --gradient-checkpointing
      yard estimate hf://org/name --quantization bnb-4bit --json
    """
    from modelyard.weights.estimate import estimate as compute

    chosen: Any = targets if targets == "all-linear" else tuple(filter(None, targets.split(",")))
    with source_files(home, source) as files:
        found = compute(files, targets=chosen, options=True if options else None, **workload)
    if as_json:
        output.json_object({"source": source, **found.to_dict()})
        return
    output.note(_question(found))
    output.table(["what", "size", "bytes"], _rows(found))
    _answer(found)


def _question(found: Estimate) -> str:
    asked = found.workload
    size = f"{asked.batch} x {asked.length} tokens"
    size += f" and {asked.new_tokens} new ones" if asked.mode == "inference" and asked.new_tokens else ""
    kind = f"{found.dtype}{f', {asked.quantization}' if asked.quantization else ''}"
    return f"{found.architecture}, {found.parameters:,} parameters as {kind}: {_MODES[asked.mode]} on {asked.device}, {size}"


def _rows(found: Estimate) -> list[tuple[str, str, str]]:
    parts = {
        "weights": found.weights,
        "KV cache and states": found.kv_cache,
        "activations": found.activations,
        "adapter": found.adapter,
        "gradients": found.gradients,
        "optimizer states": found.optimizer,
        "kept by the allocator": found.allocator,
        "process and libraries": found.overhead,
        "peak": found.peak,
    }
    return [(name, output.human_bytes(size), f"{size:,}") for name, size in parts.items() if size]


def _answer(found: Estimate) -> None:
    machine = found.machine
    if machine is None:
        output.note("whether it fits is not known: this machine has no such device")
    else:
        verdict = "fits" if found.fits else "does not fit"
        free, total = output.human_bytes(machine.available), output.human_bytes(machine.total)
        output.note(f"{verdict}: {free} of {total} are free on {machine.device}")
    for option in found.options:
        fits = "fits" if option.fits else "does not fit either"
        output.note(f"  {option.what}: {output.human_bytes(option.peak)}, {fits}")
    for text in found.notes:
        output.note(f"note: {text}")
