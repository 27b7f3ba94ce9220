"""Whether a version's weights are finite numbers: looked at once for each file, remembered in the catalog.

A gate judges reports; weights with a NaN may still answer every example of one. Knows files, not what a model computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update

from modelyard.catalog.schema import files as table
from modelyard.digest import Digest
from modelyard.errors import GateRefusedError
from modelyard.registry.model import version_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version

__all__ = ["are_finite", "count", "note_finite", "refuse_nonfinite"]


def refuse_nonfinite(context: Context, record: VersionRecord, alias: str) -> None:
    """Refuse (`GateRefusedError`, code ``nonfinite``) a version whose weights hold NaN or infinity."""
    broken = {path: found for path, found in count(context, record).items() if found}
    if not broken:
        return
    name = version_of(record).name
    what = ", ".join(f"{path} ({found} elements)" for path, found in broken.items())
    raise GateRefusedError(
        f"`{name}` is not promoted to `{alias}`: its weights hold NaN or infinity: {what}",
        hint=f"yard doctor {name} names the tensors; a gate with `allow_nonfinite: true` lets them pass",
        code="nonfinite",
        nonfinite=broken,
    )


def are_finite(context: Context, versions: Iterable[Version]) -> bool:
    """Whether every weight file of these versions was looked at, and holds finite numbers only; reads no file."""
    digests = _weights(versions)
    with context.catalog.read() as connection:
        rows = connection.execute(select(table.c.digest, table.c.nonfinite).where(table.c.digest.in_(digests))).all()
    return {row.digest for row in rows if row.nonfinite == 0} == digests


def note_finite(context: Context, versions: Iterable[Version]) -> None:
    """Keep that every weight file of these versions holds finite numbers only: whoever says so has read each value."""
    digests = _weights(versions)
    unknown = table.c.digest.in_(digests) & table.c.nonfinite.is_(None)
    with context.change() as tx:
        tx.connection.execute(update(table).where(unknown).values(nonfinite=0))


def _weights(versions: Iterable[Version]) -> set[str]:
    return {str(entry.blake3) for each in versions for entry in each.files if entry.path.endswith(".safetensors")}


def count(context: Context, record: VersionRecord) -> dict[str, int]:
    """How many elements are NaN or infinite, by safetensors file; reads only what nobody has looked at."""
    from modelyard.weights.values import count_nonfinite

    weights = {file.path: file.blake3 for file in record.files if file.path.endswith(".safetensors")}
    with context.catalog.read() as connection:
        rows = connection.execute(
            select(table.c.digest, table.c.nonfinite).where(table.c.digest.in_(weights.values()))
        ).all()
    known = {row.digest: row.nonfinite for row in rows if row.nonfinite is not None}
    new = {}
    for digest in set(weights.values()) - known.keys():
        context.store.verify_file(Digest(digest))
        new[digest] = count_nonfinite(context.store.file_path(Digest(digest)))
    if new:
        with context.change() as tx:
            for digest, found in new.items():
                tx.connection.execute(update(table).where(table.c.digest == digest).values(nonfinite=found))
    return {path: (known | new)[digest] for path, digest in weights.items()}
