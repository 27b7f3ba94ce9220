"""What a committer says a version's files were computed by: the `derivation` of a version, read with nothing taken on trust.

A hint names an operation over whole versions; the params of one segment follow from it. Whether the bytes agree is for
whoever uses them to compare. Knows operations by name; does not compute any.

>>> Hint.read('{"operation":"linear/1","inputs":["aa","bb"],"weights":["0.5","0.5"]}').weights
(0.5, 0.5)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Hint"]

_NEEDS_BASE = {"linear/1": False, "ties/1": True, "dare/1": True}


@dataclass(frozen=True)
class Hint:
    """A version's `derivation`.

    Attributes:
        operation: `linear/1`, `ties/1` or `dare/1`.
        inputs: Ids of the versions that were put together, in order.
        base: Id of the version that `ties/1` and `dare/1` count changes from.
        weights: One for each input.
        density: The share of changes that is kept.
        seed: Of `dare/1`.
    """

    operation: str
    inputs: tuple[str, ...]
    base: str | None
    weights: tuple[float, ...]
    density: float
    seed: int

    @classmethod
    def read(cls, text: str) -> Hint:
        """From JSON text.

        Raises:
            InputError: `bad_derivation`: not such an object, an operation that needs no hint or is not known, or an incomplete one.
        """
        try:
            found = json.loads(text)
            hint = cls(
                str(found["operation"]),
                tuple(str(each) for each in found["inputs"]),
                str(found["base"]) if found.get("base") else None,
                tuple(float(each) for each in found["weights"]),
                float(found.get("density", 1)),
                int(found.get("seed", 0)),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"its `derivation` cannot be read: {error!r}"[:200], code="bad_derivation") from error
        needs = _NEEDS_BASE.get(hint.operation)
        if needs is None or needs != (hint.base is not None) or not 0 < len(hint.inputs) == len(hint.weights):
            raise InputError(f"its `derivation` is no complete {hint.operation[:40]!r}", code="bad_derivation")
        return hint

    def params(self, dtype: str, from_: Sequence[str], base_dtype: str, *, name: str, element: int) -> dict[str, Any]:
        """The params of one segment, without `roles`.

        Args:
            dtype: Of the segment.
            from_: Of the inputs.
            base_dtype: Of the base.
            name: Of the tensor.
            element: Where in the tensor the segment starts.

        Raises:
            InputError: A number that the operation does not take.
        """
        from modelyard.derivations.params import dare_params, linear_params, ties_params

        if self.operation == "linear/1":
            return linear_params(from_, self.weights, dtype)
        if self.operation == "ties/1":
            return ties_params(from_, self.weights, dtype, base_dtype=base_dtype, density=self.density)
        return dare_params(
            from_,
            self.weights,
            dtype,
            base_dtype=base_dtype,
            density=self.density,
            seed=self.seed,
            name=name,
            element=element,
        )
