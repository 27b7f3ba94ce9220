"""Model cards: a README.md with the front matter that the Hugging Face Hub reads, made from plain values.

A card says what a version is, what it was made from, what was measured and how to use it. It states only what it is
given: no report, no results. Every value is escaped, so a hostile name stays a name. This module knows no registry: the
caller gathers `CardFacts`.

>>> card = render_card(CardFacts(name="team/intents", version="v7", id="ab" * 32, license="apache-2.0"))
>>> card.splitlines()[:2]
['---', 'license: apache-2.0']
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from modelyard.errors import DataError
from modelyard.evaluation.reports import ReadReport, read
from modelyard.publish._markdown import block, code, line, table, text

__all__ = ["CardEdge", "CardFacts", "render_card"]

LIBRARY = "transformers"
# Licences the Hub knows by these names; any other is `other` with its name beside it.
_LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-4.0", "cc-by-nc-4.0",
    "cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "llama4", "mit", "mpl-2.0", "odc-by", "openrail", "openrail++", "unlicense",
}  # fmt: skip
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?", re.ASCII)
_RELATION = {"finetuned": "finetune", "adapter": "adapter", "merged": "finetune", "quantized": "quantized"}


@dataclass(frozen=True)
class CardEdge:
    """What the version was made from.

    Attributes:
        type: The kind of edge, such as `finetuned` or `trained-on`.
        name: The source as a reference, or empty where it has no name.
        id: The source's version id.
    """

    type: str
    name: str
    id: str


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of; everything but the first three may be missing, and is left out then.

    Attributes:
        name: The repo, such as `team/intents`.
        version: Its version there, such as `v7`.
        id: The version's id: the digest of its manifest.
        kind: `base`, `adapter`, `merged`, ...
        description: What the model is for, in the words of its author.
        license: SPDX-like name.
        base_model: The base as a repo or Hub name.
        datasets: Names of data sets it was trained on.
        languages: Language codes.
        tags: Further tags.
        pipeline_tag: The task as the Hub calls it.
        architecture: Such as `LlamaForCausalLM`.
        parameters: How many.
        dtypes: Parameters by dtype.
        size: Bytes of all files.
        lineage: What it was made from.
        reports: Evaluation reports of this very version.
        dataset_names: Data set names by version id, for the reports.
        config: Training configuration.
        inputs: Digest of the training run's inputs.
    """

    name: str
    version: str
    id: str
    kind: str | None = None
    description: str = ""
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    languages: Sequence[str] = ()
    tags: Sequence[str] = ()
    pipeline_tag: str | None = "text-generation"
    architecture: str | None = None
    parameters: int | None = None
    dtypes: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None
    lineage: Sequence[CardEdge] = ()
    reports: Sequence[Mapping[str, Any]] = ()
    dataset_names: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: str | None = None


def render_card(facts: CardFacts) -> str:
    """The whole README.md.

    Raises:
        DataError: If a report is not complete evidence (`incomplete_evidence`), or is about another version
            (`stale_evidence`).
    """
    reports = [_own(report, facts) for report in facts.reports]
    front = yaml.safe_dump(_front_matter(facts, reports), sort_keys=False, allow_unicode=True, width=10_000)
    sections = [
        f"# {text(facts.name)} {text(facts.version)}",
        *([text(facts.description)] if facts.description else []),
        _identity(facts),
        *_results(facts, reports),
        *_usage(facts),
        *_origin(facts),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _own(report: Mapping[str, Any], facts: CardFacts) -> ReadReport:
    checked = read(report)
    if checked.model != facts.id:
        raise DataError(
            f"{checked.label} is not about {facts.name}@{facts.version} ({facts.id[:12]})",
            hint="a card shows results of its own version only",
            code="stale_evidence",
        )
    return checked


def _front_matter(facts: CardFacts, reports: Sequence[ReadReport]) -> dict[str, Any]:
    """The block that the Hub indexes; each string is one line, so none can end the block."""
    found: dict[str, Any] = {}
    if facts.license:
        known = facts.license.lower() in _LICENSES
        found["license"] = facts.license.lower() if known else "other"
        if not known:
            found["license_name"] = line(facts.license)
    if facts.languages:
        found["language"] = [line(language) for language in facts.languages]
    found["library_name"] = "peft" if facts.kind == "adapter" else LIBRARY
    if facts.pipeline_tag:
        found["pipeline_tag"] = line(facts.pipeline_tag)
    if facts.base_model and _HUB_NAME.fullmatch(facts.base_model):
        found["base_model"] = facts.base_model
        if facts.kind in _RELATION:
            found["base_model_relation"] = _RELATION[facts.kind]
    names = [name for name in facts.datasets if _HUB_NAME.fullmatch(name)]
    if names:
        found["datasets"] = names
    found["tags"] = list(dict.fromkeys(["modelyard", *(line(tag) for tag in facts.tags)]))
    if reports:
        found["model-index"] = [{"name": line(facts.name), "results": [_result(facts, report) for report in reports]}]
    return found


def _result(facts: CardFacts, report: ReadReport) -> dict[str, Any]:
    metrics = []
    for name, value in report.metrics.items():
        metric: dict[str, Any] = {"type": line(name), "value": value, "name": line(name).replace("_", " ")}
        if name in report.interval:
            metric["args"] = {"n": report.n, "interval_95": list(report.interval[name])}
        metrics.append(metric)
    title = _dataset_title(facts, report)
    return {
        "task": {"type": line(facts.pipeline_tag or "text-generation"), "name": line(report.task["name"])},
        "dataset": {"type": title, "name": title, "revision": line(report.dataset or report.data_digest)},
        "metrics": metrics,
    }


def _dataset_title(facts: CardFacts, report: ReadReport) -> str:
    return line(facts.dataset_names.get(report.dataset) or f"data {(report.dataset or report.data_digest)[:12]}")


def _identity(facts: CardFacts) -> str:
    rows = [("Version", code(facts.version)), ("Id", code(facts.id))]
    if facts.kind:
        rows.append(("Kind", text(facts.kind)))
    if facts.base_model:
        rows.append(("Base", code(facts.base_model)))
    if facts.architecture:
        rows.append(("Architecture", code(facts.architecture)))
    if facts.parameters is not None:
        rows.append(("Parameters", f"{facts.parameters:,}"))
    if facts.dtypes:
        rows.append(("Types", ", ".join(code(dtype) for dtype in sorted(facts.dtypes))))
    if facts.size is not None:
        rows.append(("Size", f"{facts.size:,} bytes"))
    return table(("", ""), rows)


def _results(facts: CardFacts, reports: Sequence[ReadReport]) -> Iterator[str]:
    yield "## Evaluation"
    if not reports:
        yield "This version has not been evaluated."
        return
    rows = []
    for report in reports:
        for name, value in report.metrics.items():
            bounds = report.interval.get(name)
            spread = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
            title = text(_dataset_title(facts, report))
            rows.append((title, code(report.task["name"]), text(name), f"{value:.3f}", spread, str(report.n)))
    yield table(("Data", "Task", "Metric", "Value", "95 % interval", "Examples"), rows)
    yield "Measured on exactly this version, greedily decoded; the result of every example is kept in its report."


def _usage(facts: CardFacts) -> Iterator[str]:
    reference = f"{line(facts.name)}@{line(facts.version)}"
    yield "## How to use"
    yield "From the yard that holds it:"
    yield block(f"yard chat {reference}\nyard checkout {reference} ./model", "sh")
    yield "From a folder or the Hub:"
    if facts.kind == "adapter":
        names = ("peft", "AutoPeftModelForCausalLM")
    else:
        names = ("transformers", "AutoModelForCausalLM")
    imports = f"from {names[0]} import {names[1]}\nfrom transformers import AutoTokenizer"
    if names[0] == "transformers":
        imports = f"from transformers import {names[1]}, AutoTokenizer"
    yield block(
        f"{imports}\n\n"
        f'model = {names[1]}.from_pretrained("./model")\n'
        'tokenizer = AutoTokenizer.from_pretrained("./model")\n'
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "print(tokenizer.decode(model.generate(**inputs)[0]))",
        "python",
    )


def _origin(facts: CardFacts) -> Iterator[str]:
    if not (facts.lineage or facts.config or facts.inputs):
        return
    yield "## How it was made"
    if facts.lineage:
        rows = [(text(edge.type), code(edge.name) if edge.name else "", code(edge.id)) for edge in facts.lineage]
        yield table(("How", "From", "Id"), rows)
    if facts.config:
        # Through YAML and back into one block: keys and values of the configuration cannot leave it.
        yield "Configuration:"
        yield block(yaml.safe_dump(_plain(facts.config), sort_keys=True, allow_unicode=False, width=10_000), "yaml")
    if facts.inputs:
        yield f"Digest of the run's inputs (configuration, data, seed, code): {code(facts.inputs)}"


def _plain(value: Any) -> Any:
    """Values that YAML writes without tags: maps, lists, text, numbers, true, false and null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
