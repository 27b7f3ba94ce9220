"""Provenance: what this yard recorded of how a version came to be, as an in-toto Statement with a SLSA-shaped predicate.

Unsigned, and by a builder that nobody audited: it claims no SLSA level. The same state of the yard gives the same
statement. Knows runs and lineage; reads no files.
"""

from __future__ import annotations

import json
import re
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from modelyard.digest import Digest

if TYPE_CHECKING:
    from datetime import datetime

    from modelyard.registry.model import LineageGraph, RunRecord, Version
    from modelyard.registry.yard import Yard

__all__ = ["BUILDER", "BUILD_TYPE", "PREDICATE_TYPE", "STATEMENT_TYPE", "render", "statement"]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:modelyard:build:1"
BUILDER = "urn:modelyard:builder"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OWN = "modelyard"


def statement(yard: Yard, reference: str | Version) -> dict[str, Any]:
    """The statement about a version; see `Yard.provenance`."""
    version = yard.resolve(reference)
    run = yard.run_record(version.inputs) if version.inputs is not None else None
    recorded = dict(run.inputs) if run is not None else {}
    packages = recorded.get("packages")
    packages = dict(packages) if isinstance(packages, dict) else {}
    graph = yard.lineage(version, direction="up")
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": _parameters(version, run, recorded),
        "resolvedDependencies": [
            *_sources(graph),
            *_inputs(recorded, {node.id for node in graph.nodes}),
            *_packages(packages),
        ],
    }
    builder: dict[str, Any] = {"id": BUILDER}
    if _OWN in packages:
        builder["version"] = {_OWN: str(packages[_OWN])}
    details: dict[str, Any] = {"builder": builder}
    if run is not None:
        details["metadata"] = _metadata(run)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": entry.path, "digest": {"blake3": str(entry.blake3), "sha256": entry.sha256}}
            for entry in version.files
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }


def render(value: dict[str, Any]) -> str:
    """A statement as the text that is printed: keys in order, one text for one value."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _parameters(version: Version, run: RunRecord | None, recorded: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"version": str(version.id), "repoType": version.repo_type}
    if version.kind is not None:
        found["kind"] = version.kind
    if version.parent is not None:
        found["parent"] = str(version.parent)
    if version.inputs is not None:
        found["inputs"] = str(version.inputs)
    if run is not None:
        found["step"] = run.step
        found["config"] = recorded.get("config", {})
    return found


def _sources(graph: LineageGraph) -> list[dict[str, Any]]:
    """Every version that the lineage names, with the edges that lead to it."""
    names = {node.id: node for node in graph.nodes}
    edges: dict[Digest, list[tuple[Digest, str]]] = {}
    for child, kind, source in graph.edges:
        edges.setdefault(source, []).append((child, kind))
    return [
        {
            "name": min(names[source].names, default=source.short) if source in names else source.short,
            "uri": f"urn:modelyard:version:{source}",
            "digest": {"blake3": str(source)},
            "annotations": {"lineage": [{"edge": kind, "of": str(child)} for child, kind in sorted(found)]},
        }
        for source, found in sorted(edges.items())
    ]


def _inputs(recorded: dict[str, Any], named: set[Digest]) -> list[dict[str, Any]]:
    """What else a run read: files by digest, or what it was called."""
    inputs = recorded.get("inputs")
    found = []
    for name, value in sorted(inputs.items()) if isinstance(inputs, dict) else ():
        text = str(value)
        if _DIGEST.fullmatch(text):
            if Digest(text) not in named:
                found.append({"name": name, "digest": {"blake3": text}})
        else:
            found.append({"name": name, "uri": quote(text, safe=":/@._-~")})
    return found


def _packages(packages: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "uri": f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(str(version))}"}
        for name, version in sorted(packages.items())
    ]


def _metadata(run: RunRecord) -> dict[str, str]:
    found = {"invocationId": run.key, "startedOn": _moment(run.started_at)}
    if run.finished_at is not None:
        found["finishedOn"] = _moment(run.finished_at)
    return found


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
