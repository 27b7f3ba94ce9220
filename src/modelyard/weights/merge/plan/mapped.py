"""Where a model's tensors lie on disk, where their names or shapes differ: transformers' own mapping, followed row by row.

The model is built on torch's meta device, which takes no memory, and each renaming and conversion that loading would run is run on names
and row numbers instead of weights. So a module cut from a fused tensor, experts stacked from single files and rows permuted for rotary
embeddings are all found by what the library does, not by a table kept here. Imported only when names do not match as they are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.architecture import build_without_memory
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Mapped", "Piece"]

_ROW_OPERATIONS = frozenset({"Chunk", "Split", "Concatenate", "Interleave", "PermuteForRope"})
_SOURCE = 1 << 40  # row numbers of the n-th source start at n times this


@dataclass(frozen=True)
class Piece:
    """A part of a module's tensor as it lies on disk.

    Attributes:
        tensor: The tensor on disk.
        first: The first of its rows that this is.
        rows: Which rows of the module's tensor lie there, in this order; None is all, as they are.
        expert: Which expert of a stacked parameter it is; its rows are then that expert's.
        turned: The tensor on disk is the transpose of the module's.
    """

    tensor: str
    first: int = 0
    rows: range | tuple[int, ...] | None = None
    expert: int | None = None
    turned: bool = False


class Mapped:
    """A base's architecture, and the table from its tensors to those on disk.

    Args:
        config: The base's config.json.
        shapes: Each tensor on disk to its shape.

    Raises:
        ModelError: `unknown_architecture`.
    """

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = build_without_memory(config)
        self._shapes = shapes
        self.state: dict[str, Any] = dict(self.model.state_dict())
        self._converted: dict[str, tuple[Any, dict[str, list[str]]]] = {}
        self._plain: dict[str, str] = {}
        self._follow_names()

    @property
    def names(self) -> set[str]:
        """Every tensor of the model that is on disk, by the model's name."""
        return self._plain.keys() | self._converted.keys()

    @property
    def tied(self) -> dict[str, str]:
        """Tensor to the one whose values it shares, by the model's names."""
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})

    def pieces(self, name: str) -> list[Piece]:
        """Where the model's tensor `name` lies.

        Raises:
            ModelError: `unsupported_layout`: it is stored in a way that is not followed here, which is named.
        """
        if name in self._plain:
            return [Piece(self._plain[name])]
        converter, sources = self._converted[name]
        kinds = [type(operation).__name__ for operation in converter.operations]
        if kinds[0] == "MergeModulelist":
            return self._stacked(name, converter, sources, kinds)
        if kinds == ["Transpose"]:
            return self._turned(name, converter, sources)
        if all(kind in _ROW_OPERATIONS for kind in kinds):
            return self._rows(name, converter, sources, kinds)
        raise _unsupported(name, kinds)

    def parameters(self, module: str) -> list[str]:
        """The names of a module's own parameters in their order; empty where there is no such module."""
        try:
            found = self.model.get_submodule(module)
        except AttributeError:
            return []
        return [name for name, _ in found.named_parameters(recurse=False)]

    def is_transposed(self, module: str) -> bool:
        """Whether a module of experts stores (expert, in, out)."""
        return bool(getattr(self.model.get_submodule(module), "is_transposed", False))

    def _follow_names(self) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        transforms = get_model_conversion_mapping(self.model)
        renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
        converters = [item for item in transforms if isinstance(item, WeightConverter)]
        by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
        grouped: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name in sorted(self._shapes, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, self.model.base_model_prefix, self.state)
            if target not in self.state and name in self.state:
                target, pattern = name, None
            if pattern is None:
                self._plain[target] = name
                continue
            grouped[target][pattern].append(name)
        for target, sources in grouped.items():
            converter = by_pattern[next(iter(sources))]
            for each in _targets(target, converter):
                self._converted[each] = (converter, dict(sources))

    def _stacked(self, name: str, converter: Any, sources: dict[str, list[str]], kinds: list[str]) -> list[Piece]:
        """Experts, one tensor each on disk: stacked along the first axis, gate and up joined along the second."""
        first, *rest = converter.operations
        if first.dim != 0 or not (not rest or (kinds[1:] == ["Concatenate"] and rest[0].dim == 1)):
            raise _unsupported(name, kinds)
        made: list[Piece] = []
        start = 0
        for pattern in converter.source_patterns:
            tensors = sources.get(pattern, [])
            rows = {self._shapes[tensor][0] for tensor in tensors}
            if len(rows) != 1:
                raise _unsupported(name, kinds)
            end = start + rows.pop()
            made += [Piece(tensor, 0, range(start, end), expert) for expert, tensor in enumerate(tensors)]
            start = end
        return made

    def _turned(self, name: str, converter: Any, sources: dict[str, list[str]]) -> list[Piece]:
        (tensor,) = next(iter(sources.values()))
        operation, shape = converter.operations[0], self._shapes[tensor]
        if {operation.dim0, operation.dim1} != {len(shape) - 2, len(shape) - 1}:
            raise _unsupported(name, ["Transpose"])
        same = operation.check_dims and shape == tuple(self.state[name].shape)
        return [Piece(tensor, turned=not same)]

    def _rows(self, name: str, converter: Any, sources: dict[str, list[str]], kinds: list[str]) -> list[Piece]:
        """Run the operations on row numbers, and read off which rows of which tensor became this one's."""
        import torch

        counted = any(getattr(operation, "num_shards_attribute", None) for operation in converter.operations)
        if counted or any(getattr(operation, "dim", 0) != 0 for operation in converter.operations):
            raise _unsupported(name, kinds)
        tensors = [tensor for pattern in converter.source_patterns for tensor in sources.get(pattern, ())]
        values: Any = {
            pattern: [tensors.index(each) * _SOURCE + torch.arange(self._shapes[each][0]) for each in found]
            for pattern, found in sources.items()
        }
        target = next(each for each in _targets(name, converter, back=True) if each in self._converted)
        for operation in converter.operations:
            values = operation.convert(
                values,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=target,
                model=self.model,
                config=self.model.config,
            )
        found = dict(zip(_targets(target, converter), values.values(), strict=True))[name]
        numbers = found[0] if isinstance(found, list) else found
        found_pieces = [_piece(tensor, place, numbers.tolist()) for place, tensor in enumerate(tensors)]
        return [piece for piece in found_pieces if piece is not None]


def _piece(tensor: str, place: int, numbers: Sequence[int]) -> Piece | None:
    """What of one tensor on disk is in a module's: `numbers` are the module's rows, as numbers of rows on disk."""
    pairs = sorted((number % _SOURCE, row) for row, number in enumerate(numbers) if number // _SOURCE == place)
    if not pairs:
        return None
    first, rows = pairs[0][0], tuple(row for _, row in pairs)
    if [number for number, _ in pairs] != list(range(first, first + len(pairs))):
        raise _unsupported(tensor, ["rows that do not lie together"])
    plain = range(rows[0], rows[0] + len(rows))
    return Piece(tensor, first, plain if rows == tuple(plain) else rows)


def _targets(name: str, converter: Any, *, back: bool = False) -> list[str]:
    """The tensors that one conversion makes, `name` being the first of them (or, with `back`, any: then all candidates for the first)."""
    patterns = [each.strip("^$") for each in converter.target_patterns]
    if len(patterns) == 1:
        return [name]
    if back:
        return [name.replace(each, patterns[0], 1) for each in patterns if each in name]
    return [name.replace(patterns[0], each, 1) for each in patterns]


def _unsupported(name: str, kinds: Sequence[str]) -> ModelError:
    return ModelError(
        f"`{show_name(name)}` is stored on disk by {' and '.join(kinds)}, which a merge does not follow",
        code="unsupported_layout",
        hint="save the base with this transformers (`save_pretrained`) in a layout of its own, or merge with PEFT itself",
    )
