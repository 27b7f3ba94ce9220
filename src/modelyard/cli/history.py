"""`yard log`, `diff` and `lineage`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, key_values, with_json, with_yard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.registry import LineageGraph, LogEntry
    from modelyard.registry.diff import VersionDiff

__all__ = ["diff", "lineage", "log"]


@click.command()
@click.argument("reference", metavar="[datasets/]NAMESPACE/NAME[@REV]")
@click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="Only about versions whose metadata says so; several: all."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many entries.")
@with_yard
@with_json
def log(reference: str, where: tuple[str, ...], limit: int | None, home: Home, as_json: bool) -> None:
    """Show every change of a repo, newest first: commits, promotions, rollbacks, deletions, and by whom.

    With a REV: what moved a branch, tag or alias, or a version with those before it.

    \b
    Examples:
      yard log team/intents
      yard log team/intents@production
      yard log team/intents --where seed=1
    """
    entries = home.open().log(reference, limit=limit, where=key_values(where, "--where"))
    if as_json:
        output.json_object({"log": [_entry_json(entry) for entry in entries]})
        return
    output.table(
        ("WHEN (UTC)", "WHO", "WHAT", "REF", "VERSION", "WAS"),
        [
            (f"{e.at:%Y-%m-%d %H:%M:%S}", e.author, e.action, e.ref or "-", e.version or "-", e.previous or "-")
            for e in entries
        ],
    )


def _entry_json(entry: LogEntry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "at": entry.at.isoformat(),
        "author": entry.author,
        "action": entry.action,
        "repo": entry.repo,
        "ref": entry.ref,
        "version": entry.version,
        "previous": entry.previous,
        "detail": entry.detail,
    }


@click.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--norms", is_flag=True, help="Also how much each changed tensor changed (reads all weights).")
@with_yard
@with_json
def diff(old: str, new: str, norms: bool, home: Home, as_json: bool) -> None:
    """Compare two versions: files, configuration, tokenizer, chat template, reports and tensors.

    \b
    Example:
      yard diff team/intents@v1 team/intents@v2 --norms
    """
    yard = home.open()
    found = yard.diff(yard.resolve(old), yard.resolve(new), norms=norms)
    if as_json:
        output.json_object(found.to_dict())
        return
    for line in _changes(found):
        output.data(line)


def _changes(found: VersionDiff) -> Iterator[str]:
    yield f"{found.a} -> {found.b}" + ("  the same files" if found.same else "")
    for sign, names in (("+", found.files_added), ("-", found.files_removed), ("~", found.files_changed)):
        yield from (f"{sign} {name}" for name in names)
    for change in found.config:
        yield f"~ {change.file}: {change.key}  {change.before} -> {change.after}"
    if found.tokenizer_changed:
        yield "~ tokenizer"
    if found.chat_template_changed:
        yield "~ chat template"
    for report in found.reports:
        before = "-" if report.before is None else f"{report.before:.4g}"
        after = "-" if report.after is None else f"{report.after:.4g}"
        yield f"~ report {report.task}: {report.metric}  {before} -> {after}"
    tensors = found.tensors
    for sign, names in (("+", tensors.added), ("-", tensors.removed)):
        yield from (f"{sign} tensor {name}" for name in names)
    for tensor in tensors.changed:
        norm = "" if tensor.relative_norm is None else f"  relative change {tensor.relative_norm:.3g}"
        yield f"~ tensor {tensor.name}{norm}"


@click.command()
@click.argument("reference")
@click.option("--direction", type=click.Choice(("up", "down", "both")), default="both", show_default=True)
@with_yard
@with_json
def lineage(reference: str, direction: str, home: Home, as_json: bool) -> None:
    """Show what a version was made from (up) and what was made from it (down).

    \b
    Example:
      yard lineage team/intents@production
    """
    yard = home.open()
    graph = yard.lineage(yard.resolve(reference), direction=direction)  # type: ignore[arg-type]  # click checked it
    if as_json:
        output.json_object(graph.to_dict())
        return
    for line in _tree(graph):
        output.data(line)


def _tree(graph: LineageGraph) -> list[str]:
    names = {
        node.id: (node.names[0] if node.names else f"{node.id.short[:12]} (not in this yard)") for node in graph.nodes
    }
    kinds = {node.id: node.kind or node.repo_type or "" for node in graph.nodes}
    lines = [f"{names[graph.root]}  {kinds[graph.root]}"]

    def walk(here: str, depth: int, up: bool, seen: frozenset[str]) -> None:
        for child, edge, source in graph.edges:
            near, far = (child, source) if up else (source, child)
            if near == here and far not in seen:
                arrow = "<-" if up else "->"
                lines.append(f"{'  ' * depth}{arrow} {edge}: {names[far]}  {kinds[far]}")
                walk(far, depth + 1, up, seen | {far})

    walk(graph.root, 1, True, frozenset({str(graph.root)}))
    walk(graph.root, 1, False, frozenset({str(graph.root)}))
    return lines
