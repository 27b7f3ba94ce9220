"""The arithmetic of one tensor of a merged model: read block by block from its models, mixed, and handed on in the result's dtype.

Everything but slerp's angle is an exact operation of docs/design/derivations.md; which one, and with which numbers, `Mixed` says.
`linear`, `task_arithmetic`, `dare_linear`, `dare_ties`, `slerp` and `passthrough` hold one block of each model at a time; `ties`
holds the tensor of each. Knows tensors and numbers, no configuration files.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import (
    STORAGE,
    Operands,
    Tally,
    apply_dare,
    apply_dare_2,
    apply_linear,
    apply_ties_2,
)
from modelyard.derivations.numbers import widen
from modelyard.errors import InputError, ModelError
from modelyard.weights.files import show_name
from modelyard.weights.merge.slerp import slerp_shares
from modelyard.weights.values import read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Checkpoint, Shard
    from modelyard.weights.merge.pairing import Mix, Part

__all__ = ["Mixed", "Mixer", "check_finite"]

BLOCK_ELEMENTS = 1 << 20
"""How many elements of each model are in memory at once."""

_MOST_OPEN = 64
_SUM_ELEMENTS = 1 << 16
_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass(frozen=True)
class Mixed:
    """What is done to one tensor: the operation, its numbers, and the parts in the operation's order."""

    operation: str
    parts: tuple[Part, ...]
    base: Part | None = None
    weights: tuple[float, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For a certificate."""
        made: dict[str, Any] = {"operation": self.operation}
        if self.weights:
            made["weights"] = list(self.weights)
        return made | self.options


class Mixer:
    """Reads the models' tensors and mixes them; keeps a bounded number of files open.

    Args:
        models: By name in the configuration.
        seed: For `dare`; 0 to 2^53 - 1.
        threads: Compute threads; cannot change a bit.
        block_elements: How many elements of each model are worked on at once; cannot change a bit.
    """

    def __init__(
        self,
        models: Mapping[str, Checkpoint],
        *,
        seed: int = 0,
        threads: int = 1,
        block_elements: int = BLOCK_ELEMENTS,
    ) -> None:
        self._models, self._seed, self._threads, self._block = models, seed, threads, block_elements
        self._open: OrderedDict[tuple[str, str], Shard] = OrderedDict()

    def __enter__(self) -> Mixer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._open.popitem()[1].__exit__(kind, error, trace)

    def mix(self, mix: Mix, write: Callable[[memoryview], None]) -> Mixed:
        """Hand the result's bytes to `write`, in order.

        Raises:
            ModelError: `nan_result`, `infinite_result` or `different_models` (integers that are not alike), naming the tensor.
        """
        if mix.method == "copy" or mix.elements == 0:
            return self._copy(mix, write)
        mixed = self._plan(mix)
        try:
            for made in self._blocks(mix, mixed):
                check_finite(made, mix.dtype, mix.name)
                write(made.reshape(-1).view(np.uint8).data)
        except InputError as error:
            raise ModelError(f"`{show_name(mix.name)}` cannot be merged: {error.message}", code=error.code) from error
        return mixed

    def _plan(self, mix: Mix) -> Mixed:
        """The operation that a mix is, with weights in binary64."""
        given = [float(part.parameters.get("weight", 1.0)) for part in mix.parts]
        match mix.method:
            case "linear":
                total = math.fsum(given) if mix.shared["normalize"] else 1.0
                return Mixed("linear/1", mix.parts, None, tuple(weight / total for weight in given))
            case "passthrough":
                return Mixed("linear/1", mix.parts, None, (float(mix.parts[0].parameters["scale"]),))
            case "slerp":
                return self._slerp(mix)
            case "ties":
                kept = [_count(float(part.parameters["density"]), mix.elements) for part in mix.parts]
                return Mixed("ties/2", mix.parts, mix.base, tuple(given), {"kept": kept} | _tally(mix))
        scale = float(mix.shared["lambda"])
        densities = [min(float(part.parameters.get("density", 1.0)), 1.0) for part in mix.parts]
        elect, rescale = mix.method == "dare_ties", bool(mix.shared.get("rescale", True))
        if not mix.parts or (not elect and len(set(densities)) == 1 and (rescale or densities[0] == 1)):
            total = math.fsum(given) if mix.shared["normalize"] else 1.0
            weights = tuple(scale * weight / (total if abs(total) >= 1e-8 else 1.0) for weight in given)
            drawn = {"density": densities[0]} | self._seeded(densities) if densities else {"density": 1.0}
            return Mixed("dare/1", mix.parts, mix.base, weights, drawn)
        options = {"densities": densities, "rescale": rescale, "elect": elect} | _tally(mix) | self._seeded(densities)
        return Mixed("dare/2", mix.parts, mix.base, tuple(given), options)

    def _seeded(self, densities: list[float]) -> dict[str, Any]:
        return {"seed": self._seed} if min(densities) < 1 else {}

    def _slerp(self, mix: Mix) -> Mixed:
        """Two passes: norms and product in binary64 here; then a weighted sum."""
        first, second = ([mix.base] if mix.base else []) + list(mix.parts)
        sums: list[list[float]] = [[], [], []]
        for start in range(0, mix.elements, _SUM_ELEMENTS):
            end = min(start + _SUM_ELEMENTS, mix.elements)
            x, y = (self._wide(part, start, end).astype(np.float64) for part in (first, second))
            for total, product in zip(sums, (x * x, y * y, x * y), strict=True):
                total.append(float(np.sum(product)))
        # `fsum` is exact, so how many blocks there are cannot show; inside of one, numpy's own order can.
        norms = math.sqrt(math.fsum(sums[0])), math.sqrt(math.fsum(sums[1]))
        t = float(mix.shared["t"])
        weights = slerp_shares(t, *norms, math.fsum(sums[2]))
        return Mixed("slerp", (first, second), None, weights, {"t": t})

    def _blocks(self, mix: Mix, mixed: Mixed) -> Iterator[Array]:
        if not mixed.parts:  # nothing but the base
            mixed = Mixed("linear/1", (mixed.base,) if mixed.base else (), None, (1.0,))
        step = mix.elements if mixed.operation == "ties/2" else self._block
        for start in range(0, mix.elements, step):
            end = min(start + step, mix.elements)
            operands = self._operands(mixed, start, end)
            yield self._apply(mix, mixed, operands, start)

    def _apply(self, mix: Mix, mixed: Mixed, operands: Operands, start: int) -> Array:
        """One block of the result."""
        options, threads = mixed.options, self._threads
        if mixed.operation in {"linear/1", "slerp"}:
            return apply_linear(operands, mix.dtype, threads=threads)
        if mixed.operation == "ties/2":
            tally = Tally(normalize=options["normalize"], scale=options["scale"])
            return apply_ties_2(operands, options["kept"], mix.dtype, tally=tally, threads=threads)
        drawn: dict[str, Any] = {"seed": self._seed, "name": mix.name, "element": start, "threads": threads}
        if mixed.operation == "dare/1":
            return apply_dare(operands, options["density"], mix.dtype, **drawn)
        tally = Tally(options["elect"], options["normalize"], options["scale"])
        return apply_dare_2(operands, options["densities"], mix.dtype, rescale=options["rescale"], tally=tally, **drawn)

    def _operands(self, mixed: Mixed, start: int, end: int) -> Operands:
        sources = [self._read(part, start, end) for part in mixed.parts]
        dtypes = [self._info(part).dtype for part in mixed.parts]
        if mixed.base is None:
            return Operands(sources, dtypes, mixed.weights)
        base = self._read(mixed.base, start, end)
        return Operands(sources, dtypes, mixed.weights, base=base, base_dtype=self._info(mixed.base).dtype)

    def _copy(self, mix: Mix, write: Callable[[memoryview], None]) -> Mixed:
        """A tensor without arithmetic: what all models have alike."""
        first, *others = mix.parts or ((mix.base,) if mix.base else ())
        for other in others:
            pairs = zip(self._raw(first), self._raw(other), strict=True)
            if not all(np.array_equal(one, two) for one, two in pairs):
                raise ModelError(
                    f"these models cannot be merged: `{show_name(mix.name)}` ({mix.dtype}) is not alike in"
                    f" `{first.model}` and `{other.model}`",
                    code="different_models",
                )
        for block in self._raw(first):
            write(block.data)
        return Mixed("copy", (first,))

    def _raw(self, part: Part) -> Iterator[Array]:
        return read_blocks(self._shard(part), self._info(part))

    def _read(self, part: Part, start: int, end: int) -> Array:
        info = self._info(part)
        kept = STORAGE[info.dtype]
        made = np.empty(end - start, kept)
        self._shard(part).read_into(made.view(np.uint8).data, info.start + start * kept.itemsize)
        return made

    def _wide(self, part: Part, start: int, end: int) -> Array:
        made = np.empty(end - start, np.float32)
        widen(self._read(part, start, end), self._info(part).dtype, made)
        return made

    def _info(self, part: Part) -> Any:
        return self._models[part.model].info(part.tensor)

    def _shard(self, part: Part) -> Shard:
        model = self._models[part.model]
        key = (part.model, model.home[part.tensor])
        if key not in self._open:
            self._open[key] = model.open(key[1])
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1].__exit__(None, None, None)
        self._open.move_to_end(key)
        return self._open[key]


def check_finite(made: Array, dtype: str, name: str) -> None:
    """Refuse a result that holds an infinity (or a NaN), which no model's weights may.

    Raises:
        ModelError: `infinite_result`, naming the tensor.
    """
    bits, exponent = _EXPONENTS[dtype]
    if np.any((made.view(bits) & exponent) == exponent):
        raise ModelError(
            f"`{show_name(name)}` cannot be merged: the result does not fit {dtype}",
            code="infinite_result",
            hint="merge into bfloat16 or float32, or check what is merged: yard doctor MODEL",
        )


def _count(density: float, elements: int) -> int:
    """How many changes mergekit keeps: rounded down, at least one of any, none at a density of 0."""
    if density >= 1:
        return elements
    return max(1, int(density * elements)) if density > 0 else 0


def _tally(mix: Mix) -> dict[str, Any]:
    return {"normalize": bool(mix.shared["normalize"]), "scale": float(mix.shared["lambda"])}
