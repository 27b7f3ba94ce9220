"""From a version to folders on disk that a worker can load, and what that will cost in memory.

The only module of `serving` that asks the registry for bytes. Every call blocks (hashing), so the router runs
them in a thread. It knows nothing of processes or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.errors import BusyError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry import Version, Yard

__all__ = ["Source", "check_memory", "prepare"]

_WEIGHTS = (".safetensors",)
_WORKER_BYTES = 400 << 20
"""What a worker needs besides its weights: the interpreter, torch and the libraries (measured: about 350 MB)."""


@dataclass(frozen=True)
class Source:
    """Where a version lies, ready to be loaded.

    Attributes:
        folder: The version's files, read-only; for an adapter, the adapter's.
        base: The folder of the base that an adapter applies to; None for every other kind.
        weights: Bytes of all weight files that will be loaded, base included.
    """

    folder: Path
    base: Path | None
    weights: int


def prepare(yard: Yard, version: Version, trust_verified: bool = False) -> Source:
    """The folders of a version, every byte verified now (or by this boot, with `trust_verified`), with its base's for an adapter.

    Raises:
        ModelError: The version holds no model; `untrained`: it holds weights that nobody trained.
        NotFoundError: It is an adapter whose base is not in this yard.
        IntegrityError: A stored file is not what its digest says.
    """
    if version.repo_type != "model" or version.kind is None:
        raise ModelError(f"`{version.name}` holds no model that could be served")
    _refuse_untrained(yard, version)
    weights = weights_size(version)
    base = None
    if version.kind == "adapter":
        origin = yard.base_of(version)
        weights += weights_size(origin)
        base = yard.folder(origin, trust_verified=trust_verified)
    return Source(yard.folder(version, trust_verified=trust_verified), base, weights)


def _refuse_untrained(yard: Yard, version: Version) -> None:
    """Nobody is answered from weights that were drawn at random."""
    found = yard.untrained(version)
    if found is not None:
        raise ModelError(
            f"`{version.name}` is not served: it holds weights that nobody trained: {found.describe()}",
            hint=f"train it, and serve what comes out; to try it: yard generate {version.name} PROMPT",
            code="untrained",
            tensors=list(found.tensors) if found.tensors is not None else None,
        )


def weights_size(version: Version) -> int:
    """Bytes of the version's weight files."""
    return sum(entry.size for entry in version.files if entry.path.endswith(_WEIGHTS))


def check_memory(label: str, weights: int, available: int | None = None) -> None:
    """Refuse to load what does not fit beside everything that runs now; `BusyError` carries the numbers in bytes."""
    if available is None:
        import psutil  # type: ignore[import-untyped]  # publishes no types

        available = int(psutil.virtual_memory().available)
    needed = weights + _WORKER_BYTES
    if needed > available:
        raise BusyError(
            f"loading `{label}` needs {needed >> 20} MiB of memory and {available >> 20} MiB are available",
            hint="what is loaded keeps serving; free memory, or serve fewer models",
            code="not_enough_memory",
            needed=needed,
            available=available,
        )
