"""The `base` step: the model to start from becomes a version of the yard, unless it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import ConflictError, ModelError, NotFoundError, near_match
from modelyard.recipes import hubs
from modelyard.recipes.context import Context, Outputs, made
from modelyard.recipes.keys import Inputs
from modelyard.recipes.sources import HubSource, PathSource, VersionSource, located, parse_base
from modelyard.recipes.steps.step import Step

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry import Version
    from modelyard.weights.files import Files

__all__ = ["Base", "check_base"]


class Base(Step):
    """See the module."""

    name = "base"

    def inputs(self, context: Context) -> Inputs:
        """The version's id, the hub's commit, or the digest of every file of the folder."""
        source = parse_base(context.recipe.base)
        if isinstance(source, VersionSource):
            version = context.yard.resolve(source.reference)
            return Inputs(self.name, 1, inputs={"base": str(version.id)}, config={"version": version.name})
        config = {"base_repo": context.recipe.committed_base_repo}
        if isinstance(source, HubSource):
            snapshot = hubs.fetch(source, yard=context.yard, offline=context.offline)
            return Inputs(self.name, 1, config=config, inputs={"base": f"hf://{snapshot.repo}@{snapshot.commit}"})
        files = _open(context)
        digest = context.fingerprints.files({name: files.path(name) for name in files.names()})
        return Inputs(self.name, 1, config=config, inputs={"base": str(digest)})

    def run(self, context: Context, inputs: Inputs) -> Outputs:
        """Check that it is a model, and commit it."""
        source = parse_base(context.recipe.base)
        if isinstance(source, VersionSource):
            version = context.yard.resolve(source.reference)
            check_base(context.yard.files(version), version.kind)
            return made(version, source=context.recipe.base)
        files = (
            hubs.fetch(source, yard=context.yard, offline=context.offline).files
            if isinstance(source, HubSource)
            else _open(context)
        )
        check_base(files, None)
        origin = inputs.inputs["base"] if isinstance(source, HubSource) else context.recipe.base
        version = context.yard.commit(
            files,
            str(context.recipe.committed_base_repo),
            kind="base",
            message=f"base of the recipe {context.recipe.name}",
            metadata={"source": origin},
        )
        if not isinstance(source, HubSource):
            _check_same(context, version, inputs)
        return made(version, source=origin)

    def summary(self, outputs: Outputs) -> str:
        """The version, and where it came from."""
        return f"{outputs['version_name']} (from {outputs['source']})"


def _open(context: Context) -> Files:
    """The folder that the recipe names."""
    source = parse_base(context.recipe.base)
    if isinstance(source, PathSource):
        folder = located(source, context.workspace)
    else:
        folder = context.resources.folder(context.recipe.base.removeprefix("package:"))
    if not folder.exists():
        raise NotFoundError(f"`base`: there is no folder `{folder}`", hint=_beside(folder))
    return hubs.open_folder(folder)


def _beside(folder: Path) -> str:
    others = [other.name for other in folder.parent.iterdir() if other.is_dir()] if folder.parent.is_dir() else []
    meant = near_match(folder.name, others)
    return f"did you mean `{folder.parent / meant}`?" if meant else "a relative path is relative to the recipe's folder"


def check_base(files: Files, kind: str | None) -> None:
    """Refuse files that are no model with `ModelError`; `kind` is the version's, where they are one."""
    from modelyard.weights.checks import check_weights
    from modelyard.weights.inspect import inspect

    if kind == "adapter":
        raise ModelError(f"`{files.label}` is an adapter, not a base", hint="merge it first: yard merge REFERENCE")
    check_weights(files)
    found = inspect(files)
    if found.kind != "model":
        what = "an adapter" if found.kind == "adapter" else "not a model"
        raise ModelError(f"`{files.label}` is {what}, so it cannot be the base", hint=f"yard doctor {files.label}")


def _check_same(context: Context, version: Version, inputs: Inputs) -> None:
    """Refuse a commit of files that changed after their digests had decided the key."""
    from modelyard.digest import digest_json

    committed = digest_json(
        {entry.path: str(entry.blake3) for entry in sorted(version.files, key=lambda entry: entry.path)}
    )
    if committed != inputs.inputs["base"]:
        raise ConflictError(f"the base `{context.recipe.base}` changed while it was read", hint="run the recipe again")
