"""What a load did besides reading every tensor as it is. Plain values; knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LoadReport"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load added, dropped, let pass and cast.

    Attributes:
        added: Tensors of the model that no file holds, by their names in the model: a head that the task needs. They were
            drawn from `seed`, and `Model.untrained` marks them.
        dropped: Tensors of the files that this model has no place for: another task's head, a pooler that its class has
            not, buffers that former versions of transformers saved.
        kept: Tensors of the head that the files have by the same names and shapes, trained as another class's: what a
            sequence classifier's layer gives a token classifier. They are taken as they are, as transformers does.
        unread: Weights in other forms beside the safetensors (`pytorch_model.bin`, ...), which nothing opened.
        allowed: Faults that the caller allowed, kind to the tensors: `missing`, `unexpected`, `mismatched`, `nonfinite`.
        casts: `"float16 -> float32"` to the number of tensors that were cast so.
        seed: What the added tensors were drawn from.
        seconds: From the call to the loaded model.
    """

    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    casts: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    kept: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
