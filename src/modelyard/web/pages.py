"""What each page shows, gathered from a yard as plain values for its template. Knows no HTTP and no HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import DataError
from modelyard.evaluation.comparison import Comparison, compare
from modelyard.evaluation.reports import ReadReport, read
from modelyard.registry import Reference
from modelyard.web.lineage import Node, Picture, draw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.registry import Ref, Repo, RepoType, Version, Yard

__all__ = ["EXAMPLES", "PAGE", "RepoPage", "ReportView", "ReposPage", "SourceView", "VersionPage"]

PAGE = 50
"""Rows on one page of a list."""

EXAMPLES = 20
"""Wrong answers shown for a report."""


@dataclass(frozen=True)
class ReposPage:
    """Repos in order of their names, and where the next page starts."""

    repos: list[Repo]
    following: tuple[str, str] | None

    @classmethod
    def gather(cls, yard: Yard, after: tuple[str, RepoType] | None) -> ReposPage:
        """The repos after `(name, type)`."""
        found = yard.repos(limit=PAGE + 1, after=after)
        page = found[:PAGE]
        return cls(page, (page[-1].name, page[-1].repo_type) if len(found) > PAGE else None)


@dataclass(frozen=True)
class RepoPage:
    """A repo's versions, the newest first, with the refs at each, and where the next page starts."""

    reference: Reference
    versions: list[Version]
    refs: dict[str, list[Ref]]
    following: int | None

    @classmethod
    def gather(cls, yard: Yard, repo: str, repo_type: RepoType, before: int | None) -> RepoPage:
        """The versions with numbers below `before`; `NotFoundError` where there is no such repo."""
        found = yard.versions(repo, repo_type, limit=PAGE + 1, before=before)
        page = found[:PAGE]
        following = page[-1].number if len(found) > PAGE else None
        return cls(Reference(repo_type, repo), page, _refs_by_version(yard, repo, repo_type), following)


@dataclass(frozen=True)
class SourceView:
    """An edge of the lineage: how, from which version; its name is None where this yard has none for it."""

    how: str
    id: str
    name: str | None


@dataclass(frozen=True)
class ReportView:
    """A report, checked; a damaged or incomplete one has only its `problem`.

    Attributes:
        report: The report, or None.
        problem: Why it is no evidence, or None.
        dataset: The data set's name, or None.
        comparisons: The paired comparison with each source that was evaluated on the same examples, by name.
        wrong: The first examples that did not score 1: id, expected, output.
        more_wrong: How many there are beyond them.
    """

    report: ReadReport | None
    problem: str | None = None
    dataset: str | None = None
    comparisons: tuple[tuple[str, Comparison], ...] = ()
    wrong: tuple[tuple[str, str, str], ...] = ()
    more_wrong: int = 0


@dataclass(frozen=True)
class VersionPage:
    """Everything about one version."""

    version: Version
    refs: list[Ref]
    sources: list[SourceView]
    picture: Picture
    reports: list[ReportView]

    @classmethod
    def gather(cls, yard: Yard, reference: str) -> VersionPage:
        """The version that `reference` names; `NotFoundError` where there is none."""
        version = yard.resolve(reference)
        graph = yard.lineage(version)
        names = {str(node.id): node.names[0] for node in graph.nodes if node.names}
        nodes = [
            Node(str(node.id), names.get(str(node.id), ""), node.kind or node.repo_type or "") for node in graph.nodes
        ]
        edges = [(str(child), how, str(source)) for child, how, source in graph.edges]
        models = {names[str(edge.version)] for edge in version.lineage if str(edge.version) in names}
        others = {name: yard.reports(name) for name in sorted(models) if not name.startswith("datasets/")}
        return cls(
            version=version,
            refs=_refs_by_version(yard, version.repo, version.repo_type).get(str(version.id), []),
            sources=[
                SourceView(edge.type, str(edge.version), names.get(str(edge.version))) for edge in version.lineage
            ],
            picture=draw(nodes, edges, str(version.id)),
            reports=[_view(report, _dataset_names(names), others) for report in yard.reports(version)],
        )


def _dataset_names(names: Mapping[str, str]) -> dict[str, str]:
    return {version: name for version, name in names.items() if name.startswith("datasets/")}


def _refs_by_version(yard: Yard, repo: str, repo_type: RepoType) -> dict[str, list[Ref]]:
    """Aliases first: they are what is in use."""
    found: dict[str, list[Ref]] = {}
    for ref in sorted(yard.refs(repo, repo_type), key=lambda ref: (ref.type != "alias", ref.type, ref.name)):
        found.setdefault(str(ref.version), []).append(ref)
    return found


def _view(
    report: Mapping[str, Any], datasets: Mapping[str, str], others: Mapping[str, list[dict[str, Any]]]
) -> ReportView:
    try:
        checked = read(report)
    except DataError as error:
        return ReportView(None, problem=error.message)
    wrong = [
        (str(example["id"]), str(example.get("expected", "")), str(example.get("output", "")))
        for example in report["examples"]
        if example["score"] < 1
    ]
    return ReportView(
        report=checked,
        dataset=datasets.get(checked.dataset),
        comparisons=tuple(_comparisons(report, checked, others)),
        wrong=tuple(wrong[:EXAMPLES]),
        more_wrong=max(0, len(wrong) - EXAMPLES),
    )


def _comparisons(
    report: Mapping[str, Any], checked: ReadReport, others: Mapping[str, list[dict[str, Any]]]
) -> list[tuple[str, Comparison]]:
    found = []
    for name, reports in others.items():
        for other in reports:
            if other.get("data_digest") != checked.data_digest:
                continue
            try:
                found.append((name, compare(other, report)))
            except DataError:
                continue  # another task on the same examples, or incomplete: no comparison to show
    return found
