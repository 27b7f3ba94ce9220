"""`yard quickstart`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

if TYPE_CHECKING:
    from modelyard.quickstart.job import Summary

__all__ = ["quickstart"]


@click.command()
@with_yard
@with_json
def quickstart(home: Home, as_json: bool) -> None:
    """Run the main job end to end on what ships with modelyard, offline: commit a base and a dataset, fine-tune with
    LoRA, merge exactly, evaluate, pass a gate, promote, serve, ask. About two minutes on two cores; again, nothing is
    done twice.

    \b
    Example:
      yard quickstart
    """
    from modelyard.cli.progress import RunDisplay
    from modelyard.quickstart.job import run_quickstart

    yard = home.open(create=True)
    if not as_json:
        output.note("The main job: a base becomes a fine-tuned, evaluated, promoted and served version.")
    with RunDisplay(quiet=as_json) as display:
        summary = run_quickstart(
            yard, runs=home.settings.home / "runs", progress=display.show, threads=home.settings.threads
        )
    if as_json:
        output.json_object(summary.to_dict())
    else:
        sys.stderr.flush()
        _tell(summary)


def _tell(summary: Summary) -> None:
    """The final summary, for somebody who has never seen this before."""
    plain = summary.to_dict()
    versions = summary.result.versions
    leaks = sum(int(found.get("contaminated", 0)) for found in plain["contamination"].values())
    gate = plain["gate"]["decision"]
    output.data()
    output.data(
        f"base      {versions['base']['name']:<28} {plain['base_accuracy']:6.1%} of {plain['n']} held-out rows right"
    )
    output.data(f"merged    {versions['merged']['name']:<28} {plain['accuracy']:6.1%}")
    output.data(
        f"evidence  p = {plain['p_value']:.2g} (exact McNemar), {leaks} test rows found in any training text, gate: {gate}"
    )
    output.data(f"serving   quickstart/support@production is version {plain['served_version'][:12]}")
    output.data()
    output.data(f"asked     {plain['question']}")
    output.data(f"answered  {plain['answer']}")
    output.data()
    done = "nothing had to be done again" if plain["did_nothing"] else "run it again and nothing is done twice"
    output.data(f"{plain['seconds']:.0f} seconds; {done}. What to type next:")
    output.data("  yard show quickstart/support@production      what it is, what it was made from, its evidence")
    output.data('  yard generate quickstart/support@production "Track my parcel, its code is KX-4821."')
    output.data("  yard serve quickstart/support@production     an OpenAI-compatible server")
    output.data("  yard run examples/own-data.yaml              the same with a model and data of yours")
