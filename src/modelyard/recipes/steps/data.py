"""The `data` step: the recipe's files are checked row by row and committed as a dataset version.

Files that are in a dataset version already stay where they are, if both are in the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import ConflictError, InternalError, NotFoundError, near_match
from modelyard.recipes import rows
from modelyard.recipes.context import Context, Outputs, made
from modelyard.recipes.keys import Inputs
from modelyard.recipes.sources import DataSource, PackageSource, VersionFile, located, parse_data
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.digest import Digest
    from modelyard.registry import Version

__all__ = ["Data", "NamedFiles", "file_in"]


class NamedFiles:
    """Files from anywhere under the names that they are committed by."""

    def __init__(self, paths: Mapping[str, Path], label: str) -> None:
        self.label = label
        self._paths = {name: path.resolve() for name, path in paths.items()}

    def names(self) -> list[str]:
        """See `weights.Files.names`."""
        return sorted(self._paths)

    def size(self, name: str) -> int:
        """See `weights.Files.size`."""
        return self.path(name).stat().st_size

    def read(self, name: str, limit: int = 64 << 20) -> bytes:
        """See `weights.Files.read`."""
        with self.path(name).open("rb") as stream:
            return stream.read(limit)

    def path(self, name: str) -> Path:
        """See `weights.Files.path`."""
        return self._paths[name]


@dataclass(frozen=True)
class _Found:
    """One of the recipe's files: where it is and what it will be called."""

    split: rows.Split
    source: DataSource
    digest: Digest
    path: Path | None
    version: Version | None

    @property
    def suffix(self) -> str:
        """The suffix that names the format, `.gz` included."""
        name = self.source.file if isinstance(self.source, VersionFile) else self.path.name if self.path else ""
        parts = Path(name).suffixes
        return "".join(parts[-2:] if parts[-1:] == [".gz"] else parts[-1:])


class Data(Step):
    """See the module."""

    name = "data"

    def inputs(self, context: Context) -> Inputs:
        """The files' digests, their names in the dataset, and how they are read."""
        found = _find_all(context)
        names = _names(found)
        return Inputs(
            self.name,
            1,
            config={
                "repo": context.recipe.data_repo,
                "files": {item.split: names[item.split] for item in found},
                "data": {item.split: rows.view(context.recipe.data, item.split) for item in found},
            },
            inputs={f"data.{item.split}": str(item.digest) for item in found}
            | {f"the version of data.{item.split}": str(item.version.id) for item in found if item.version is not None},
        )

    def run(self, context: Context, inputs: Inputs) -> Outputs:  # noqa: ARG002  # the key is all that inputs are for
        """Check every row of every file, then commit them."""
        found = _find_all(context)
        paths = {item.split: _path(context, item) for item in found}
        counts = {}
        for item in found:
            checked = rows.read(paths[item.split], context.recipe.data, item.split)
            counts[f"{item.split}_rows"] = len(checked)
            if item.split == "test" and context.recipe.evaluate is not None:
                rows.examples(checked)
        version = self._commit(context, found, paths)
        return made(version, **_names(found), **counts)

    def _commit(self, context: Context, found: list[_Found], paths: Mapping[rows.Split, Path]) -> Version:
        kept = _kept_version(found)
        if kept is not None:
            return kept
        names = _names(found)
        version = context.yard.commit(
            NamedFiles({names[split]: path for split, path in paths.items()}, "the recipe's data"),
            context.recipe.data_repo,
            repo_type="dataset",
            from_=[("imported", item.version) for item in found if item.version is not None],
            message=f"data of the recipe {context.recipe.name}",
            metadata=rows.described(context.recipe.data),
        )
        for item in found:
            entry = version.file(names[item.split])
            if entry is None or entry.blake3 != item.digest:
                raise ConflictError(f"the {item.split} file changed while it was read", hint="run the recipe again")
        return version

    def summary(self, outputs: Outputs) -> str:
        """The dataset version and its rows."""
        counted = f"{outputs['train_rows']} training rows"
        if "test_rows" in outputs:
            counted += f", {outputs['test_rows']} test rows"
        return f"{outputs['version_name']} ({counted})"


def _find_all(context: Context) -> list[_Found]:
    data = context.recipe.data
    found = [_find(context, "train", data.train)]
    if data.test is not None:
        found.append(_find(context, "test", data.test))
    return found


def _find(context: Context, split: rows.Split, text: str) -> _Found:
    source = parse_data(text)
    if isinstance(source, VersionFile):
        version = context.yard.resolve(source.reference)
        return _Found(split, source, file_in(version, source.file, f"data.{split}"), None, version)
    if isinstance(source, PackageSource):
        path = context.resources.data(source.name)
    else:
        path = located(source, context.workspace)
        _check_file(split, path)
    return _Found(split, source, context.fingerprints.file(path), path, None)


def file_in(version: Version, file: str, what: str) -> Digest:
    """The digest of a version's file; `NotFoundError` with the near match where it has none."""
    entry = version.file(file)
    if entry is not None:
        return entry.blake3
    known = [other.path for other in version.files]
    meant = near_match(file, known)
    hint = f"did you mean `{meant}`?" if meant else f"it holds {', '.join(known[:10])}"
    raise NotFoundError(f"`{what}`: `{version.name}` has no file `{file}`", hint=hint)


def _check_file(split: rows.Split, path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise NotFoundError(f"`data.{split}`: `{path}` is a folder", hint="name one data file in it")
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    meant = near_match(path.name, beside)
    hint = f"did you mean `{path.parent / meant}`?" if meant else "a relative path is relative to the recipe's folder"
    raise NotFoundError(f"`data.{split}`: there is no file `{path}`", hint=hint)


def _kept_version(found: list[_Found]) -> Version | None:
    """The one dataset version that all files are in already, or None."""
    first = found[0].version
    return first if first is not None and all(item.version and item.version.id == first.id for item in found) else None


def _names(found: list[_Found]) -> dict[str, str]:
    """What each split's file is called in the dataset version."""
    kept = _kept_version(found) is not None
    return {
        item.split: item.source.file if kept and isinstance(item.source, VersionFile) else f"{item.split}{item.suffix}"
        for item in found
    }


def _path(context: Context, item: _Found) -> Path:
    """The file itself, under a name that says its format."""
    if item.path is not None:
        return item.path
    if item.version is None or not isinstance(item.source, VersionFile):
        raise InternalError(f"the {item.split} file is neither a path nor in a version")
    return context.folder(item.version) / item.source.file
