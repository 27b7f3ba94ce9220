"""Whether a version holds weights that nobody trained: a random model, or a head that a task added to an encoder.

The mark is in config.json (`weights.untrained`), and counts only while the tensors are what it says. config.json is read once
for each of its digests; tensors are read only where it has a mark. Knows versions; not what a model is for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from modelyard.errors import GateRefusedError, ModelError
from modelyard.registry.contents import StoredFiles

if TYPE_CHECKING:
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version
    from modelyard.weights.untrained import Untrained

__all__ = ["find", "refuse_untrained"]

_CONFIG = "config.json"
_KEY = b"modelyard_untrained"
_KEPT = 4096

_unmarked: set[str] = set()
"""Digests of config.json files without a mark: a file of this digest never has one."""
_lock = threading.Lock()


def find(context: Context, version: Version) -> Untrained | None:
    """The mark of a version if it has one and it is still true.

    Raises:
        ModelError: `bad_mark`: config.json holds a mark that nobody can read.
        IntegrityError: config.json, or a file with tensors that the mark names, is damaged.
    """
    entry = version.file(_CONFIG) if version.repo_type == "model" else None
    if entry is None or entry.blake3 in _unmarked:
        return None
    files = StoredFiles(context.store, version)
    if not _may_be_marked(files.read(_CONFIG)):
        with _lock:
            if len(_unmarked) >= _KEPT:
                _unmarked.clear()
            _unmarked.add(entry.blake3)
        return None
    from modelyard.weights.untrained import find_untrained

    return find_untrained(files)


def _may_be_marked(config: bytes) -> bool:
    # JSON may write a letter as an escape: then its key is looked for by a parser.
    return _KEY in config or b"\\u" in config


def refuse_untrained(context: Context, version: Version, alias: str) -> None:
    """Refuse (`GateRefusedError`, code ``untrained``) to let an alias move to weights that nobody trained."""
    try:
        found = find(context, version)
    except ModelError as error:
        raise GateRefusedError(
            f"`{version.name}` is not promoted to `{alias}`: {error.message}", hint=error.hint, code=error.code
        ) from error
    if found is None:
        return
    raise GateRefusedError(
        f"`{version.name}` is not promoted to `{alias}`: it holds weights that nobody trained: {found.describe()}",
        hint=f"train it, and promote what comes out: yard train --base {version.name}",
        code="untrained",
        kind=found.kind,
        tensors=list(found.tensors) if found.tensors is not None else None,
    )
