"""`yard merge`, `yard combine` and `yard extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli.options import Home, key_values, with_json, with_yard
from modelyard.cli.transforming import bench, numbers, place, report

if TYPE_CHECKING:
    from modelyard.registry.transforms import Transformed

__all__ = ["combine", "extract", "merge"]

_TO = "A repo of the yard, or a new ./FOLDER"


@click.command()
@click.argument("adapter", required=False, metavar="[ADAPTER]")
@click.option("--config", type=click.Path(path_type=Path), help="A mergekit configuration: whole models instead.")
@click.option("--to", "target", metavar="TARGET", help=f"{_TO} (default: the adapter's repo).")
@click.option("--base", metavar="SOURCE", help="The adapter's base (default: the one that its lineage records).")
@click.option("--mode", type=click.Choice(("exact", "peft")), default="exact", show_default=True, help="See below.")
@click.option("--quantized", type=click.Choice(("dequantized", "original")), help="What of a quantized base is merged.")
@click.option("--original", metavar="SOURCE", help="For `--quantized original`: the base before it was quantized.")
@click.option("--check/--no-check", default=True, help="Compare with base and adapter on fixed prompts.  [default: on]")
@click.option("--threads", type=click.IntRange(min=1), help="Compute threads (default: every core).")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="For `--config`: what DARE draws from.")
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def merge(
    adapter: str | None,
    config: Path | None,
    target: str | None,
    base: str | None,
    original: str | None,
    home: Home,
    as_json: bool,
    branch: str,
    seed: int,
    **options: Any,
) -> None:
    """Merge an adapter into its base, or whole models as a mergekit file says; sources are versions, ./folders, hf:// ids.

    `exact` gives the same bits on every machine, from exact operations, a few blocks in memory at a time. `peft` gives the bits
    of PEFT's own merge_and_unload on this machine.

    \b
    Examples:
      yard merge team/intents@adapter
      yard merge ./adapter --base ./base --to ./merged --mode peft
      yard merge --config merge.yml --to team/soup
    """
    if (adapter is None) == (config is None):
        raise click.UsageError("give an adapter, or `--config FILE` for whole models")
    if config is not None:
        report(_merge_models(home, config, target, seed=seed, branch=branch, as_json=as_json), as_json=as_json)
        return
    from modelyard.cli.progress import byte_bar

    yard = bench(home, target, adapter, base, original)
    with byte_bar("merging", quiet=as_json) as progress:
        made = yard.merge(
            place(str(adapter)),
            place(target) if target else None,
            base=place(base) if base else None,
            original=place(original) if original else None,
            branch=branch,
            progress=progress,
            **options,
        )
    report(made, as_json=as_json)


def _merge_models(
    home: Home, config: Path, target: str | None, *, seed: int, branch: str, as_json: bool
) -> Transformed:
    from modelyard.cli.progress import byte_bar

    if target is None:
        raise click.UsageError("`--config` needs `--to TARGET`: where the merged model goes")
    with byte_bar("merging", quiet=as_json) as progress:
        return home.open(create=True).merge_models(config, place(target), seed=seed, branch=branch, progress=progress)


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--to", "target", required=True, metavar="TARGET", help=f"{_TO}.")
@click.option(
    "--method", type=click.Choice(("linear", "svd", "ties", "dare", "slerp")), default="linear", show_default=True
)
@click.option("--weights", metavar="W,W,...", help="One for each adapter (default: 1 each).")
@click.option("--rank", type=click.IntRange(min=1), help="Of the result (default: what loses nothing).")
@click.option("--base", metavar="SOURCE", help="Their base (default: the one that lineage records).")
@click.option("--set", "settings", multiple=True, metavar="KEY=NUMBER", help="Of the method: density, seed, t.")
@click.option(
    "--saved",
    type=click.Choice(("refuse", "average")),
    default="refuse",
    help="Modules saved whole.",
    show_default=True,
)
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def combine(
    adapters: tuple[str, ...],
    target: str,
    method: str,
    weights: str | None,
    rank: int | None,
    base: str | None,
    settings: tuple[str, ...],
    saved: str,
    branch: str,
    home: Home,
    as_json: bool,
) -> None:
    """Make one adapter from several, computed on what they add to the weights and not on their factors.

    \b
    Examples:
      yard combine team/a@adapter team/b@adapter --weights 0.6,0.4 --to team/both
      yard combine ./a ./b --method ties --set density=0.3 --rank 16 --to ./both
    """
    from modelyard.cli.progress import count_bar

    yard = bench(home, target, base, *adapters)
    with count_bar("combining", quiet=as_json) as progress:
        made = yard.combine(
            [place(each) for each in adapters],
            place(target),
            method=method,
            weights=numbers(weights, "--weights"),
            rank=rank,
            base=place(base) if base else None,
            branch=branch,
            progress=progress,
            saved=saved,
            **_settings(settings),
        )
    report(made, as_json=as_json)


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, text in key_values(pairs, "--set").items():
        try:
            found[key] = int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            raise click.UsageError(f"`--set {key}={text}`: a number") from None
    return found


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("tuned", metavar="TUNED")
@click.option("--rank", type=click.IntRange(min=1), required=True, help="Of the adapter.")
@click.option("--min-error", type=float, help="Stop at a lower rank in a layer whose relative error is this small.")
@click.option("--save-others", is_flag=True, help="Keep what else changed (norms, embeddings) as modules saved whole.")
@click.option("--to", "target", required=True, metavar="TARGET", help=f"{_TO}.")
@click.option("--branch", default="main", show_default=True)
@with_yard
@with_json
def extract(
    base: str,
    tuned: str,
    rank: int,
    target: str,
    branch: str,
    home: Home,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a LoRA adapter from two checkpoints: the best of its rank for what TUNED changed in BASE.

    \b
    Example:
      yard extract team/base team/intents@production --rank 16 --to team/intents-lora
    """
    from modelyard.cli.progress import count_bar

    yard = bench(home, target, base, tuned)
    with count_bar("extracting", quiet=as_json) as progress:
        made = yard.extract(
            place(base), place(tuned), place(target), rank=rank, branch=branch, progress=progress, **options
        )
    report(made, as_json=as_json)
