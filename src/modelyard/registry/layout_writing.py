"""A repo as the folders that SmoLoRA's guide describes: `name/v1.0/{adapter_checkpoint,final_merged}/`, `metadata.json`, `latest`.

A version's own files are written byte for byte; what the guide names beside them is derived from them. Each folder appears
whole, by rename. Knows the layout; not how a version is stored.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ConflictError, NotFoundError
from modelyard.registry.imports import Skipped
from modelyard.registry.layout_files import complete_adapter, complete_model
from modelyard.registry.layout_metadata import describe
from modelyard.registry.layouts import ADAPTER, FINAL, LATEST, METADATA_FILE, check_label, label_key, labels_of
from modelyard.registry.reference import repo_of

if TYPE_CHECKING:
    from modelyard.digest import Digest
    from modelyard.registry.model import Version
    from modelyard.registry.yard import Yard

__all__ = ["WrittenLayout", "write_layout"]


@dataclass(frozen=True)
class WrittenLayout:
    """What was written.

    Attributes:
        folder: The repo's folder.
        written: Labels of the versions written now, in order.
        kept: Labels whose folders were there already.
        latest: The label that `latest` links to.
        skipped: Versions that are no model.
    """

    folder: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    latest: str
    skipped: tuple[Skipped, ...]


@dataclass
class _Entry:
    """A folder of the layout: a merged (or otherwise whole) model, an adapter, or both."""

    label: str
    final: Version | None = None
    adapter: Version | None = None
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {FINAL: self.final, ADAPTER: self.adapter}
        self.ids = {name: str(version.id) for name, version in named.items() if version is not None}


def write_layout(yard: Yard, repo: str, out: Path, *, bins: bool = True) -> WrittenLayout:
    """Write every version of a repo; see `Yard.checkout_layout`."""
    target = repo_of(repo, "model")
    entries, skipped = _entries(yard, target.repo)
    if not entries:
        raise NotFoundError(f"`{target.repo}` holds no model or adapter", hint=f"yard ls {target.repo}")
    folder = out / target.repo.partition("/")[2]
    link = folder / LATEST
    if link.exists() and not link.is_symlink():
        raise ConflictError(f"`{link}` is there already and is no link", hint="choose another folder: --out FOLDER")
    kept = [entry for entry in entries if _is_written(folder / entry.label, entry)]
    folder.mkdir(parents=True, exist_ok=True)
    written = [entry for entry in entries if entry not in kept]
    for entry in written:
        _write(yard, folder, entry, bins=bins)
    newest = entries[-1].label
    _switch(link, newest)
    return WrittenLayout(folder, tuple(e.label for e in written), tuple(e.label for e in kept), newest, tuple(skipped))


def _entries(yard: Yard, repo: str) -> tuple[list[_Entry], list[Skipped]]:
    """The folders that a repo's versions make, in the order of their labels."""
    tags: dict[Digest, list[str]] = {}
    for ref in yard.refs(repo):
        if ref.type == "tag":
            tags.setdefault(ref.version, []).append(ref.name)
    listed = sorted(yard.versions(repo), key=lambda version: version.number)
    models = [version for version in listed if version.kind not in {None, "adapter"}]
    made = {version.id: _adapter_of(yard, version) for version in models}
    used = {adapter.id for adapter in made.values() if adapter is not None}
    found: dict[str, _Entry] = {}
    skipped = [Skipped(version.name, "not a complete model") for version in listed if version.kind is None]
    for version in listed:
        if version.kind is None or (version.kind == "adapter" and version.id in used):
            continue
        for label in labels_of(version, tags.get(version.id, [])):
            check_label(label)
            other = found.get(label)
            if other is not None:
                taken = other.final or other.adapter
                raise ConflictError(
                    f"`{version.name}` and `{taken.name if taken else label}` are both `{label}`",
                    hint=f"tag one of them: yard tag {version.name} v{version.number}.1",
                )
            is_adapter = version.kind == "adapter"
            found[label] = _Entry(label, None if is_adapter else version, version if is_adapter else made[version.id])
    return [found[label] for label in sorted(found, key=label_key)], skipped


def _adapter_of(yard: Yard, version: Version) -> Version | None:
    """The adapter that a merged version was made from."""
    targets = {edge.version for edge in version.lineage if edge.type == "merged"}
    if not targets:
        return None
    nodes = {node.id: node for node in yard.lineage(version, direction="up").nodes}
    adapters = sorted(
        node.names[0] for digest, node in nodes.items() if digest in targets and node.kind == "adapter" and node.names
    )
    return yard.resolve(adapters[0]) if adapters else None


def _is_written(folder: Path, entry: _Entry) -> bool:
    """Whether the folder of these very versions is there already; another one of this name is a conflict."""
    if not folder.is_symlink() and not folder.exists():
        return False
    try:
        found = json.loads((folder / METADATA_FILE).read_text("utf-8"))["modelyard"]["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != entry.ids:
        raise ConflictError(
            f"`{folder}` is there already and is not `{entry.label}` of this repo",
            hint="choose another folder: --out FOLDER",
        )
    return True


def _write(yard: Yard, folder: Path, entry: _Entry, *, bins: bool) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".{entry.label}.", suffix=".part", dir=folder))
    try:
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o777 & ~umask)
        if entry.final is not None:
            yard.checkout(entry.final, draft / FINAL)
            complete_model(draft / FINAL, bins=bins)
        if entry.adapter is not None:
            # As it was committed: the layout has no place for a base inside an adapter.
            yard.checkout(entry.adapter, draft / ADAPTER, base=False)
            complete_adapter(draft / ADAPTER, entry.adapter, bins=bins)
        metadata: dict[str, Any] = describe(yard, entry.final, entry.adapter)
        metadata["modelyard"] = {"repo": folder.name, "label": entry.label, "versions": entry.ids}
        (draft / METADATA_FILE).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", "utf-8")
        try:
            draft.rename(folder / entry.label)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise ConflictError(
                    f"`{folder / entry.label}` was written by somebody else meanwhile", hint="run the command again"
                ) from error
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _switch(link: Path, label: str) -> None:
    """Point `latest` at a label, in one step: whoever looks sees the old one or the new one."""
    draft = link.with_name(f".{LATEST}.{os.getpid()}.part")
    draft.unlink(missing_ok=True)
    draft.symlink_to(label, target_is_directory=True)
    draft.replace(link)
