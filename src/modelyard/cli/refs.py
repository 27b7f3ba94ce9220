"""`yard tag`, `delete`, `undelete`, `gate`, `promote` and `rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.cli.versions import version_json

if TYPE_CHECKING:
    from modelyard.registry import Promotion

__all__ = ["delete", "gate", "promote", "rollback", "tag", "undelete"]


@click.command()
@click.argument("reference")
@click.argument("name")
@with_yard
@with_json
def tag(reference: str, name: str, home: Home, as_json: bool) -> None:
    """Give a version a NAME that never moves.

    \b
    Example:
      yard tag team/intents@v7 release-2
    """
    yard = home.open()
    version = yard.resolve(reference)
    yard.tag(version, name)
    if as_json:
        output.json_object(version_json(version, tag=name))
    else:
        output.data(f"{version.repo}@{name}  {version.name}")


@click.command()
@click.argument("reference")
@click.option("--force", is_flag=True, help="Even when a ref, a deployment or a derived version still uses it.")
@with_yard
@with_json
def delete(reference: str, force: bool, home: Home, as_json: bool) -> None:
    """Delete a version (`repo@v7`), a tag or a branch. A version can be brought back with `yard undelete`.

    \b
    Example:
      yard delete team/intents@v3
    """
    deleted = home.open().delete(reference, force=force)
    if as_json:
        output.json_object({"deleted": deleted.what, "name": deleted.name, "released": list(deleted.released)})
    else:
        back = f"; `yard undelete {deleted.name}` brings it back" if deleted.what == "version" else ""
        output.note(f"deleted {deleted.name}{back}")


@click.command()
@click.argument("reference")
@with_yard
@with_json
def undelete(reference: str, home: Home, as_json: bool) -> None:
    """Take the deletion of a version back.

    \b
    Example:
      yard undelete team/intents@v3
    """
    version = home.open().undelete(reference)
    if as_json:
        output.json_object(version_json(version))
    else:
        output.note(f"{version.name} is back")


@click.command()
@click.argument("repo")
@click.argument("alias")
@click.option("--min", "floor", type=float, help="The metric must reach this value.")
@click.option("--better-than", metavar="base|incumbent|REFERENCE", help="It must beat this, significantly.")
@click.option("--metric", default="accuracy", show_default=True)
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Significance level of the comparison.")
@click.option("--remove", is_flag=True, help="Demand nothing any more.")
@with_yard
@with_json
def gate(
    repo: str,
    alias: str,
    floor: float | None,
    better_than: str | None,
    metric: str,
    alpha: float,
    remove: bool,
    home: Home,
    as_json: bool,
) -> None:
    """Show or set what a version must prove before ALIAS of REPO may move to it.

    \b
    Example:
      yard gate team/intents production --min 0.9 --better-than incumbent
    """
    yard = home.open()
    if remove:
        yard.set_gate(repo, alias, None)
    elif floor is not None or better_than is not None:
        rule: dict[str, Any] = {"metric": metric, "alpha": alpha}
        rule.update(
            {} if floor is None else {"min": floor}, **({} if better_than is None else {"better_than": better_than})
        )
        yard.set_gate(repo, alias, rule)
    current = yard.gate(repo, alias)
    if as_json:
        output.json_object({"repo": repo, "alias": alias, "gate": current})
    elif current is None:
        output.note(f"{repo}@{alias} demands nothing")
    else:
        output.data(f"{repo}@{alias}  " + "  ".join(f"{key}={value}" for key, value in sorted(current.items())))


@click.command()
@click.argument("reference")
@click.option("--to", "alias", required=True, metavar="ALIAS", help="The alias to move, e.g. production.")
@click.option("--expect", metavar="REFERENCE", help="Only if the alias is still there.")
@with_yard
@with_json
def promote(reference: str, alias: str, expect: str | None, home: Home, as_json: bool) -> None:
    """Move an alias to a version, once the alias's gate passes on that version's own reports.

    \b
    Example:
      yard promote team/intents@v7 --to production
    """
    _moved(home.open().promote(reference, to=alias, expect=expect), as_json)


@click.command()
@click.argument("repo")
@click.argument("alias")
@with_yard
@with_json
def rollback(repo: str, alias: str, home: Home, as_json: bool) -> None:
    """Move ALIAS of REPO back to the version it pointed at before the last promotion; repeated, further back.

    \b
    Example:
      yard rollback team/intents production
    """
    _moved(home.open().rollback(repo, alias), as_json)


def _moved(promotion: Promotion, as_json: bool) -> None:
    if as_json:
        output.json_object(
            {
                "repo": promotion.repo,
                "alias": promotion.alias,
                "moved": promotion.moved,
                "version": version_json(promotion.version),
                "previous": version_json(promotion.previous) if promotion.previous else None,
                "verdict": promotion.verdict,
            }
        )
        return
    output.data(f"{promotion.repo}@{promotion.alias}  {promotion.version.name}")
    if not promotion.moved:
        output.note("it was there already")
    else:
        before = promotion.previous.name if promotion.previous else "nothing"
        output.note(f"was {before}" + ("; its gate passed" if promotion.verdict else ""))
