"""The plan of a merge: which tensor is changed, where in it, and by which tensors of the adapter. Values; reads no file.

A *site* is one change of one tensor as it lies on disk. Every low-rank kind is the same product under another view, which is
what `Layout` says: the tensor is looked at as a matrix of `shape`, and rows `rows` of it take

    scale * B[b_rows, b_columns] @ A[a_rows]          (turned, where `transposed`)

with A looked at as (rank, rest) and B as (rest, rank). So one arithmetic serves linear layers, GPT-2's `Conv1D`, embeddings,
convolutions of any kernel, an expert in a stack of experts, an expert on its own, and a module cut from a fused tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = ["Added", "Kind", "Layout", "Plan", "Site"]

Kind = Literal["linear", "conv", "embedding", "expert", "bias", "replaced", "tokens"]
"""What a site does: a low-rank sum (`linear`, `conv`, `embedding`, `expert`), a scaled vector on a bias (`bias`), or values that
take the place of the base's, whole (`replaced`) or row by row (`tokens`)."""


@dataclass(frozen=True)
class Layout:
    """Where in a tensor a change lies, and which part of the factors makes it. Ranges are half open and count from 0.

    Attributes:
        shape: The tensor on disk as a matrix: (out, in); (in, out) if transposed; a convolution's (out, in * kernel); a stack
            of experts' (experts * rows, columns); (n, 1) for a vector.
        rows: Which rows of that matrix change.
        transposed: Those rows are stored (in, out): `Conv1D`, embeddings (vocabulary, width), gpt-oss's experts.
        a_rows: Which rows of A make it: all, or those of one expert (an expert's are together).
        b_rows: Which rows of B, in the order in which they lie on disk: all, those of the piece that lies in this tensor (gate or
            up of a fused gate_up), or a permutation (rotary embeddings). Of a `bias` or `replaced`: which rows of the values.
        b_columns: Which columns of B: all, or those of one expert (an expert's are `experts` apart).
        expert: Which expert of the factors, None where they have one only.
        experts: How many experts the factors have.
    """

    shape: tuple[int, int]
    rows: range
    transposed: bool = False
    a_rows: range = range(0)
    b_rows: range | tuple[int, ...] = range(0)
    b_columns: range = range(0)
    expert: int | None = None
    experts: int = 1


@dataclass(frozen=True)
class Site:
    """One change of one tensor.

    Attributes:
        tensor: Its name in the merged folder, and on the base's disk unless the plan adds it.
        kind: What is done.
        module: The module as the adapter calls it, or the path of its parameter; `X.base_layer.out_proj` is the output projection
            of a `torch.nn.MultiheadAttention`, whose change PEFT makes twice: its scale here is double.
        tensors: Role to the adapter's key: `A`, `B` (low-rank), `magnitude` (DoRA), `bias` (`lora_B.bias`), `value` (the
            whole new tensor), `tokens` (the new rows).
        layout: Where, and which part of the factors.
        rank, alpha, scale: Of a low-rank change, or of a `bias`; the scale is a binary32. 0 and 1 elsewhere.
        token_rows: For `tokens`: the rows that are replaced, in the order of the adapter's tensor.
    """

    tensor: str
    kind: Kind
    module: str
    tensors: Mapping[str, str]
    layout: Layout
    rank: int
    alpha: float
    scale: np.float32
    token_rows: tuple[int, ...] = ()

    @property
    def dora(self) -> bool:
        """Whether the sum is scaled to a trained magnitude (DoRA)."""
        return "magnitude" in self.tensors

    @property
    def low_rank(self) -> bool:
        """Whether it adds a product of two factors."""
        return "A" in self.tensors


@dataclass(frozen=True)
class Added:
    """A tensor that the merged folder has and the base's disk has not.

    Attributes:
        source: The base's tensor that its values start from (an untied head starts as the input embedding), None for a new one.
        dtype, shape: What it is in the merged folder.
    """

    source: str | None
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that a merge does.

    Attributes:
        sites: Tensor name in the merged folder to its changes, in the order they are made; names sorted.
        added: Tensors that the base's disk lacks.
        config: What becomes of config.json: dotted key to new value (`text_config.tie_word_embeddings`: False).
        warnings: What a person should know.
        start: A start of the adapter that rewrote the base (`pissa`, `olora`, `loftq`, ...): the plan is then of a change to
            that other base, and neither engine may take it as it is. None for every other adapter.
    """

    sites: dict[str, tuple[Site, ...]]
    added: dict[str, Added] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    start: str | None = None
