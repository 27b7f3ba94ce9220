"""`yard gc`, `yard check` and `yard rebuild`: removing what nothing needs, looking for faults, making a lost catalog again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

if TYPE_CHECKING:
    from modelyard.registry.collection import Collection
    from modelyard.registry.findings import Finding

__all__ = ["check", "gc", "rebuild"]

_WORDS = {
    "files": "files",
    "packs": "packs",
    "manifests": "manifests",
    "reports": "reports",
    "links": "folders of links",
    "scratch": "scratch folders",
    "tmp": "leftovers of dead writers",
}


@click.command()
@click.option("--now", is_flag=True, help="Wait for whoever is at work instead of the grace period, and remove today.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option(
    "--grace-days", type=click.FloatRange(min=0), default=14, show_default=True, metavar="N", help="How long marks age."
)
@click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0),
    default=None,
    metavar="N",
    help="With --now: wait no longer than this.",
)
@click.option("--force", is_flag=True, help="Remove more than half of the yard's objects, too.")
@with_yard
@with_json
def gc(
    now: bool, dry_run: bool, grace_days: float, wait_seconds: float | None, force: bool, home: Home, as_json: bool
) -> None:
    """Remove what nothing needs: objects are marked first, and go in a later run, when their mark has aged.

    Whatever a version, deployment, or somebody at work needs stays. Deleted versions whose bytes went cannot come back.

    \b
    Examples:
      yard gc
      yard gc --now --dry-run
      yard gc --grace-days 3
    """
    done = home.open().collect(
        now=now,
        dry_run=dry_run,
        grace_days=grace_days,
        force=force,
        wait_seconds=wait_seconds,
        progress=None if as_json else output.note,
    )
    if as_json:
        output.json_object(done.to_dict())
        return
    _show_collection(done, grace_days)


def _show_collection(done: Collection, grace_days: float) -> None:
    went = ", ".join(f"{count} {_WORDS[area]}" for area, count in done.removed.items()) or "nothing"
    verb = "would remove" if done.dry_run else "removed"
    output.data(f"{verb} {went} ({output.human_bytes(done.freed)})")
    if done.left:
        output.note(f"{done.left} more are marked; `yard gc` removes them once their marks are {grace_days:g} days old")
    if done.waiting:
        waiting = ", ".join(f"{each.purpose} ({each.owner})" for each in done.waiting)
        output.note(f"still at work, so that what they may need stays: {waiting}")
    if done.collected:
        output.note(f"{len(done.collected)} deleted versions cannot come back any more")
    if done.future:
        output.note(f"{done.future} marks were from the future and were made anew: look at the clocks of the hosts")


@click.command()
@click.option("--read-data", is_flag=True, help="Hash every stored byte, too.")
@click.option("--read-data-subset", metavar="N%", default=None, help="Hash so many percent, another part every day.")
@click.option("--repair", is_flag=True, help="Make anew what can be; move other damaged objects to quarantine/.")
@with_yard
@with_json
def check(read_data: bool, read_data_subset: str | None, repair: bool, home: Home, as_json: bool) -> int:
    """Look for faults: what is missing, of the wrong size or kind, or not what the catalog and journal say.

    Exits with 8 when something that a version needs is damaged, with 3 when there are warnings only.

    \b
    Examples:
      yard check
      yard check --read-data
      yard check --read-data-subset 10% --json
    """
    from modelyard.cli.progress import count_bar
    from modelyard.registry.check import parse_percent

    subset = parse_percent(read_data_subset) if read_data_subset is not None else None
    yard = home.open()
    with count_bar("reading", quiet=as_json) as update:
        report = yard.check(read_data=read_data, subset=subset, repair=repair, progress=update)
    if as_json:
        output.json_object(report.to_dict())
        return report.exit_code
    for finding in report.findings:
        _show_finding(finding)
    looked = ", ".join(f"{count} {what}" for what, count in report.checked.items() if what != "bytes")
    read = f", {output.human_bytes(report.checked['bytes'])} read" if "bytes" in report.checked else ""
    output.note(f"looked at {looked}{read}")
    if report.exit_code == 0:
        output.data("no faults found")
    return report.exit_code


def _show_finding(finding: Finding) -> None:
    state = "repaired" if finding.repaired else finding.level
    output.data(f"{state}: {finding.object}: {finding.text}")
    if finding.holders:
        output.data(f"  needed by {', '.join(finding.holders)}")
    if finding.hint and not finding.repaired:
        output.data(f"  {finding.hint}")


@click.command()
@click.option("--force", is_flag=True, help="Leave out what is damaged or missing, and say what that was.")
@with_yard
@with_json
def rebuild(force: bool, home: Home, as_json: bool) -> None:
    """Make a lost catalog again, from the journal, the manifests, the reports, the packs and the files.

    Repos, versions and numbers, refs, gates, lineage, reports, metadata, runs, deletions and the log come back; tokens
    and deployments do not. The catalog must be gone: move a damaged one aside first.

    \b
    Examples:
      yard rebuild
      yard rebuild --force --json
    """
    from modelyard.app import rebuild_catalog
    from modelyard.cli.progress import count_bar

    with count_bar("journal", quiet=as_json) as update:
        done = rebuild_catalog(home.settings, force=force, progress=lambda count: update(count, count))
    if as_json:
        output.json_object(done.to_dict())
        return
    for problem in done.problems:
        output.note(f"left out: {problem}")
    rows = ", ".join(f"{count} {what}" for what, count in done.counts.items())
    output.data(f"rebuilt from {done.entries} journal entries: {rows}")
    output.note("see that all is well: yard check")
