"""`yard run`, `train` and `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelyard.cli import output
from modelyard.cli.options import Home, key_values, with_json, with_yard

if TYPE_CHECKING:
    from modelyard.recipes import Plan, RunResult

__all__ = ["eval_", "run", "train"]

_MARKS = {"cached": "=", "runs": "run", "waits": "wait"}


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value, e.g. train.epochs=2.")
@click.option("-v", "--var", "variables", multiple=True, metavar="NAME=VALUE", help="Give a variable of the recipe.")
@click.option("--dry-run", is_flag=True, help="Show which steps would run, and why.")
@with_yard
@with_json
def run(
    recipe: Path, overrides: tuple[str, ...], variables: tuple[str, ...], dry_run: bool, home: Home, as_json: bool
) -> None:
    """Run a recipe. Steps whose inputs did not change are not done again; a killed run goes on where it was.

    \b
    Examples:
      yard run examples/banking77.yaml --var DATA=/data/banking77
      yard run recipe.yaml --set train.epochs=2 --dry-run
    """
    from modelyard.recipes import Surroundings, load_recipe

    surroundings = Surroundings(folder=Path.cwd(), home=Path.home())
    parsed = load_recipe(
        recipe, overrides=overrides, variables=key_values(variables, "--var"), surroundings=surroundings
    )
    runs = home.settings.home / "runs"
    yard = home.open(create=True)
    if dry_run:
        from modelyard.quickstart.resources import PackageResources
        from modelyard.recipes import plan

        resources = PackageResources(runs / "data")
        _show_plan(plan(parsed, yard, workspace=recipe.parent, runs=runs, resources=resources), as_json)
        return
    from modelyard.cli.progress import RunDisplay
    from modelyard.quickstart.resources import PackageResources
    from modelyard.recipes import run as run_recipe

    with RunDisplay(quiet=as_json) as display:
        result = run_recipe(
            parsed,
            yard,
            workspace=recipe.parent,
            runs=runs,
            progress=display.show,
            resources=PackageResources(runs / "data"),
            threads=home.settings.threads,
            offline=home.settings.offline,
        )
    _show_result(result, as_json)


def _show_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        output.json_object(plan.to_dict())
        return
    output.table(("", "STEP", "WHY"), [(_MARKS[step.state], step.step, step.reason) for step in plan.steps])
    if plan.is_done:
        output.note("everything is there already")


def _show_result(result: RunResult, as_json: bool) -> None:
    if as_json:
        output.json_object(result.to_dict())
        return
    if result.did_nothing:
        output.note(f"nothing to do: everything was there already ({result.seconds:.1f} s)")
    for word, version in result.versions.items():
        output.data(f"{word:<9} {version['name']}  {version['id'][:12]}")
    for word, report in result.reports.items():
        output.data(f"{word:<9} accuracy {report['accuracy']:.4f}, n={report['n']}")
    if result.verdict:
        output.data(f"gate      {result.verdict['decision']}: {'; '.join(result.verdict['reasons'])}")
    if result.promotion:
        output.data(f"promoted  {result.repo}@{result.promotion['alias']} is {result.promotion['version_name']}")


@click.command()
@click.option("--base", required=True, metavar="REFERENCE|./FOLDER|hf://ORG/NAME")
@click.option("--data", required=True, metavar="FILE|datasets/NS/NAME[@REV]:FILE", help="What to train on.")
@click.option(
    "--to", required=True, metavar="NAMESPACE/NAME", help="Where the adapter is committed (branch `adapter`)."
)
@click.option("--column", "columns", multiple=True, metavar="ROLE=COLUMN", help="E.g. prompt=text completion=category.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="A training option, e.g. epochs=2.")
@with_yard
@with_json
def train(
    base: str, data: str, to: str, columns: tuple[str, ...], options: tuple[str, ...], home: Home, as_json: bool
) -> None:
    """Fine-tune a base on your data with LoRA; commits the adapter with its lineage.

    \b
    Example:
      yard train --base team/base --data ./train.csv --column prompt=text --column completion=category --to team/intents
    """
    from modelyard.cli.progress import RunDisplay
    from modelyard.quickstart.resources import PackageResources
    from modelyard.recipes import Surroundings, parse_recipe
    from modelyard.recipes.operations import train_only

    # The same checks as a recipe's: wrong options are listed together, with near matches.
    parsed = parse_recipe(
        json.dumps({"name": "train", "repo": to, "base": base, "data": {"train": data}, "train": {}, "merge": False}),
        label="the command line",
        overrides=[f"train.{option}" for option in options] + [f"data.columns.{column}" for column in columns],
        surroundings=Surroundings(folder=Path.cwd(), home=Path.home()),
    )
    runs = home.settings.home / "runs"
    with RunDisplay(quiet=as_json) as display:
        result = train_only(
            home.open(create=True),
            base=parsed.base,
            data=parsed.data,
            to=to,
            config=parsed.train,
            workspace=Path.cwd(),
            runs=runs,
            progress=display.show,
            resources=PackageResources(runs / "data"),
            threads=home.settings.threads,
            offline=home.settings.offline,
        )
    _show_result(result, as_json)


@click.command("eval")
@click.argument("reference")
@click.option("--data", required=True, metavar="FILE|datasets/NS/NAME[@REV][:FILE]", help="Held-out rows.")
@click.option("--task", required=True, help="exact-match, json-fields, number or label.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="A task option, e.g. max_new_tokens=16.")
@click.option("--column", "columns", multiple=True, metavar="ROLE=COLUMN", help="E.g. prompt=text completion=category.")
@click.option("--again", is_flag=True, help="Even if this very evaluation was done before.")
@with_yard
@with_json
def eval_(
    reference: str,
    data: str,
    task: str,
    options: tuple[str, ...],
    columns: tuple[str, ...],
    again: bool,
    home: Home,
    as_json: bool,
) -> None:
    """Evaluate a version and keep every example's result as a report: the evidence that gates ask for.

    \b
    Example:
      yard eval team/intents@v7 --data datasets/team/intents-data --task exact-match
    """
    import yaml

    from modelyard.cli.progress import count_bar
    from modelyard.recipes.operations import evaluate_reference

    config = {"name": task, **{key: yaml.safe_load(text) for key, text in key_values(options, "--set").items()}}
    mapping = key_values(columns, "--column")
    with count_bar("evaluating", quiet=as_json) as progress:
        done = evaluate_reference(
            home.open(),
            reference,
            data=data,
            task=config,
            options={"columns": mapping} if mapping else None,
            workspace=Path.cwd(),
            again=again,
            threads=home.settings.threads,
            progress=progress,
        )
    if as_json:
        output.json_object(done.to_dict())
        return
    low, high = done.interval
    output.data(f"{done.version}  accuracy {done.accuracy:.4f} [{low:.4f}, {high:.4f}], n={done.n}")
    output.note(
        ("done before; " if done.cached else "") + f"report {done.report[:16]}; see it with `yard show {done.version}`"
    )
