"""What an adapter adds to each module, as a product or as a dense matrix: the space in which adapters are combined.

A delta is the whole change, scale included, so adapters with other ranks, alphas and scalings (rsLoRA) add as they should, and a DoRA, whose
change is no product, has one too once its base is given. What has no delta in this sense is refused by name: trained tokens, biases,
experts' packed factors, and starts that rewrite the base. Reads adapters; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelyard.derivations import STORAGE
from modelyard.derivations.numbers import widen
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import check_weights
from modelyard.weights.files import Files, show_name
from modelyard.weights.merge.plan import plan_adapter
from modelyard.weights.merge.plan.keys import PREFIX, sort_keys
from modelyard.weights.merge.plan.options import Options, read_options, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.merge.plan import Layout

__all__ = ["Adapter", "Delta", "read_adapter"]

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Delta:
    """One module's change by one adapter: `scale * B @ A`, or a DoRA of it.

    Attributes:
        module: As the adapter calls it.
        a: Key of A, (rank, in), (rank, in, kernel...) or, of an embedding, (rank, vocabulary).
        b: Key of B, (out, rank), with ones for a kernel.
        magnitude: Key of DoRA's magnitude.
        embedding: Whether the weight is stored (vocabulary, width), the product turned.
        rank: Of the factors.
        scale: A binary32, with which a full delta is multiplied.
        a_shape: A's.
        b_shape: B's.
    """

    module: str
    a: str
    b: str
    magnitude: str | None
    embedding: bool
    rank: int
    scale: float
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]

    @property
    def form(self) -> tuple[object, ...]:
        """What adapters must agree on to be combined in this module."""
        return self.embedding, self.a_shape[1:], self.b_shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The delta's as a matrix: (out, in * kernel)."""
        return self.b_shape[0], int(np.prod(self.a_shape[1:]))


@dataclass(frozen=True)
class Adapter:
    """An adapter's deltas by module, and the tensors that it saved whole, by their name in the base."""

    weights: Checkpoint
    options: Options
    deltas: Mapping[str, Delta]
    whole: Mapping[str, str]
    _sites: dict[int, dict[str, tuple[str, Layout]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.weights.files.label

    def read(self, key: str) -> NDArray[np.float32]:
        """One of its tensors as binary32."""
        raw = self.weights.read(key)
        made = np.empty(raw.shape, np.float32)
        widen(raw, self.weights.info(key).dtype, made)
        return made

    def factors(self, delta: Delta) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """B as (out, rank) and A as (rank, in * kernel), without the scale."""
        return self.read(delta.b).reshape(delta.b_shape[0], delta.rank), self.read(delta.a).reshape(delta.rank, -1)

    def dense(self, delta: Delta, base: Checkpoint | None) -> Wide:
        """The whole delta, (out, in * kernel), in binary64.

        Args:
            delta: One of this adapter.
            base: For a DoRA; unused by others.

        Raises:
            ModelError: `no_base`; `dora` for an embedding or a convolution; or as `plan_adapter`.
        """
        b, a = self.factors(delta)
        product = (b.astype(np.float64) * float(delta.scale)) @ a.astype(np.float64)
        if delta.magnitude is None:
            return product
        if base is None:
            refuse(
                self.label,
                "no_base",
                f"`{show_name(delta.module)}` is a DoRA, whose change depends on the base",
                "give the base that it was trained on (base=)",
            )
        weight = self._base_weight(delta, base)
        summed = weight + product
        magnitude = self.read(delta.magnitude).reshape(-1).astype(np.float64)
        norm = np.sqrt(np.sum(summed * summed, axis=1))
        change: Wide = summed * (magnitude / norm)[:, None] - weight
        return change

    def _base_weight(self, delta: Delta, base: Checkpoint) -> Wide:
        """The module's weight in the base as (out, in)."""
        if delta.embedding or len(delta.a_shape) != 2:
            what = f"`{show_name(delta.module)}` is a DoRA of an embedding or a convolution, which is not combined"
            refuse(self.label, "dora", what)
        tensor, layout = self._site(delta, base)
        raw = base.read(tensor)
        weight = np.empty(raw.shape, np.float32)
        widen(raw, base.info(tensor).dtype, weight)
        seen = weight.reshape(layout.shape)
        return (seen.T if layout.transposed else seen).astype(np.float64)

    def _site(self, delta: Delta, base: Checkpoint) -> tuple[str, Layout]:
        """Where the module's weight lies in the base, which is asked for once."""
        key = id(base)
        if key not in self._sites:
            plan = plan_adapter(base, self.weights)
            self._sites[key] = {
                site.module: (tensor, site.layout)
                for tensor, sites in plan.sites.items()
                for site in sites
                if site.low_rank
            }
        tensor, layout = self._sites[key][delta.module]
        if len(layout.rows) != layout.shape[0] or not isinstance(layout.b_rows, range):
            what = f"`{show_name(delta.module)}` is a DoRA of a part of `{show_name(tensor)}`, which is not combined"
            refuse(self.label, "dora", what)
        return tensor, layout


def read_adapter(files: Files) -> Adapter:
    """An adapter's deltas, from its configuration and header.

    Raises:
        ModelError: The adapter is unsafe, broken or of a kind without deltas (`unsupported_adapter`, `lora_bias`,
            `trainable_tokens`, `experts`, `start`, `attention`), or contradicts itself (`bad_adapter`, `rank_mismatch`, `bad_shape`).
    """
    check_weights(files)
    options, weights = read_options(files), open_checkpoint(files, "adapter_model")
    _refuse_others(options)
    keys = sort_keys(weights.home, options)
    if keys.tokens:
        refuse(options.label, "trainable_tokens", "single trained tokens replace rows and have no delta")
    deltas = {}
    for found in keys.factors:
        if "bias" in found.roles:
            refuse(options.label, "lora_bias", "a LoRA with a bias changes the layer's bias too, which is not combined")
        if found.of_attention or found.depth:
            refuse(
                options.label, "attention", f"`{show_name(found.module)}` is a part of a module that is not combined"
            )
        deltas[found.module] = _delta(weights, options, found.module, found.roles, embedding=found.embedding)
    for key in keys.whole.values():
        _check_dtype(weights, options, key)
    return Adapter(weights, options, dict(sorted(deltas.items())), keys.whole)


def _refuse_others(options: Options) -> None:
    if options.values.get("peft_type") != "LORA":
        refuse(options.label, "unsupported_adapter", "it has no low-rank factors")
    if options.start is not None:
        refuse(
            options.label,
            "start",
            f"`init_lora_weights` is {show_name(options.start)}, which rewrites the base when it starts, so its factors are no change of the base",
            "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    if options.parameters:
        refuse(
            options.label, "experts", "its factors are of bare parameters (`target_parameters`), which are not combined"
        )
    if options.biases != "none":
        refuse(options.label, "lora_bias", f"it trained biases (`bias` is {options.biases}), which are not combined")


def _delta(weights: Checkpoint, options: Options, module: str, roles: Mapping[str, str], *, embedding: bool) -> Delta:
    a, b = weights.info(roles["A"]), weights.info(roles["B"])
    for key in roles.values():
        _check_dtype(weights, options, key)
    rank, alpha = options.rank_and_alpha(module)
    kernel = b.shape[2:]
    if len(a.shape) < 2 or len(b.shape) != len(a.shape) or any(size != 1 for size in kernel):
        refuse(options.label, "bad_shape", f"`{show_name(module)}` has factors of {a.shape} and {b.shape}")
    if a.shape[0] != rank or b.shape[1] != rank:
        what = f"`{show_name(module)}` has the rank {rank} in its configuration, and factors of {a.shape} and {b.shape}"
        refuse(options.label, "rank_mismatch", what)
    scale = float(options.scale(module, rank, alpha))
    return Delta(module, roles["A"], roles["B"], roles.get("magnitude"), embedding, rank, scale, a.shape, b.shape)


def _check_dtype(weights: Checkpoint, options: Options, key: str) -> None:
    if weights.info(key).dtype not in STORAGE:
        what = f"tensor `{show_name(key)}` is {weights.info(key).dtype}, not F32, F16 or BF16"
        refuse(options.label, "unsupported_dtype", what)


def key_names(delta: Delta) -> tuple[str, str]:
    """The keys of A and B of a module in a PEFT adapter's file."""
    if delta.embedding:
        return f"{PREFIX}{delta.module}.lora_embedding_A", f"{PREFIX}{delta.module}.lora_embedding_B"
    return f"{PREFIX}{delta.module}.lora_A.weight", f"{PREFIX}{delta.module}.lora_B.weight"
