"""The two layouts of a model's tensors: as transformers 4 wrote them and 5 still saves them, and as transformers 5's modules hold them.

`block_sparse_moe.experts.0.w1.weight` on disk is a part of `mlp.experts.gate_up_proj` in memory. What becomes of what is transformers' own conversion
mapping, walked as its loader (`convert_and_load_state_dict_in_model`) and its saver (`revert_weight_conversion`) walk it, but planned on tensors without memory
and computed group by group: never more than one group of tensors is in memory. The operations see bit patterns, not numbers, so nothing can be rounded,
and a sum over each group's bits says that none was lost. Knows names and bytes; the architecture is asked, never known.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.architecture import build_without_memory
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name
from modelyard.weights.headers import BITS
from modelyard.weights.shards import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["PREFIXES", "Group", "Layout", "plan_layout"]

PREFIXES = "modelyard_prefixes"
"""The key of a file's `__metadata__` that says which prefixes its tensors had on disk."""


_BITS: Mapping[int, np.dtype[Any]] = {8: np.dtype("u1"), 16: np.dtype("<i2"), 32: np.dtype("<i4"), 64: np.dtype("<i8")}


@dataclass(frozen=True)
class Group:
    """Tensors of the source that become tensors of the result together.

    Attributes:
        sources: Names in the source.
        results: What they become, before any cast.
        operation: `copy`, `rename`, `join` (fewer tensors than before), `cut` (more) or `turn` (as many, their elements moved).
    """

    sources: tuple[str, ...]
    results: tuple[TensorSpec, ...]
    operation: str
    _stages: tuple[tuple[_Step, ...], ...] = field(default=(), repr=False)
    _model: Any = field(default=None, repr=False, compare=False)

    def compute(self, weights: Checkpoint) -> dict[str, NDArray[np.uint8]]:
        """The bytes of every result: reads the sources whole.

        Raises:
            ModelError: `no_layout`: transformers' operation did more than move elements; `truncated`.
        """
        tensors = {name: _read(weights, name) for name in self.sources}
        before = sum(_checksum(tensor) for tensor in tensors.values())
        for steps in self._stages:
            made: dict[str, Any] = {}
            for step in steps:
                made |= step.run({name: tensors.pop(name) for name in step.needs}, self._model)
            tensors = made
        if (sum(_checksum(tensor) for tensor in tensors.values()) - before) % (1 << 64):
            raise _no_layout(weights, f"the conversion of `{show_name(self.sources[0])}` changes more than places")
        return {
            spec.name: tensors.pop(spec.name).contiguous().reshape(-1).numpy().view(np.uint8) for spec in self.results
        }


@dataclass(frozen=True)
class _Step:
    """One of transformers' transforms on the tensors that it collects.

    Attributes:
        transform: A `WeightTransform`; it is never run itself, since it keeps what it collects.
        first: The name that transformers runs it under.
        collected: Source pattern to the tensors' names, in transformers' order.
        renamings: What is applied to the results' names.
        names: What the transform calls each result, to what it is called in the end.
    """

    transform: Any
    first: str
    collected: dict[str, list[str]]
    renamings: tuple[Any, ...] = ()
    names: dict[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> list[str]:
        return [name for names in self.collected.values() for name in names]

    def run(self, tensors: Mapping[str, Any], model: Any) -> dict[str, Any]:
        """The results by their final names (or the transform's own where those are not known yet)."""
        transform = deepcopy(self.transform)
        for pattern, names in self.collected.items():
            for name in names:
                transform.add_tensor(self.first, name, pattern, tensors[name])
        made = transform.convert(self.first, model=model, config=model.config)
        return {
            self.names.get(name, name): value[0] if isinstance(value, list) else value for name, value in made.items()
        }


@dataclass(frozen=True)
class Layout:
    """A plan for every tensor.

    Attributes:
        groups: In the order of the source.
        warnings: What people should know.
        metadata: What the files' headers are to say beside `format`, for the way back.
    """

    groups: list[Group]
    warnings: list[str]
    metadata: dict[str, str]


def plan_layout(weights: Checkpoint, names: str) -> Layout:
    """What becomes of every tensor.

    Args:
        weights: The source, in either layout or a mixture, as transformers' loader takes it.
        names: `disk` or `module`.

    Raises:
        ModelError: `unknown_architecture`; `no_layout`: the mapping cannot be followed with these tensors, or transformers would convert what
            has the module's names once more when it loads it.
    """
    model = build_without_memory(read_json(weights.files, "config.json"))
    specs = {
        name: TensorSpec(name, info.dtype, info.shape)
        for header in weights.shards.values()
        for name, info in header.in_file_order()
    }
    forward, strangers, prefixes = _load_steps(model, specs)
    held = _results_of(weights, forward, specs, model)
    stages: list[Sequence[list[_Step]]] = []
    if names == "module":
        stages += [([step],) for step in forward]
        _refuse_twice(weights, model, held)
    else:
        known = (header.metadata.get(PREFIXES, "").split() for header in weights.shards.values())
        backward = _save_steps(model, held, prefixes.union(*known))
        held = _results_of(weights, backward, held, model)
        stages += _connect(forward, backward)
    groups = list(_make_groups(stages, specs, held, model))
    groups += [Group((name,), (specs[name],), "copy") for name in strangers]
    _refuse_clashes(weights, groups)
    place = {name: number for number, name in enumerate(specs)}
    groups.sort(key=lambda group: min(place[name] for name in group.sources))
    shown = ", ".join(map(show_name, strangers[:5]))
    warnings = (
        [f"{len(strangers)} tensors have no place in the model and keep their names: {shown}"] if strangers else []
    )
    metadata = {PREFIXES: " ".join(sorted(prefixes))} if prefixes and names == "module" else {}
    return Layout(groups, warnings, metadata)


def _load_steps(model: Any, names: Iterable[str]) -> tuple[list[_Step], list[str], frozenset[str]]:
    """Disk to module, as `convert_and_load_state_dict_in_model` does it.

    Second, the names that it has no place for; third, which changes of a prefix were made: their way back follows from no name.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        PrefixChange,
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    owner = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    steps: dict[str, _Step] = {}
    strangers = []
    prefixes: set[str] = set()
    for name in sorted(names, key=dot_natural_key):
        for each in mapping:
            each._was_used = False  # noqa: SLF001  what it was used for before says nothing of this name
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        else:
            prefixes |= {_describe(each) for each in mapping if isinstance(each, PrefixChange) and each.was_used()}
        if target not in state:
            strangers.append(name)
            continue
        transform = WeightRenaming(name, target) if pattern is None else owner[pattern]
        step = steps.setdefault(target, _Step(transform, target, {}))
        step.collected.setdefault(name if pattern is None else pattern, []).append(name)
    return list(steps.values()), strangers, frozenset(prefixes)


def _save_steps(model: Any, names: Iterable[str], prefixes: frozenset[str]) -> list[_Step]:
    """Module to disk, as `revert_weight_conversion` does it.

    Old names (`gamma` and `beta`) are not made again; neither are prefixes that some files have and others have not, unless this one had them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        PrefixChange,
        WeightConverter,
        WeightRenaming,
        apply_converters,
        apply_renamings,
        dot_natural_key,
    )

    mapping = [
        each.reverse_transform()
        for each in reversed(get_model_conversion_mapping(model, add_legacy=False))
        if not isinstance(each, PrefixChange) or _describe(each) in prefixes
    ]
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    owner = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    steps: dict[str, _Step] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = apply_converters(name, converters)
        transform: Any
        if pattern is None:
            target = apply_renamings(name, renamings)
            transform = WeightRenaming(name, target)
        else:
            transform = owner[pattern]
        step = steps.setdefault(target, _Step(transform, target, {}))
        step.collected.setdefault(name if pattern is None else pattern, []).append(name)
    # What a converter gives is renamed once it is there, by `_results_of`: its own patterns are those from before.
    return [
        replace(step, renamings=tuple(renamings)) if isinstance(step.transform, WeightConverter) else step
        for step in steps.values()
    ]


def _describe(change: Any) -> str:
    """One `PrefixChange`, as it is said in a file's metadata."""
    added, removed = change.prefix_to_add, change.prefix_to_remove
    where = ".".join(each for each in (change.scope_prefix, change.model_prefix) if each)
    return f"{where}+{added}" if added is not None else f"{where}-{removed}"


def _results_of(
    weights: Checkpoint, steps: Iterable[_Step], specs: Mapping[str, TensorSpec], model: Any
) -> dict[str, TensorSpec]:
    """What the steps give, found with tensors that have no memory; each step's `names` are filled in."""
    import torch
    from transformers.core_model_loading import apply_renamings

    made: dict[str, TensorSpec] = {}
    for step in steps:
        (dtype, *others) = dict.fromkeys(specs[name].dtype for name in step.needs)
        if others:
            mixed = f"`{show_name(step.first)}` is made of tensors of several dtypes ({dtype}, {', '.join(others)})"
            raise _no_layout(weights, mixed)
        width = _BITS.get(BITS[dtype])
        if width is None:
            raise _no_layout(weights, f"`{show_name(step.needs[0])}` is {dtype}, whose elements are no whole bytes")
        kind = getattr(torch, str(width.name))
        blank = {name: torch.empty(specs[name].shape, dtype=kind, device="meta") for name in step.needs}
        try:
            results = step.run(blank, model)
        except (ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            # transformers' operations over shapes from a file: whatever they raise is a finding about the file.
            what = f"`{show_name(step.first)}` cannot be converted: {type(error).__name__}: {str(error)[:200]}"
            raise _no_layout(weights, what) from error
        for raw, tensor in results.items():
            name = apply_renamings(raw, list(step.renamings)) if step.renamings else raw
            step.names[raw] = name
            if name in made:
                raise _no_layout(weights, f"two tensors would be called `{show_name(name)}`")
            made[name] = TensorSpec(name, dtype, tuple(tensor.shape))
    return made


def _connect(forward: list[_Step], backward: list[_Step]) -> list[tuple[list[_Step], list[_Step]]]:
    """The steps there and back that work on the same tensors, together."""
    made_by = {name: place for place, step in enumerate(forward) for name in step.names.values()}
    parent = list(range(len(forward)))

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for step in backward:
        first, *others = [made_by[name] for name in step.needs]
        for other in others:
            parent[root(other)] = root(first)
    connected: dict[int, tuple[list[_Step], list[_Step]]] = {}
    for place, step in enumerate(forward):
        connected.setdefault(root(place), ([], []))[0].append(step)
    for step in backward:
        connected[root(made_by[step.needs[0]])][1].append(step)
    return list(connected.values())


def _make_groups(
    stages: Iterable[Sequence[list[_Step]]],
    before: Mapping[str, TensorSpec],
    after: Mapping[str, TensorSpec],
    model: Any,
) -> Iterator[Group]:
    """A group for each set of connected steps; tensors that come out as they went in are copies."""
    for stage in stages:
        sources = tuple(name for step in stage[0] for name in step.needs)
        results = tuple(after[name] for step in stage[-1] for name in step.names.values())
        renaming = all(not hasattr(step.transform, "operations") for steps in stage for step in steps)
        if {spec.name: spec for spec in results} == {name: before[name] for name in sources} and (
            renaming or len(stage) > 1  # there and back again
        ):
            yield from (Group((spec.name,), (spec,), "copy") for spec in results)
        elif renaming:
            yield Group(sources, results, "rename")
        else:
            operation = "turn" if len(results) == len(sources) else "join" if len(results) < len(sources) else "cut"
            yield Group(sources, results, operation, tuple(map(tuple, stage)), model)


def _refuse_twice(weights: Checkpoint, model: Any, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse a layout that transformers would take for the one on disk: what it loads would be converted twice."""
    steps, strangers, _ = _load_steps(model, specs)
    wrong = strangers + [
        name for step in steps for name in step.needs if step.first != name or not _looks_first(step.transform)
    ]
    if wrong:
        raise _no_layout(weights, f"transformers would convert `{show_name(wrong[0])}` once more when it loads it")


def _looks_first(transform: Any) -> bool:
    """Whether a transform leaves what has the module's shape already: a renaming, or a transposition that checks."""
    return all(getattr(operation, "check_dims", False) for operation in getattr(transform, "operations", ()))


def _refuse_clashes(weights: Checkpoint, groups: Iterable[Group]) -> None:
    count = Counter(spec.name for group in groups for spec in group.results)
    if count and (most := count.most_common(1)[0])[1] > 1:
        raise _no_layout(weights, f"two tensors would be called `{show_name(most[0])}`")


def _read(weights: Checkpoint, name: str) -> Any:
    """A whole tensor as torch's integers of the same width: what is moved is bits."""
    import torch

    info = weights.info(name)
    made = np.empty(info.end - info.start, np.uint8)
    with weights.open(weights.home[name]) as shard:
        shard.read_into(made.data, info.start)
    return torch.from_numpy(made.view(_BITS[BITS[info.dtype]])).reshape(info.shape)


def _checksum(tensor: Any) -> int:
    """The sum of the elements' bits modulo 2^64: the same in every order."""
    import torch

    return int(tensor.sum(dtype=torch.int64).item())


def _no_layout(weights: Checkpoint, what: str) -> ModelError:
    return ModelError(f"`{weights.files.label}` cannot take other names: {what}", code="no_layout")
