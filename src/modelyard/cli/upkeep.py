"""`yard du` and `yard compact`: what takes how much, and keeping what is not in use in fewer bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard

if TYPE_CHECKING:
    from modelyard.registry.savings import Compaction
    from modelyard.registry.usage import RepoUsage, Usage, VersionUsage

__all__ = ["compact", "du"]


@click.command()
@click.argument("reference", required=False, metavar="[[datasets/]NAMESPACE/NAME[@REV]]")
@with_yard
@with_json
def du(reference: str | None, home: Home, as_json: bool) -> None:
    """Show what takes how much: each repo, or each version of one, or one version.

    UNIQUE is in no other version (or repo). FREES is what deleting it would free after `yard gc`: nothing of what another
    version needs, such as a base from whose tensors others are made. HELD BY says what keeps a version.

    \b
    Examples:
      yard du
      yard du team/intents
      yard du team/intents@v3
    """
    usage = home.open().usage(reference)
    if as_json:
        output.json_object(usage.to_dict())
        return
    if reference is None:
        _list_repos(usage)
    else:
        _list_versions(usage.repos[0])
    output.note(
        f"{output.human_bytes(usage.logical)} in versions, {output.human_bytes(usage.stored)} stored,"
        f" {output.human_bytes(usage.garbage)} garbage, {output.human_bytes(usage.dead)} dead in packs"
    )
    if usage.garbage:
        output.note("`yard gc` frees garbage; `yard compact` keeps what is not in use in fewer bytes")


def _list_repos(usage: Usage) -> None:
    rows = [
        (repo.name, *(output.human_bytes(size) for size in (repo.logical, repo.stored, repo.unique, repo.freed)))
        for repo in usage.repos
    ]
    output.table(("REPO", "SIZE", "STORED", "UNIQUE", "FREES"), rows)


def _list_versions(repo: RepoUsage) -> None:
    rows = [
        (
            version.name.rpartition("@")[2] + (" (deleted)" if version.deleted else ""),
            *(output.human_bytes(size) for size in (version.logical, version.stored, version.unique, version.freed)),
            _encodings(version),
            "; ".join(version.held_by) or "-",
        )
        for version in repo.versions
    ]
    output.table(("VERSION", "SIZE", "STORED", "UNIQUE", "FREES", "KEPT AS", "HELD BY"), rows)


def _encodings(version: VersionUsage) -> str:
    """How a version's bytes are kept, in whole percent, the largest share first."""
    total = sum(version.encodings.values())
    in_order = sorted(version.encodings.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {100 * size // total}%" for kind, size in in_order) or "-"


@click.command()
@click.argument("references", nargs=-1, metavar="[REFERENCE]...")
@click.option("--dry-run", is_flag=True, help="Encode everything, change nothing, and print what it would save.")
@click.option(
    "--idle-days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    help="Leave alone what was loaded or checked out in these days.",
)
@with_yard
@with_json
def compact(references: tuple[str, ...], dry_run: bool, idle_days: float, home: Home, as_json: bool) -> None:
    """Keep versions that are not in use in fewer bytes: computed from their base, as a delta, or packed.

    What a branch, tag, alias, deployment or recent use names stays whole and fast. Everything else reads as before, bit for
    bit, and takes longer to load the first time. Interrupted, the same command goes on where it was. `yard gc` frees the space.

    \b
    Examples:
      yard compact --dry-run
      yard compact
      yard compact team/intents@v3 team/intents@v4
    """
    from modelyard.cli.progress import byte_bar

    yard = home.open()
    with byte_bar("compact", quiet=as_json) as progress:
        done = yard.compact(references, idle_days=idle_days, dry_run=dry_run, progress=progress)
    if as_json:
        output.json_object(done.to_dict())
        return
    _show(done)


def _show(done: Compaction) -> None:
    if not done.segments and not done.files:
        output.note("nothing to compact: what is not in use is compact already")
    else:
        rows = [(kind, done.segments[kind], output.human_bytes(done.after[kind])) for kind in done.segments]
        output.table(("KEPT AS", "SEGMENTS", "BYTES"), rows)
        before = sum(done.before.values())
        output.data(
            f"{'would save' if done.dry_run else 'saves'} {output.human_bytes(max(done.saved, 0))}"
            f" of {output.human_bytes(before)}"
        )
    for segment, why in done.refused.items():
        output.note(f"segment {segment[:16]} stays as it was: {why}")
    for note in done.notes:
        output.note(note)
    if done.files and not done.dry_run:
        output.note(f"{done.files} files need not be whole any more; `yard gc` frees them")
