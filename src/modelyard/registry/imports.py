"""What imports have in common: files gathered from several folders, what was left out and why, and another yard's versions.

Knows no one's layout; `hfcache`, `mlflow` and `layouts` do.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import IntegrityError, ModelError, NotFoundError, PickleError, near_match
from modelyard.registry.adoption import Adopted, adopt
from modelyard.registry.leases import lease
from modelyard.registry.parcel import collect
from modelyard.weights.content import identify
from modelyard.weights.files import READ_LIMIT, show_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from modelyard.digest import Digest, FileDigests
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version
    from modelyard.registry.reference import Reference

__all__ = ["Gathered", "Imported", "Skipped", "from_yard", "link_files", "refuse_pickles", "sift"]

_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".ot", ".tflite")


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that an import left out: where it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        versions: What was committed, or was there already with the same bytes.
        skipped: What was left out.
    """

    versions: tuple[Version, ...]
    skipped: tuple[Skipped, ...] = ()


class Gathered:
    """Files from several places under names of their own, as `weights.Files`.

    Only regular files are opened, links to them never: whoever gathers has resolved them.
    """

    def __init__(self, label: str, paths: Mapping[str, Path]) -> None:
        self.label = label
        self._paths = dict(paths)

    def names(self) -> list[str]:
        """Every file's name, sorted by bytes."""
        return sorted(self._paths, key=str.encode)

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        return self.path(name).stat().st_size

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """A whole file; `ModelError` when it is larger than `limit` bytes."""
        path = self.path(name)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as stream:
            if os.fstat(stream.fileno()).st_size > limit:
                raise ModelError(
                    f"`{show_name(name)}` in `{self.label}` is larger than the {limit} bytes expected",
                    code="file_too_large",
                )
            return stream.read(limit)

    def path(self, name: str) -> Path:
        """Where a file is; `ModelError` unless it is a regular one."""
        found = self._paths.get(name)
        if found is None:
            meant = near_match(name, self._paths)
            raise NotFoundError(
                f"no file `{show_name(name)}` in `{self.label}`", hint=f"did you mean `{meant}`?" if meant else None
            )
        if not stat.S_ISREG(found.lstat().st_mode):
            raise ModelError(f"`{show_name(name)}` in `{self.label}` is not a regular file", code="not_a_regular_file")
        return found


def sift(paths: Mapping[str, Path], prefix: str = "") -> tuple[dict[str, Path], list[Skipped]]:
    """Which of these files a version may hold, and which are left out: pickles, code, other frameworks' weights."""
    kept: dict[str, Path] = {}
    skipped = []
    for name, path in paths.items():
        if reason := _reason(name, path):
            skipped.append(Skipped(f"{prefix}{name}", reason))
        else:
            kept[name] = path
    pickles = {Path(item.name).name for item in skipped if item.reason.startswith("a pickle")}
    for name in [name for name in kept if name.endswith(".bin.index.json") and pickles]:
        del kept[name]
        skipped.append(Skipped(f"{prefix}{name}", "the index of weights in pickles"))
    return kept, sorted(skipped, key=lambda item: item.name)


def _reason(name: str, path: Path) -> str | None:
    if name.endswith(".py"):
        return "code, which is never run"
    if name.endswith(_OTHER_FRAMEWORKS):
        return "weights of another framework"
    if identify(path) == "pickle":
        return "a pickle, which can run any code when it is loaded"
    return None


def link_files(context: Context, paths: Iterable[Path], beat: Callable[[], None]) -> None:
    """Store files by hard link where the file systems allow it; a commit that follows finds them stored."""
    for path in paths:
        context.store.import_file(path, link=True)
        beat()


def from_yard(
    context: Context,
    other: Context,
    reference: str | Version,
    *,
    with_lineage: bool = True,
    to: Reference | None = None,
    branch: str = "main",
) -> Adopted:
    """Take versions of another yard in, with their ids, all or none; see `Yard.import_version`."""
    with lease(other, "import"):
        consignment = collect(other, reference, with_lineage=with_lineage)
        reports = {d: other.store.get("reports", d) for parcel in consignment.parcels for d in parcel.reports}

        def fill(beat: Callable[[], None]) -> dict[Digest, FileDigests]:
            found = {}
            for digest in consignment.files():
                came = context.store.import_file(other.store.file_path(digest))
                if came.blake3 != digest:
                    raise IntegrityError(
                        f"file {digest.short} is damaged in the other yard",
                        hint="in that yard: yard check --read-data",
                        digest=str(digest),
                    )
                found[digest] = came
                beat()
            return found

        return adopt(context, consignment, fill, reports=reports, to=to, branch=branch, purpose="import")


def refuse_pickles(label: str, skipped: Iterable[Skipped], why: str = "") -> PickleError:
    """The error for a folder whose weights are pickles only."""
    names = ", ".join(item.name for item in skipped if item.reason.startswith("a pickle"))
    return PickleError(
        f"the weights in `{label}` are pickles{why}: {names}; loading one can run any code",
        hint=f"convert them in isolation: yard convert {label} --to ./OUT",
        files=[item.name for item in skipped],
    )
