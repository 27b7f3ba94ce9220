"""Diff: what changed between two versions, from file lists and reports down to single tensors.

Files are compared by digest, configurations key by key, reports metric by metric, tensors by header. Values are read only when
norms are asked for. Knows file names that mean something to transformers; not what a tensor does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.registry.contents import StoredFiles
from modelyard.registry.leases import lease
from modelyard.registry.reports import of_version
from modelyard.registry.resolve import resolve
from modelyard.registry.tensors import TensorDiff, compare_tensors
from modelyard.weights.filenames import TOKENIZER_PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelyard.registry.context import Context
    from modelyard.registry.model import Version

__all__ = ["ConfigChange", "ReportChange", "VersionDiff", "compare", "diff"]

_CONFIGS = ("config.json", "adapter_config.json", "generation_config.json")
_ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A key of a configuration, as a dotted path, before and after; `(absent)` where it is not there."""

    file: str
    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class ReportChange:
    """A metric of a task on a data set, before and after; None where no report has it. Of several reports the last counts."""

    task: str
    dataset: str
    metric: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class VersionDiff:
    """What changed from version `a` to version `b`; names of files and tensors are sorted."""

    a: str
    b: str
    files_added: tuple[str, ...]
    files_removed: tuple[str, ...]
    files_changed: tuple[str, ...]
    config: tuple[ConfigChange, ...]
    tokenizer_changed: bool
    chat_template_changed: bool
    tensors: TensorDiff
    reports: tuple[ReportChange, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both hold the very same files."""
        return not (self.files_added or self.files_removed or self.files_changed)

    def to_dict(self) -> dict[str, Any]:
        """The diff as plain JSON values."""
        return {**asdict(self), "same": self.same}


def diff(context: Context, a: str | Version, b: str | Version, *, norms: bool) -> VersionDiff:
    """What changed between two versions of a yard; see `Yard.diff`."""
    old, new = resolve(context, a), resolve(context, b)
    with lease(context, "diff", versions=[old.id, new.id]):
        return compare(
            (old, StoredFiles(context.store, old)),
            (new, StoredFiles(context.store, new)),
            norms=norms,
            reports=(of_version(context, old), of_version(context, new)),
        )


def compare(
    a: tuple[Version, StoredFiles],
    b: tuple[Version, StoredFiles],
    *,
    norms: bool,
    reports: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = ((), ()),
) -> VersionDiff:
    """What changed between two versions, given their files and reports; see `Yard.diff`."""
    (old, old_files), (new, new_files) = a, b
    before = {entry.path: entry.blake3 for entry in old.files}
    after = {entry.path: entry.blake3 for entry in new.files}
    changed = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    touched = changed | (before.keys() ^ after.keys())
    template = {"chat_template.jinja", "tokenizer_config.json"} & touched
    return VersionDiff(
        a=old.name,
        b=new.name,
        files_added=_sorted(after.keys() - before.keys()),
        files_removed=_sorted(before.keys() - after.keys()),
        files_changed=_sorted(changed),
        config=tuple(change for name in _CONFIGS if name in touched for change in _config(name, old_files, new_files)),
        tokenizer_changed=bool(TOKENIZER_PARTS & touched),
        chat_template_changed=bool(template) and _template(old_files) != _template(new_files),
        tensors=compare_tensors(old_files, new_files, norms=norms),
        reports=_compare_reports(*reports),
    )


_Metrics = dict[tuple[str, str, str], float]


def _compare_reports(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> tuple[ReportChange, ...]:
    before, after = _metrics(old), _metrics(new)
    return tuple(
        ReportChange(*key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


def _metrics(reports: Sequence[Mapping[str, Any]]) -> _Metrics:
    return {
        (str(report["task"]["name"]), str(report.get("dataset") or ""), str(metric)): float(value)
        for report in reports
        for metric, value in report["metrics"].items()
        if isinstance(value, int | float)
    }


def _sorted(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=str.encode))


def _config(name: str, old: StoredFiles, new: StoredFiles) -> list[ConfigChange]:
    before, after = _flat(_object(old, name)), _flat(_object(new, name))
    keys = sorted(before.keys() | after.keys())
    pairs = [(key, before.get(key, _ABSENT), after.get(key, _ABSENT)) for key in keys]
    # 1 and 1.0 and True are equal in Python, and not in a configuration.
    return [ConfigChange(name, key, x, y) for key, x, y in pairs if json.dumps(x) != json.dumps(y)]


def _object(files: StoredFiles, name: str) -> Mapping[str, Any]:
    if name not in files.names():
        return {}
    try:
        found = json.loads(files.read(name))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{name}` in `{files.label}` is not JSON: {error}") from error
    return found if isinstance(found, dict) else {"": found}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _template(files: StoredFiles) -> Any:
    """The chat template that transformers would use: the file of its own, else the tokenizer's configuration."""
    if "chat_template.jinja" in files.names():
        return files.read("chat_template.jinja").decode(errors="replace")
    return _object(files, "tokenizer_config.json").get("chat_template")
