"""The versions around one: what it was made from, and what looks like it. Knows lineage; does not know files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.catalog import versions
from modelyard.errors import NotFoundError
from modelyard.registry.lineage import base_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context

__all__ = ["Relatives", "is_adapter", "named_version", "relatives_of"]

_SIBLINGS = 3  # other versions of the repo that are looked at


@dataclass
class Relatives:
    """The versions around one, none of them deleted.

    Attributes:
        models: What it was made from; for a merge that names its adapter only, what that was trained on.
        adapters: The adapters that it was made from.
        alike: Where tensors like its own are likely, the likeliest first: the base, what it was made from, its parent, its siblings.
    """

    models: list[VersionRecord] = field(default_factory=list)
    adapters: list[VersionRecord] = field(default_factory=list)
    alike: list[VersionRecord] = field(default_factory=list)


def relatives_of(context: Context, record: VersionRecord) -> Relatives:
    """The versions around one."""
    found = Relatives()
    with context.catalog.read() as connection:
        for source in _by_ids(connection, [target for _, target in record.lineage]):
            (found.adapters if is_adapter(source) else found.models).append(source)
        for adapter in found.adapters if not found.models else []:
            ids = [target for kind, target in adapter.lineage if kind == "finetuned"]
            found.models += [model for model in _by_ids(connection, ids) if not is_adapter(model)]
        try:
            base = [base_record(connection, record)]
        except NotFoundError:
            base = []
        parent = _by_ids(connection, [record.parent] if record.parent else [])
        siblings = _siblings(connection, record)
    seen = {record.id}
    for other in [*base, *found.models, *parent, *siblings]:
        if other.id not in seen and not other.deleted and is_adapter(other) == is_adapter(record):
            seen.add(other.id)
            found.alike.append(other)
    return found


def is_adapter(record: VersionRecord) -> bool:
    """Whether a version is an adapter, by its kind or its files."""
    return record.kind == "adapter" or any(entry.path == "adapter_config.json" for entry in record.files)


def _by_ids(connection: Connection, ids: Sequence[str]) -> list[VersionRecord]:
    """One version for each id that is there and not deleted, in the order of the ids."""
    found: dict[str, VersionRecord] = {}
    for record in versions.load(connection, versions.by_digest(connection, ids)):
        if not record.deleted:
            found.setdefault(record.id, record)
    return [found[each] for each in dict.fromkeys(ids) if each in found]


def named_version(context: Context, id_: str) -> VersionRecord:
    """The version of this id.

    Raises:
        NotFoundError: None that is not deleted.
    """
    with context.catalog.read() as connection:
        found = _by_ids(connection, [id_])
    if not found:
        raise NotFoundError(f"its `derivation` names version `{id_[:12]}`, which is not in this yard")
    return found[0]


def _siblings(connection: Connection, record: VersionRecord) -> list[VersionRecord]:
    """Versions of the same repo, the nearest numbers first: the next one often stays whole and is the best there is."""
    numbers = [record.number + 1, record.number - 1, record.number + 2, record.number - 2]
    seqs = [versions.by_number(connection, record.repo.id, number) for number in numbers if number > 0]
    found = versions.load(connection, [seq for seq in seqs if seq is not None])
    # What was made from this version is better kept by way of it: an offer the other way round would stand in its way.
    made = {each.id for each in found if any(target == record.id for _, target in each.lineage)}
    return [each for each in found if not each.deleted and each.id not in made][:_SIBLINGS]
