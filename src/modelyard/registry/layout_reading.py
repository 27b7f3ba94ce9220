"""SmoLoRA's folders and `model_registry.json` become versions: labels as tags, in the order of their numbers.

Everything is looked at before anything is committed, so that a conflict leaves the yard as it was. Knows the layout, not
how a commit is made.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ConflictError, InputError, NotFoundError
from modelyard.registry.checkout import hash_path
from modelyard.registry.imports import Gathered, Imported, Skipped, sift
from modelyard.registry.layouts import (
    ADAPTER,
    ADAPTER_BRANCH,
    FINAL,
    LABEL,
    LATEST,
    METADATA_FILE,
    REGISTERED_AT,
    SOURCE_PATH,
    kept_metadata,
    label_key,
    tag_for,
)
from modelyard.registry.names import check_repo_name, shown
from modelyard.weights.files import FolderFiles

if TYPE_CHECKING:
    from modelyard.registry.intake import Origin
    from modelyard.registry.model import Version
    from modelyard.registry.yard import Yard

__all__ = ["import_layout", "import_registry"]

_JSON_LIMIT = 64 << 20


@dataclass(frozen=True)
class _Entry:
    """A version of the layout, before its files were looked at."""

    name: str
    label: str
    final: Path | None
    adapter: Path | None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return f"{self.name} {self.label}"


@dataclass(frozen=True)
class _Ready:
    """A version of the layout with the files that will be committed, and what the yard has of it already."""

    entry: _Entry
    repo: str
    final: Gathered | None
    adapter: Gathered | None
    known_final: Version | None = None
    known_adapter: Version | None = None


def import_layout(
    yard: Yard, folder: Path, to: str, *, base: str | Version | None = None, convert: bool = False
) -> Imported:
    """Commit the versions of a folder in SmoLoRA's layout; see `Yard.import_layout`."""
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder `{folder}`", hint="give the folder that holds NAME/v1.0/")
    skipped: list[Skipped] = []
    if _versions_in(folder):
        entries = _scan(folder, to.rpartition("/")[2] if "/" in to else folder.resolve().name, skipped)
    elif "/" in to:
        raise InputError(
            f"`{folder}` is a folder of several names, `{to}` is one repo", hint=f"--to {to.partition('/')[0]}"
        )
    else:
        entries = [e for each in _subfolders(folder, skipped) for e in _scan(each, each.name, skipped)]
    if not entries:
        raise InputError(
            f"`{folder}` holds no versions in this layout",
            hint=f"a version is a folder with {ADAPTER} or {FINAL} in it",
        )
    return _import(yard, entries, to.partition("/")[0], skipped, base=base, convert=convert)


def import_registry(
    yard: Yard,
    file: Path,
    to: str,
    *,
    root: Path | None = None,
    base: str | Version | None = None,
    convert: bool = False,
) -> Imported:
    """Commit the versions that a `model_registry.json` names; see `Yard.import_registry`."""
    if "/" in to:
        raise InputError(f"`{to}` is one repo, a registry has several names", hint=f"--to {to.partition('/')[0]}")
    home = Path(os.path.realpath(root or file.parent))
    entries = []
    skipped: list[Skipped] = []
    for name, labels in _read_json(file).items():
        if not isinstance(labels, dict):
            raise InputError(f"`{file}` is no model registry: `{shown(name)}` has no versions")
        for label, described in labels.items():
            entry = _registered(name, label, described, home)
            if isinstance(entry, Skipped):
                skipped.append(entry)
            else:
                entries.append(entry)
    return _import(yard, entries, to, skipped, base=base, convert=convert)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; the same key twice is a conflict, since one of the two would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConflictError(
                    f"`{path}` has `{shown(key)}` twice", hint="rename one of the two; nothing was imported"
                )
            found[key] = value
        return found

    if not path.is_file():
        raise NotFoundError(f"there is no file `{path}`")
    if path.stat().st_size > _JSON_LIMIT:
        raise InputError(f"`{path}` has more than {_JSON_LIMIT} bytes")
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{path}` is not JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise InputError(f"`{path}` is not a JSON object")
    return found


def _subfolders(folder: Path, skipped: list[Skipped]) -> list[Path]:
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            if entry.name != LATEST:
                skipped.append(Skipped(str(entry), "a link, which is not followed"))
        elif entry.is_dir():
            found.append(entry)
    return found


def _versions_in(folder: Path) -> bool:
    return any((entry / part).is_dir() for entry in folder.iterdir() if entry.is_dir() for part in (ADAPTER, FINAL))


def _scan(folder: Path, name: str, skipped: list[Skipped]) -> list[_Entry]:
    """The versions of one name."""
    found = []
    for entry in _subfolders(folder, skipped):
        parts = {part: entry / part if (entry / part).is_dir() else None for part in (FINAL, ADAPTER)}
        if not any(parts.values()):
            skipped.append(Skipped(str(entry), f"holds neither {FINAL} nor {ADAPTER}"))
            continue
        described = _read_json(entry / METADATA_FILE) if (entry / METADATA_FILE).is_file() else {}
        # What this program wrote about itself is not the user's; the new yard has its own.
        described.pop("modelyard", None)
        metadata = kept_metadata(described) | {LABEL: entry.name, SOURCE_PATH: f"{folder.name}/{entry.name}"}
        found.append(_Entry(name, entry.name, parts[FINAL], parts[ADAPTER], metadata))
    return found


def _registered(name: str, label: str, described: Any, home: Path) -> _Entry | Skipped:
    """An entry of the registry; or why it is left out."""
    said = f"{name} {label}"
    text = described.get("path") if isinstance(described, dict) else None
    if not isinstance(text, str) or not text or "\0" in text:
        return Skipped(said, "it has no path")
    path = Path(os.path.realpath(home / text))
    if not path.is_relative_to(home):
        return Skipped(said, f"its path leads out of {home}: {shown(text)}")
    if not path.is_dir():
        return Skipped(said, f"dead path: {shown(text)}")
    metadata = {LABEL: label, SOURCE_PATH: text}
    own = described.get("metadata")
    metadata |= kept_metadata(own) if isinstance(own, dict) else {}
    if isinstance(described.get("registered_at"), str):
        metadata[REGISTERED_AT] = described["registered_at"]
    final, adapter = _parts(path)
    return _Entry(name, label, final, adapter, metadata)


def _parts(path: Path) -> tuple[Path | None, Path | None]:
    """The merged model and the adapter that a registered path means: one of them, or the folder of both."""
    if (path / FINAL).is_dir() or (path / ADAPTER).is_dir():
        folder = path
    elif path.name in {FINAL, ADAPTER}:
        folder = path.parent
    else:
        return (None, path) if (path / "adapter_config.json").is_file() else (path, None)
    final, adapter = folder / FINAL, folder / ADAPTER
    return final if final.is_dir() else None, adapter if adapter.is_dir() else None


def _import(
    yard: Yard,
    entries: list[_Entry],
    namespace: str,
    skipped: list[Skipped],
    *,
    base: str | Version | None,
    convert: bool,
) -> Imported:
    """Look at everything, then commit in the order of the labels."""
    with ExitStack() as stack:
        ready = []
        for entry in sorted(entries, key=lambda item: (item.name, label_key(item.label))):
            repo = check_repo_name(f"{namespace}/{entry.name}")
            final = _files(stack, entry, entry.final, skipped, convert=convert)
            adapter = _files(stack, entry, entry.adapter, skipped, convert=convert)
            if final is not None or adapter is not None:
                ready.append(_Ready(entry, repo, final, adapter))
        ready = _checked(yard, ready)
        origin = yard.resolve(base) if base is not None else None
        made = [version for item in ready for version in _commit(yard, item, origin)]
    return Imported(tuple(made), tuple(skipped))


def _files(
    stack: ExitStack, entry: _Entry, folder: Path | None, skipped: list[Skipped], *, convert: bool
) -> Gathered | None:
    """What of a folder can be committed; None when that is nothing."""
    if folder is None:
        return None
    files = FolderFiles(folder)
    kept, left = sift({name: files.path(name) for name in files.names()}, f"{entry.text}/{folder.name}/")
    if not any(name.endswith(".safetensors") for name in kept):
        pickles = [item for item in left if item.reason.startswith("a pickle")]
        if not (pickles and convert):
            hint = "; convert it with --convert" if pickles else ""
            skipped.append(Skipped(f"{entry.text}/{folder.name}", f"holds no safetensors weights{hint}"))
            return None
        return _converted(stack, folder)
    skipped += left
    return Gathered(str(folder), kept)


def _converted(stack: ExitStack, folder: Path) -> Gathered:
    """The same folder with its pickles as safetensors, made in an isolated process."""
    from modelyard.weights.convert import convert_pickle

    out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yard-convert-"))) / folder.name
    convert_pickle(folder, out)
    files = FolderFiles(out)
    return Gathered(str(folder), {name: files.path(name) for name in files.names()})


def _checked(yard: Yard, ready: list[_Ready]) -> list[_Ready]:
    """Refuse labels that are taken; find versions that are here already; nothing is written."""
    from modelyard.weights.checks import check_weights

    taken: dict[tuple[str, str], str] = {}
    found = []
    for item in ready:
        tag = tag_for(item.entry.label)
        other = taken.setdefault((item.repo, tag), item.entry.label)
        if other != item.entry.label:
            raise ConflictError(
                f"the labels `{shown(other)}` and `{shown(item.entry.label)}` of `{item.repo}` would both be the tag `{tag}`",
                hint="rename one of the two; nothing was imported",
            )
        for files in (item.final, item.adapter):
            if files is not None:
                check_weights(files)
        found.append(
            replace(
                item,
                known_final=_known(yard, item, tag, item.final or item.adapter),
                known_adapter=_known(yard, item, f"{tag}-adapter", item.adapter) if item.final else None,
            )
        )
    return found


def _known(yard: Yard, item: _Ready, tag: str, files: Gathered | None) -> Version | None:
    """The version that the repo has under this tag, if it has these bytes; other bytes are a conflict."""
    try:
        version = yard.resolve(f"{item.repo}@{tag}")
    except NotFoundError:
        return None
    there = {entry.path: entry.blake3 for entry in version.files}
    here = {name: hash_path(files.path(name)) for name in files.names()} if files is not None else {}
    if here != there:
        raise ConflictError(
            f"`{item.entry.text}` is registered already, as `{version.name}`, with other bytes",
            hint="give it another label; nothing was imported",
            version=version.name,
        )
    return version


def _commit(yard: Yard, item: _Ready, base: Version | None) -> list[Version]:
    """An entry's adapter and merged model, with their tags; what is there already stays as it is."""
    tag, metadata = tag_for(item.entry.label), item.entry.metadata
    message = f"SmoLoRA's {item.entry.text}"
    only = item.final is None
    adapter = item.known_final if only else item.known_adapter
    if adapter is None and item.adapter is not None:
        edges: list[Origin] = [("finetuned", base)] if base is not None else []
        adapter = yard.commit(
            item.adapter,
            item.repo,
            kind="adapter",
            branch=ADAPTER_BRANCH,
            from_=edges,
            message=message,
            metadata=metadata,
        )
        yard.tag(adapter, tag if only else f"{tag}-adapter")
    made = [adapter] if adapter is not None else []
    if item.final is not None:
        final = item.known_final
        if final is None:
            origins: list[Origin] = [("merged", source) for source in (adapter, base) if source is not None]
            final = yard.commit(item.final, item.repo, kind="merged", from_=origins, message=message, metadata=metadata)
            yard.tag(final, tag)
        made.append(final)
    return made
