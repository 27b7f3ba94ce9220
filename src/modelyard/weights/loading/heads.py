"""Which tensors belong to a head: what a task adds to a checkpoint, and what it leaves of it.

Decided by the class that the checkpoint was saved as, built on the meta device: a tensor that this class has not is added
by the task, one that it alone has is dropped. Where it is unknown, the head is what is outside the module at
`base_model_prefix`. A checkpoint that is loaded as its own class has no head to add.

Knows names of tensors; reads no values.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.weights.leftovers import find_harmless, is_idle
from modelyard.weights.loading.lock import LOADING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelyard.weights.loading.classes import Choice

__all__ = ["Split", "module_names", "module_targets", "renamed_only", "split"]


@dataclass(frozen=True, slots=True)
class Split:
    """What a library's loading report means.

    Attributes:
        added: Tensors of a head that the task adds; the library drew them at random.
        dropped: Tensors of the files that belong to another task's head, or are harmless (`weights.leftovers`).
        kept: Tensors of the head that the files have by the same names, saved as another class's.
        missing: Tensors of the body that no file holds.
        unexpected: Tensors of the files that belong to nothing.
        mismatched: Tensors of the body with another shape in the files: (name, shape there, shape in the model).
    """

    added: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Any, ...]
    kept: tuple[str, ...] = ()


def split(
    info: Mapping[str, Any],
    model: Any,
    choice: Choice,
    own_config: Any,
    *,
    relabelled: bool,
    disk: Mapping[str, tuple[int, ...]],
) -> Split:
    """Sort transformers' loading report into head and body.

    Args:
        info: What `output_loading_info=True` gives.
        model: The model that was loaded.
        choice: The class that it is, and the one that the checkpoint was saved as.
        own_config: The checkpoint's own configuration.
        relabelled: Whether the caller asked for another number of labels than the checkpoint has.
        disk: The files' tensors and their shapes, by which the old class's own are known where its names on disk are not
            those of its modules.
    """
    names = _rename(model, disk, held := model.state_dict())
    shapes: dict[str, tuple[int, ...] | None] = {new: disk[name] for name, (new, _) in names.items()}
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"], key=str)
    if choice.is_own:
        added = {str(item[0]) for item in mismatched if relabelled and not _in_body(model, str(item[0]))}
        added |= {name for name in missing if is_idle(name)}
        faults = [name for name in missing if name not in added]
        # With faults in the body, what is left over is part of the same trouble (a prefix on every name).
        known = frozenset() if faults else find_harmless({name: shapes.get(name) for name in unexpected}, model)
        return Split(
            tuple(sorted(added)),
            tuple(sorted(known | _passed_over(model, names, held, unexpected))),
            tuple(faults),
            tuple(name for name in unexpected if name not in known),
            tuple(item for item in mismatched if item[0] not in added),
        )
    own = _build_own(choice, own_config) if missing or unexpected else None
    before = None if own is None else {_bare(name, _prefix(own)) for name in own.state_dict()}
    # By the names that the report has: transformers renames a tensor for the new class before it finds no place for it.
    theirs: set[str] = set()
    if own is not None and unexpected:
        theirs = {renamed for renamed, _ in _rename(model, module_names(own, disk), held).values()}

    def had(name: str) -> bool:
        return name in theirs or (before is not None and _bare(name, _prefix(model)) in before)

    new = {name for name in missing if (not had(name) if before is not None else not _in_body(model, name))}
    new |= {str(item[0]) for item in mismatched if not _in_body(model, str(item[0]))}
    new |= {name for name in missing if is_idle(name)}
    gone = {name for name in unexpected if had(name) or not _in_body(model, name)}
    gone |= find_harmless({name: shapes.get(name) for name in unexpected if name not in gone}, model)
    faults = [name for name in missing if name not in new]
    taken = {target for target, _ in names.values() if target in held and not _in_body(model, target)}
    return Split(
        tuple(sorted(new)),
        tuple(sorted(gone | _passed_over(model, names, held, unexpected))),
        tuple(faults),
        tuple(name for name in unexpected if faults or name not in gone),
        tuple(item for item in mismatched if item[0] not in new),
        tuple(sorted(taken - new)),
    )


def _passed_over(
    model: Any,
    names: Mapping[str, tuple[str, tuple[str, ...] | None]],
    held: Mapping[str, Any],
    unexpected: Iterable[str],
) -> set[str]:
    """What transformers left out by its own patterns, and says nothing of."""
    if getattr(model.config, "quantization_config", None) is not None:
        return set()  # packed weights have names of their own, which are taken in other ways
    listed = set(unexpected)
    return {new for new, others in names.values() if new not in listed and not {new, *(others or ())} & held.keys()}


def module_names(model: Any, disk: Iterable[str]) -> dict[str, str]:
    """Each tensor's name on disk to its name in the model (the first, of one that is cut into several).

    As transformers renames it when it loads; names that it has no place for are left out.
    """
    return {name: targets[0] for name, targets in module_targets(model, disk).items()}


def module_targets(model: Any, disk: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """As `module_names`, with every tensor of the model that one on disk is cut into (a fused qkv)."""
    return {name: targets for name, (targets, _) in _targets(model, disk).items()}


def renamed_only(model: Any, disk: Iterable[str]) -> dict[str, str]:
    """As `module_names`, for tensors that are the same in the model but for their name."""
    return {name: targets[0] for name, (targets, converted) in _targets(model, disk).items() if not converted}


def _targets(model: Any, disk: Iterable[str]) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Name on disk to the names in the model, and whether values are joined, cut or turned on the way."""
    held = model.state_dict()
    made: dict[str, tuple[tuple[str, ...], bool]] = {}
    for name, (renamed, others) in _rename(model, disk, held).items():
        found = tuple(target for target in (renamed, *(others or ())) if target in held)
        if found:
            made[name] = found, others is not None
    return made


def _rename(model: Any, disk: Iterable[str], held: dict[str, Any]) -> dict[str, tuple[str, tuple[str, ...] | None]]:
    """Name on disk to what transformers renames it to, and to what else of the model is cut from it; None: nothing is cut
    or joined.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping: Any = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    made: dict[str, tuple[str, tuple[str, ...] | None]] = {}
    for name in sorted(disk, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        if renamed not in held and name in held:
            made[name] = name, None
        elif pattern is None:
            made[name] = renamed, None
        else:
            first, *others = by_pattern[pattern].target_patterns
            made[name] = renamed, tuple(renamed.replace(first, other) for other in others)
    return made


def _in_body(model: Any, name: str) -> bool:
    """Whether a tensor is of the module at `base_model_prefix`; of a base model itself, of one of its modules."""
    prefix = model.base_model_prefix
    if prefix and hasattr(model, prefix):
        return name.startswith(f"{prefix}.")
    first = name.partition(".")[0]
    return any(first == child for child, _ in (*model.named_children(), *model.named_parameters(recurse=False)))


def _build_own(choice: Choice, config: Any) -> Any | None:
    """The class that the checkpoint was saved as, on the meta device; None where there is no such class."""
    import torch

    if choice.own is None:
        return None
    with LOADING, torch.device("meta"):
        return choice.own._from_config(copy.deepcopy(config))  # noqa: SLF001  what AutoModel.from_config calls


def _prefix(model: Any) -> str:
    return f"{model.base_model_prefix}." if model.base_model_prefix else ""


def _bare(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) if prefix else name
