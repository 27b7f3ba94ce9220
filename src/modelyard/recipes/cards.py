"""A version's model card, from what the yard knows about it: files, lineage, reports and the run that made it.

A card names the version's id and its reports, so it cannot be among the version's own files; it is made when it is asked
for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import NotFoundError
from modelyard.publish import CardEdge, CardFacts, render_card
from modelyard.weights.inspect import inspect

if TYPE_CHECKING:
    from modelyard.registry import Version, Yard

__all__ = ["card"]


def card(yard: Yard, reference: str, *, description: str = "", license: str | None = None) -> str:  # noqa: A002  # its name
    """The README.md of a version.

    Args:
        yard: Where the version is.
        reference: Which one.
        description: What the model is for.
        license: An SPDX-like name.

    Raises:
        NotFoundError: There is no such version.
        DataError: A report of it is not complete evidence.
    """
    version = yard.resolve(reference)
    names = {node.id: node.names for node in yard.lineage(version, direction="up").nodes}
    found = inspect(yard.files(version))
    reports = yard.reports(version)
    datasets = {str(report["dataset"]) for report in reports if report.get("dataset")}
    made_by = _training(yard, version)
    return render_card(
        CardFacts(
            name=version.repo,
            version=f"v{version.number}",
            id=str(version.id),
            kind=version.kind,
            description=description,
            license=license,
            base_model=_base(yard, version),
            datasets=[name for name in _trained_on(yard, version, names) if name],
            pipeline_tag=found.task,
            architecture=found.architecture,
            parameters=found.parameters,
            dtypes=found.dtypes,
            size=version.size,
            lineage=[CardEdge(edge.type, _name(names, edge.version), str(edge.version)) for edge in version.lineage],
            reports=reports,
            dataset_names={digest: _name(names, digest) for digest in datasets},
            config=made_by,
            inputs=str(version.inputs) if version.inputs else None,
        )
    )


def _name(names: dict[Any, tuple[str, ...]], digest: str) -> str:
    return next(iter(names.get(digest, ())), "")


def _base(yard: Yard, version: Version) -> str | None:
    """The repo of the base in the version's lineage."""
    for node in yard.lineage(version, direction="up").nodes:
        if node.kind == "base" and node.id != version.id and node.names:
            return yard.resolve(node.names[0]).repo
    return None


def _trained_on(yard: Yard, version: Version, names: dict[Any, tuple[str, ...]]) -> list[str]:
    graph = yard.lineage(version, direction="up")
    return [_name(names, source) for _, kind, source in graph.edges if kind == "trained-on"]


def _training(yard: Yard, version: Version) -> dict[str, str]:
    """The options of the training run in the version's lineage, as its record has them."""
    for node in yard.lineage(version, direction="up").nodes:
        if node.kind != "adapter" or not node.names:
            continue
        try:
            made = yard.resolve(node.names[0])
        except NotFoundError:
            continue
        record = yard.run_record(made.inputs) if made.inputs else None
        if record is not None:
            options: dict[str, str] = record.inputs.get("config", {})
            return {name.removeprefix("train."): text for name, text in options.items() if name.startswith("train.")}
    return {}
