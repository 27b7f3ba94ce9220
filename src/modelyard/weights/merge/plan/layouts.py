"""Sites from factors and pieces: which view of a tensor on disk makes a module's change the one product that `Layout` describes.

Shapes decide what kind of layer a module is, as they do in PEFT; where they cannot (a square matrix), the architecture does. Reads
headers, no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.weights.files import show_name
from modelyard.weights.merge.names import is_head, is_input_embedding
from modelyard.weights.merge.plan.options import refuse
from modelyard.weights.merge.plan.site import Kind, Layout, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.headers import TensorInfo
    from modelyard.weights.merge.plan.disk import Disk, Piece
    from modelyard.weights.merge.plan.keys import Factors
    from modelyard.weights.merge.plan.options import Options

__all__ = ["Builder"]

CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
CONV1D_NAMES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_ONE = np.float32(1)


@dataclass(frozen=True)
class Builder:
    """What the sites of one adapter are made from."""

    disk: Disk
    adapter: Checkpoint
    options: Options

    def low_rank(self, factors: Factors, name: str) -> list[Site]:
        """The sites of a module's factors on the weight that `Disk.match` calls `name`.

        Raises:
            ModelError: `bad_shape`, `rank_mismatch`, `bad_rank`, `conv`, `unsupported_dtype`, `unsupported_layout`.
        """
        a, b = (self._factor(factors.roles[role]) for role in "AB")
        pieces = self.disk.pieces(name)
        rank, alpha = self.options.rank_and_alpha(factors.module)
        if len(a.shape) > 2 and b.shape[1] != a.shape[0]:
            self._refuse_groups(factors.module)
        if a.shape[0] != rank or b.shape[1] != rank:
            self._refuse_rank(factors.module, rank, a, b)
        scale = self.options.scale(factors.module, rank, alpha)
        if factors.of_attention:
            scale = (
                np.float32(2) * scale
            )  # PEFT computes with, and merges, this layer's change twice; so it was trained
        tensors = {role: key for role, key in factors.roles.items() if role != "bias"}
        blank = Site("", "linear", factors.module, tensors, Layout((0, 0), range(0)), rank, alpha, scale)
        made = [self._on_piece(blank, piece, factors, a, b) for piece in pieces]
        if blank.dora:
            self._check_magnitude(factors, b.shape[0])
        return made

    def experts(self, factors: Factors, name: str, parameter: str) -> list[Site]:
        """The sites of a stacked parameter (expert, rows, columns): one an expert.

        Args:
            factors: `A` is (experts * rank, in), an expert's rows together; `B` is (out, experts * rank), an expert's
                columns `experts` apart.
            name: What `Disk.match` calls the parameter.
            parameter: Its path in the model, which patterns of ranks are matched with.
        """
        a, b = (self._factor(factors.roles[role]) for role in "AB")
        shape = tuple(self.disk.mapped.state[name].shape)
        if len(shape) == 2:
            return self.low_rank(replace_module(factors, parameter), name)
        count = shape[0] if len(shape) == 3 else 0
        rank, alpha = self.options.rank_and_alpha(parameter)
        if "magnitude" in factors.roles or not count or a.shape[0] != rank * count or b.shape[1] != rank * count:
            self._refuse_rank(parameter, rank, a, b)
        module = parameter.rpartition(".")[0]
        turned = self.disk.mapped.is_transposed(module)
        inner, outer = (shape[1], shape[2]) if turned else (shape[2], shape[1])
        if (a.shape[1], b.shape[0]) != (inner, outer):
            self._refuse_shape(parameter, (b.shape[0], a.shape[1]), shape)
        scale = self.options.scale(parameter, rank, alpha)
        tensors = {role: factors.roles[role] for role in "AB"}
        blank = Site("", "expert", parameter, tensors, Layout((0, 0), range(0)), rank, alpha, scale)
        made: list[Site] = []
        for piece in self.disk.pieces(name):
            for expert in range(count) if piece.expert is None else [piece.expert]:
                layout = self._expert_layout(piece, expert, count, outer, turned=turned)
                a_rows, b_columns = range(expert * rank, (expert + 1) * rank), range(expert, rank * count, count)
                layout = replace(layout, a_rows=a_rows, b_columns=b_columns)
                made.append(replace(blank, tensor=piece.tensor, layout=layout))
        return made

    def bias(self, factors: Factors, name: str) -> list[Site]:
        """What `lora_B.bias` adds to a layer's bias: itself times the scale."""
        info = self._value(factors.roles["bias"])
        rank, alpha = self.options.rank_and_alpha(factors.module)
        scale = self.options.scale(factors.module, rank, alpha)
        tensors = {"bias": factors.roles["bias"]}
        return self._copies("bias", factors.module, tensors, name, info, rank=rank, alpha=alpha, scale=scale)

    def replaced(self, name: str, key: str) -> list[Site]:
        """A tensor that takes the place of the one that `Disk.match` calls `name`."""
        return self._copies("replaced", name.rpartition(".")[0], {"value": key}, name, self._value(key))

    def tokens(self, module: str, name: str, key: str, rows: tuple[int, ...]) -> list[Site]:
        """Rows that take the place of the embedding's that `Disk.match` calls `name`."""
        info = self._value(key)
        made = []
        for piece in self.disk.pieces(name):
            weight = self._weight(piece.tensor)
            if piece.rows is not None or piece.turned or len(weight.shape) != 2:
                refuse(self.options.label, "unsupported_layout", f"`{show_name(name)}` is stored in pieces")
            fits = info.shape == (len(rows), weight.shape[1]) and len(set(rows)) == len(rows)
            if not fits or max(rows, default=0) >= weight.shape[0]:
                self._refuse_shape(module, info.shape, weight.shape)
            layout = Layout((weight.shape[0], weight.shape[1]), range(weight.shape[0]))
            made.append(Site(piece.tensor, "tokens", module, {"tokens": key}, layout, 0, 0.0, _ONE, rows))
        return made

    # Layouts.

    def _on_piece(self, blank: Site, piece: Piece, factors: Factors, a: TensorInfo, b: TensorInfo) -> Site:
        weight = self._weight(piece.tensor)
        outer, inner = b.shape[0], prod(a.shape[1:])
        kind: Kind = "embedding" if factors.embedding else "linear"
        expert = _EXPERT.search(piece.tensor)
        if len(weight.shape) > 2 and len(a.shape) == len(weight.shape):
            kind = "conv"
            if weight.shape[1] != a.shape[1]:
                self._refuse_groups(factors.module)
            if weight.shape[1:] != a.shape[1:] or prod(b.shape[2:]) != 1:
                self._refuse_shape(factors.module, (outer, *a.shape[1:]), weight.shape)
        elif len(weight.shape) != 2 or len(a.shape) != 2 or len(b.shape) != 2:
            self._refuse_shape(factors.module, (outer, *a.shape[1:]), weight.shape)
        elif expert and not factors.embedding:
            kind = "expert"
        shape = (weight.shape[0], prod(weight.shape[1:]))
        if blank.rank < 1 or blank.rank > max(shape):
            what = f"`{show_name(factors.module)}` has rank {blank.rank} for a weight of {weight.shape}"
            refuse(self.options.label, "bad_rank", what)
        turned = kind == "embedding" or (
            kind == "linear" and self._is_transposed(factors, piece, shape, (outer, inner))
        )
        rows = range(outer) if piece.rows is None else piece.rows
        place = range(piece.first, piece.first + (shape[0] if piece.rows is None else len(rows)))
        wanted = (inner, len(rows)) if turned else (len(rows), inner)
        if (len(place), shape[1]) != wanted or place.stop > shape[0] or (piece.rows is not None and max(rows) >= outer):
            self._refuse_shape(factors.module, (outer, inner), weight.shape)
        layout = Layout(
            shape, place, turned, range(a.shape[0]), rows, range(b.shape[1]), int(expert[1]) if expert else None
        )
        return replace(blank, tensor=piece.tensor, kind=kind, layout=layout)

    def _expert_layout(self, piece: Piece, expert: int, count: int, outer: int, *, turned: bool) -> Layout:
        """An expert's rows in a tensor of its own, or in the stack."""
        weight = self._weight(piece.tensor)
        turned ^= piece.turned
        if piece.expert is None:
            tall = weight.shape[1]
            shape = (prod(weight.shape[:2]), weight.shape[2])
            place = range(expert * tall, (expert + 1) * tall)
            rows: range | tuple[int, ...] = range(outer)
        else:
            shape = (weight.shape[0], weight.shape[1])
            place, rows = range(shape[0]), piece.rows or range(outer)
            if turned and len(rows) != outer:
                what = f"`{show_name(piece.tensor)}` is a part of experts stored (in, out)"
                refuse(self.options.label, "unsupported_layout", what)
        return Layout(shape, place, turned, b_rows=rows, expert=expert, experts=count)

    def _copies(
        self,
        kind: Kind,
        module: str,
        tensors: dict[str, str],
        name: str,
        info: TensorInfo,
        *,
        rank: int = 0,
        alpha: float = 0.0,
        scale: np.float32 = _ONE,
    ) -> list[Site]:
        """Sites of values that lie in the module's tensor as they lie in the adapter's, row by row."""
        made = []
        for piece in self.disk.pieces(name):
            weight = self._weight(piece.tensor)
            whole = piece.rows is None and not piece.turned
            if piece.turned or piece.expert is not None or (whole and weight.shape != info.shape):
                self._refuse_shape(module, info.shape, weight.shape)
            if not whole and weight.shape[1:] != info.shape[1:]:
                self._refuse_shape(module, info.shape, weight.shape)
            high = weight.shape[0] if weight.shape else 1
            shape = (high, prod(weight.shape[1:]))
            rows = range(high) if piece.rows is None else piece.rows
            layout = Layout(shape, range(piece.first, piece.first + len(rows)), b_rows=rows)
            made.append(Site(piece.tensor, kind, module, tensors, layout, rank, alpha, scale))
        return made

    def _is_transposed(self, factors: Factors, piece: Piece, shape: tuple[int, int], product: tuple[int, int]) -> bool:
        """Whether the weight is stored (in, out). The shape decides; for a square one, the architecture does.

        The adapter's `fan_in_fan_out` is one flag for layers of both kinds, and PEFT rewrites it as it goes, so it is used
        only where nothing else tells.
        """
        if piece.rows is not None:
            return False
        if piece.turned or (shape != product and shape == product[::-1]):
            return True
        if shape != product[::-1]:
            return False
        named = factors.module.rpartition(".")[2] in CONV1D_NAMES
        if str(self.disk.config.get("model_type")) in CONV1D_TYPES:
            return named
        flag = bool(self.options.values.get("fan_in_fan_out"))
        return flag and (named or not self.disk.config.get("model_type"))

    # Headers.

    def _factor(self, key: str) -> TensorInfo:
        info = self._value(key)
        if len(info.shape) < 2:
            refuse(self.options.label, "bad_shape", f"`{show_name(key)}` has the shape {info.shape}")
        return info

    def _value(self, key: str) -> TensorInfo:
        info = self.adapter.info(key)
        if info.dtype not in STORAGE:
            what = f"tensor `{show_name(key)}` is {info.dtype}, not F32, F16 or BF16"
            refuse(self.options.label, "unsupported_dtype", what)
        return info

    def _weight(self, tensor: str) -> TensorInfo:
        info = self.disk.base.info(tensor)
        if info.dtype not in STORAGE:
            what = f"tensor `{show_name(tensor)}` is {info.dtype}, not F32, F16 or BF16"
            refuse(self.disk.base.files.label, "unsupported_dtype", what)
        return info

    def _check_magnitude(self, factors: Factors, rows: int) -> None:
        info = self._value(factors.roles["magnitude"])
        if prod(info.shape) != rows:
            self._refuse_shape(factors.module, info.shape, (rows,))

    def _refuse_rank(self, module: str, rank: int, a: TensorInfo, b: TensorInfo) -> None:
        what = f"`{show_name(module)}` has the rank {rank} in its configuration, and factors of {a.shape} and {b.shape}"
        refuse(self.options.label, "rank_mismatch", what)

    def _refuse_groups(self, module: str) -> None:
        why = "it is a grouped convolution, whose weight is no product of the factors (PEFT does not merge it either)"
        refuse(self.options.label, "conv", f"`{show_name(module)}`: {why}")

    def _refuse_shape(self, module: str, made: Sequence[int], there: Sequence[int]) -> None:
        what = f"`{show_name(module)}` makes {tuple(made)}, and the base's tensor has {tuple(there)}"
        hint = None
        embedding = is_head(f"{module}.weight") or is_input_embedding(f"{module}.weight")
        if embedding and tuple(made[1:]) == tuple(there[1:]):
            hint = f"it was trained with other tokens: model.resize_token_embeddings({made[0]}) and save_pretrained make the base it needs"
        refuse(self.options.label, "bad_shape", what, hint)


def replace_module(factors: Factors, module: str) -> Factors:
    """The same factors under another module's name."""
    return replace(factors, module=module)
