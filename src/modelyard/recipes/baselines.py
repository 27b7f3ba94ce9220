"""Which version a recipe would promote, and which one its gate compares it with. Reads the yard only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import NotFoundError

if TYPE_CHECKING:
    from modelyard.recipes.context import Context
    from modelyard.registry import LogEntry, Version

__all__ = ["baseline", "candidate", "holder", "last_move"]


def candidate(context: Context) -> Version:
    """What the recipe would promote: the merged version, or the adapter where it does not merge."""
    return context.version("merge" if context.recipe.merge else "train")


def baseline(context: Context) -> Version | None:
    """What the recipe's gate compares the candidate with; None where there is nothing yet, or nothing to compare.

    Where the candidate holds the alias already, the incumbent is the version that it replaced: a second run then asks
    the same question as the first and finds it answered.
    """
    gate = context.recipe.gate
    if gate is None or gate.better_than is None:
        return None
    if gate.better_than == "base":
        return context.version("base")
    if gate.better_than != "incumbent":
        return context.yard.resolve(gate.better_than)
    found, proposed = holder(context), candidate(context)
    if found is None or found.id != proposed.id:
        return found
    replaced = next(
        (move.previous for move in _moves(context) if move.action == "promote" and move.version == proposed.name), None
    )
    return None if replaced is None else _resolved(context, replaced)


def holder(context: Context) -> Version | None:
    """The version that the recipe's alias is at now, or None."""
    alias = context.recipe.promote
    return None if alias is None else _resolved(context, f"{context.recipe.repo}@{alias}")


def last_move(context: Context) -> LogEntry | None:
    """The log's newest entry about the recipe's alias: a promotion or a rollback; None where it never moved."""
    return next(iter(_moves(context)), None)


def _moves(context: Context) -> list[LogEntry]:
    """Promotions and rollbacks of the recipe's alias, the newest first."""
    if holder(context) is None:
        return []
    entries = context.yard.log(f"{context.recipe.repo}@{context.recipe.promote}")
    return [entry for entry in entries if entry.action in {"promote", "rollback"}]


def _resolved(context: Context, reference: str) -> Version | None:
    try:
        return context.yard.resolve(reference)
    except NotFoundError:
        return None
