"""Whether a version holds weights that nobody trained: a random model, or a head that a task added to an encoder.

The mark is in config.json (`weights.untrained`), and counts only while the tensors are what it says. config.json is read once
for each of its digests; tensors are read only where it has a mark. An adapter answers with its base's head, so that one's mark
is its own, but for tensors that it holds itself. Knows versions; not what a model is for.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from modelyard.errors import ConflictError, GateRefusedError, ModelError, NotFoundError
from modelyard.registry.contents import StoredFiles
from modelyard.registry.lineage import adapter_base

if TYPE_CHECKING:
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version
    from modelyard.weights.untrained import Untrained

__all__ = ["find", "refuse_untrained"]

_CONFIG = "config.json"
_ADAPTER = "adapter_model.safetensors"
_KEY = b"modelyard_untrained"
_KEPT = 4096

_unmarked: set[str] = set()
"""Digests of config.json files without a mark: a file of this digest never has one."""
_lock = threading.Lock()


def find(context: Context, version: Version) -> Untrained | None:
    """The mark of a version if it has one and it is still true; of an adapter, what is left of its base's.

    An adapter on a random base is what that base was trained to.

    Raises:
        ModelError: `bad_mark`: config.json holds a mark that nobody can read.
        IntegrityError: config.json, or a file with tensors that the mark names, is damaged.
    """
    if version.kind == "adapter":
        return _of_base(context, version)
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


def _of_base(context: Context, adapter: Version) -> Untrained | None:
    """The head that an adapter's base never learned, and the adapter has not either."""
    try:
        base = adapter_base(context, adapter)
    except (NotFoundError, ConflictError):
        return None  # nobody knows its base: it can neither be loaded nor served by itself
    found = find(context, base)
    if found is None or found.tensors is None:
        return None
    from modelyard.weights.checkpoint import open_checkpoint

    files = StoredFiles(context.store, adapter)
    names = open_checkpoint(files, "adapter_model").home if _ADAPTER in files.names() else ()
    held = {name.removeprefix("base_model.model.") for name in names}
    rest = tuple(name for name in found.tensors if name not in held)
    return replace(found, tensors=rest) if rest else None


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
