"""Versions out of a Hugging Face cache, without a copy where files can be linked.

The cache's layout: `models--org--name/` with `refs/<name>` (a commit's id), `snapshots/<commit>/` (links) and `blobs/` (bytes).
Links are followed within the repo's own folder only. Asks no hub. Where the cache is, its caller knows.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import InputError, ModelError, NotFoundError, near_match
from modelyard.registry.imports import Gathered, Imported, Skipped, link_files, refuse_pickles, sift
from modelyard.registry.leases import lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.registry.context import Context
    from modelyard.registry.model import RepoType, Version
    from modelyard.registry.yard import Yard

__all__ = ["import_cache"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PREFIX = re.compile(r"[0-9a-f]{7,40}")
_TYPES: dict[str, RepoType] = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True)
class _CachedRepo:
    folder: Path
    repo_type: RepoType
    id: str

    @property
    def text(self) -> str:
        return f"datasets/{self.id}" if self.repo_type == "dataset" else self.id

    def snapshots(self) -> list[str]:
        found = self.folder / "snapshots"
        return (
            sorted(entry.name for entry in found.iterdir() if _COMMIT.fullmatch(entry.name)) if found.is_dir() else []
        )


def import_cache(
    yard: Yard, context: Context, cache: Path, reference: str | None, *, to: str | None = None, message: str = ""
) -> Imported:
    """Commit one repo of a cache, or all of them; see `Yard.import_hf_cache`."""
    if not cache.is_dir():
        raise NotFoundError(f"there is no cache at `{cache}`", hint="give its folder: --cache-dir FOLDER")
    if reference is None:
        if to is not None:
            raise InputError(
                "`to` is for one repo of the cache", hint="name it: yard import hf-cache ORG/NAME --to ..."
            )
        return _import_all(yard, context, cache, message)
    name, _, revision = reference.removeprefix("hf://").partition("@")
    found = _find(cache, name)
    version, skipped = _import_one(yard, context, found, revision or None, to=to, message=message)
    return Imported((version,), tuple(skipped))


def _repos(cache: Path) -> Iterator[_CachedRepo]:
    for entry in sorted(cache.iterdir()):
        kind, _, rest = entry.name.partition("--")
        if kind in _TYPES and rest and entry.is_dir() and not entry.is_symlink():
            yield _CachedRepo(entry, _TYPES[kind], rest.replace("--", "/"))


def _find(cache: Path, name: str) -> _CachedRepo:
    known = {repo.text: repo for repo in _repos(cache)}
    if name not in known:
        meant = near_match(name, known)
        raise NotFoundError(
            f"`{name}` is not in the cache `{cache}`",
            hint=f"did you mean `{meant}`?" if meant else f"it has {', '.join(sorted(known)) or 'nothing'}",
        )
    return known[name]


def _import_all(yard: Yard, context: Context, cache: Path, message: str) -> Imported:
    made: list[Version] = []
    skipped: list[Skipped] = []
    for repo in _repos(cache):
        try:
            version, left = _import_one(yard, context, repo, None, to=None, message=message)
        except (InputError, NotFoundError) as error:
            # One repo that is broken or half downloaded must not keep the others out.
            skipped.append(Skipped(repo.text, error.message))
        else:
            made.append(version)
            skipped += left
    return Imported(tuple(made), tuple(skipped))


def _import_one(
    yard: Yard, context: Context, repo: _CachedRepo, revision: str | None, *, to: str | None, message: str
) -> tuple[Version, list[Skipped]]:
    commit = _commit(repo, revision)
    paths, dangling = _resolved(repo, commit)
    kept, skipped = sift(paths, f"{repo.text}/")
    skipped = sorted([*skipped, *dangling], key=lambda item: item.name)
    pickles = [item for item in skipped if item.reason.startswith("a pickle")]
    if repo.repo_type == "model" and pickles and not any(name.endswith(".safetensors") for name in kept):
        raise refuse_pickles(str(repo.folder / "snapshots" / commit), pickles)
    if not kept:
        raise ModelError(f"nothing of `{repo.text}` is in the cache", hint=f"hf download {repo.id}")
    files = Gathered(repo.text, kept)
    if repo.repo_type == "model":
        from modelyard.weights.checks import check_weights

        check_weights(files)
    target = to or _target(repo)
    with lease(context, "import") as beat:
        # Linked first: the commit finds the bytes stored and writes none.
        link_files(context, kept.values(), beat)
        version = yard.commit(
            files,
            target,
            repo_type=repo.repo_type,
            message=message or f"imported from the cache of hf://{repo.text}",
            metadata={"origin": f"hf://{repo.text}@{commit}"},
        )
    return version, skipped


def _target(repo: _CachedRepo) -> str:
    name = repo.id if "/" in repo.id else f"hub/{repo.id}"
    return f"datasets/{name}" if repo.repo_type == "dataset" else name


def _commit(repo: _CachedRepo, revision: str | None) -> str:
    """The commit that a revision means in this cache."""
    snapshots = repo.snapshots()
    if revision is None:
        named = _ref(repo, "main")
        if named in snapshots:
            return named
        if len(snapshots) == 1:
            return snapshots[0]
        raise NotFoundError(
            f"the cache of `{repo.text}` has {len(snapshots)} snapshots, and `main` is none of them",
            hint=f"say which: {repo.text}@{snapshots[0][:12]}" if snapshots else f"hf download {repo.id}",
        )
    named = _ref(repo, revision)
    found = [name for name in snapshots if name == named or (_PREFIX.fullmatch(revision) and name.startswith(revision))]
    if len(found) != 1:
        raise NotFoundError(
            f"the cache of `{repo.text}` has no snapshot `{revision}`",
            hint=f"it has {', '.join(name[:12] for name in snapshots) or 'none'}",
        )
    return found[0]


def _ref(repo: _CachedRepo, name: str) -> str:
    """What a ref says, or nothing; a ref is a small text file in `refs`."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return ""
    path = repo.folder.joinpath("refs", *parts)
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 128:
        return ""
    return path.read_text("utf-8", "replace").strip()


def _resolved(repo: _CachedRepo, commit: str) -> tuple[dict[str, Path], list[Skipped]]:
    """A snapshot's files by name, links resolved within the repo's folder; and those whose bytes were never fetched."""
    home = Path(os.path.realpath(repo.folder))
    snapshot = repo.folder / "snapshots" / commit
    found: dict[str, Path] = {}
    missing = []
    for folder, folders, names in os.walk(snapshot):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name not in {".git", ".cache", "__pycache__"})
        for name in [*(name for name in folders if (here / name).is_symlink()), *sorted(names)]:
            relative = (here / name).relative_to(snapshot).as_posix()
            target = Path(os.path.realpath(here / name))
            if not target.is_relative_to(home):
                raise ModelError(
                    f"`{relative}` in the cache of `{repo.text}` is a link out of the repo's folder",
                    code="not_a_regular_file",
                    hint="nothing was imported; download the repo again",
                )
            if not target.exists():
                missing.append(Skipped(f"{repo.text}/{relative}", "not downloaded"))
            elif not target.is_file():
                raise ModelError(
                    f"`{relative}` in the cache of `{repo.text}` is not a regular file", code="not_a_regular_file"
                )
            else:
                found[relative] = target
    return found, missing
