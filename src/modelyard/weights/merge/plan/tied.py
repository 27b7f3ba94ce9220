"""Changes to tied embeddings: what the adapter's forward computes, kept as two tensors where it is two functions.

PEFT attaches a change to one module. The other module of a tied pair goes on with the base's values, so the trained function has two
tensors where the base has one, and PEFT's merge, which writes one, is another function. Here the pair is parted: the head becomes
a tensor of its own and the configuration says so. A change that is the same on both sides stays one.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.architecture import build_without_memory
from modelyard.weights.files import show_name
from modelyard.weights.merge.names import is_head, is_input_embedding
from modelyard.weights.merge.plan.options import refuse
from modelyard.weights.merge.plan.site import Added

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.merge.plan.disk import Disk
    from modelyard.weights.merge.plan.options import Options
    from modelyard.weights.merge.plan.site import Site

__all__ = ["Parted", "part_tied"]

_FLAG = "tie_word_embeddings"
_ATTACH = "use it attached, `PeftModel.from_pretrained(base, adapter)`: no folder of this class holds what it computes"


@dataclass
class Parted:
    """What becomes of the tied tensors: their changes, tensors to add, and the configuration's new values."""

    sites: dict[str, list[Site]]
    added: dict[str, Added] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def part_tied(disk: Disk, adapter: Checkpoint, options: Options, sites: dict[str, list[Site]]) -> Parted:
    """Settle the changes to tied tensors.

    Args:
        disk: The base.
        adapter: Its values are read only where both sides of a pair were trained, to see whether they still are one.
        options: The adapter's.
        sites: Tensor to its changes; a head that is not on disk is under its module's name.

    Raises:
        ModelError: `tied_embeddings`: more than two tensors are one (T5), or tokens and a head were trained differently.
    """
    made = Parted(sites)
    if not _may_be_tied(disk, sites):
        return made
    try:
        groups = _groups(disk.mapped.tied)
    except ModelError:
        if any(is_head(name) for name in disk.base.home) and disk.config.get(_FLAG) is None:
            return made  # a class that nobody here can build, with both sides on disk and no word of a tie
        raise
    for source, others in groups.items():
        if source in disk.mapped.names:
            _part_group(made, _Group(disk, source, tuple(others)), adapter, options)
    if made.config:
        _part_rest(made, disk, options)
    return made


@dataclass(frozen=True)
class _Group:
    """Tensors that are one: the input embedding `source` and the heads tied to it, by the model's names."""

    disk: Disk
    source: str
    others: tuple[str, ...]


def _may_be_tied(disk: Disk, sites: Mapping[str, list[Site]]) -> bool:
    """Whether an embedding changes and may be tied; looks at names, sizes and the configuration only."""
    sizes = {part.get("vocab_size") for part in (disk.config, *disk.config.values()) if isinstance(part, dict)}
    touched = any(
        is_head(name)
        or is_input_embedding(name)
        or name.endswith("shared.weight")
        # Other classes have other names for them: Mamba `embeddings`, RoBERTa `lm_head.decoder`.
        or any(site.kind in {"embedding", "tokens"} or site.layout.shape[0] in sizes for site in changes)
        for name, changes in sites.items()
    )
    if not touched and all(name in disk.base.home for name in sites):
        return False
    tied = disk.config.get(_FLAG)
    nested = [part.get(_FLAG) for part in disk.config.values() if isinstance(part, dict)]
    return tied is not False or any(nested)


def _groups(tied: Mapping[str, str]) -> dict[str, list[str]]:
    """The tensor that holds the values to those that share them."""
    groups: dict[str, list[str]] = {}
    for name in tied:
        source = name
        while source in tied:
            source = tied[source]
        groups.setdefault(source, []).append(name)
    return groups


def _part_group(made: Parted, group: _Group, adapter: Checkpoint, options: Options) -> None:
    disk, source, others = group.disk, group.source, group.others
    stored = {name: disk.pieces(name)[0].tensor for name in others if name in disk.mapped.names}
    first = disk.pieces(source)[0].tensor
    names = [stored.get(name, name) for name in others]
    changes = made.sites.get(first, [])
    theirs = {name: made.sites[name] for name in names if name in made.sites}
    if not changes and not theirs:
        return
    if not theirs and all(site.kind == "tokens" for site in changes):
        # Trained tokens are rows of both sides: PEFT gives the tied module the same adapter.
        made.sites.update({name: [replace(site, tensor=name) for site in changes] for name in stored.values()})
        return
    if len(names) > 1:
        what = f"`{show_name(source)}` is one tensor with {', '.join(f'`{show_name(name)}`' for name in others)}"
        refuse(options.label, "tied_embeddings", f"{what}, and its configuration cannot part them", hint=_ATTACH)
    (name,) = names
    if any(site.kind == "tokens" for site in changes) and any(site.kind != "tokens" for site in theirs.get(name, [])):
        what = (
            f"single tokens of `{show_name(source)}` were trained and all of `{show_name(name)}`, which are one tensor"
        )
        refuse(options.label, "tied_embeddings", what, hint=_ATTACH)
    if name in theirs and _is_same(changes, theirs[name], adapter):
        if name not in stored.values():
            del made.sites[name]
        return
    if name not in stored.values():
        info = disk.base.info(first)
        made.added[name] = Added(first, info.dtype, info.shape)
        made.sites.setdefault(name, [])
    made.config.update(_untied(disk.config))
    made.warnings.append(
        f"the input embedding and the output layer of the base are one tensor and were trained apart: `{name}` is now a"
        " tensor of its own, and config.json says `tie_word_embeddings: false`"
    )


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's flags that part the pair: of the whole, and of every part that has one or is the text's."""
    parts = [key for key, part in config.items() if isinstance(part, dict) and (key == "text_config" or _FLAG in part)]
    return {_FLAG: False} | {f"{key}.{_FLAG}": False for key in parts}


def _part_rest(made: Parted, disk: Disk, options: Options) -> None:
    """Write out what else the flag tied: without it, RoBERTa's `lm_head.decoder.bias` is no longer `lm_head.bias`.

    Raises:
        ModelError: `tied_embeddings`: the class ties the pair whatever its configuration says.
    """
    config = deepcopy(dict(disk.config))
    for key, value in made.config.items():
        part, _, name = key.rpartition(".")
        (config[part] if part else config)[name] = value
    kept = getattr(build_without_memory(config), "all_tied_weights_keys", None) or {}
    stuck = next((name for name in made.added if name in kept), None)
    if stuck is not None:
        what = f"`{show_name(stuck)}` is one tensor with `{show_name(kept[stuck])}` whatever the configuration says"
        refuse(options.label, "tied_embeddings", what, hint=_ATTACH)
    for name in disk.mapped.tied:
        if name in kept or name in made.added or name in disk.mapped.names:
            continue
        first = disk.pieces(disk.source(name))[0].tensor
        info = disk.base.info(first)
        made.added[name] = Added(first, info.dtype, info.shape)
        made.sites[name] = [replace(site, tensor=name) for site in made.sites.get(first, ())]


def _is_same(ours: list[Site], theirs: list[Site], adapter: Checkpoint) -> bool:
    """Whether both sides of a pair take the same values: replaced by equal ones, or changed by the same factors, turned."""
    if len(ours) != 1 or len(theirs) != 1:
        return False
    one, other = ours[0], theirs[0]
    if one.kind == other.kind == "replaced":
        return _are_equal(adapter, one.tensors["value"], other.tensors["value"], turned=False)
    if one.kind == "embedding" and other.kind == "linear" and not (one.dora or other.dora):
        crossed = (("A", "B"), ("B", "A"))
        return one.scale == other.scale and all(
            _are_equal(adapter, one.tensors[ours], other.tensors[theirs], turned=True) for ours, theirs in crossed
        )
    return False


def _are_equal(adapter: Checkpoint, one: str, other: str, *, turned: bool) -> bool:
    if adapter.info(one).dtype != adapter.info(other).dtype:
        return False
    values = adapter.read(one)
    return bool(np.array_equal(values.T if turned else values, adapter.read(other)))
