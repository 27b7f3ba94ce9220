"""Several adapters merged straight into their base: the function of their deltas that was asked for, with nothing cut off.

`linear` and `slerp` of products are `lora/1` with the joined factors. What is dense (`ties`, `dare`, a DoRA) is one delta in binary32, added to the
weight by `linear/1`. One changed tensor is in memory at a time; all else streams. An interrupted merge goes on with the file after
the last finished one. Knows files and tensors; runs no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import Operands, apply_linear, apply_lora
from modelyard.errors import InputError, ModelError
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.checks import check_weights
from modelyard.weights.files import Files, show_name
from modelyard.weights.merge.blending import Blend, blend_dense, blend_products
from modelyard.weights.merge.combination import check_bases
from modelyard.weights.merge.delta import Adapter, Delta, read_adapter
from modelyard.weights.merge.mixing import check_finite
from modelyard.weights.merge.plan import plan_adapter
from modelyard.weights.output import Work, copy_file, hash_file, key_of, resumable_folder
from modelyard.weights.pipeline import usable_cores
from modelyard.weights.shards import ShardWriter, TensorSpec
from modelyard.weights.values import read_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.merge.plan import Layout, Site

__all__ = ["merge_adapters"]

Progress = Callable[[int, int], None]


def merge_adapters(
    base: Files,
    adapters: Sequence[Files],
    out: Path,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    t: float | None = None,
    seed: int = 0,
    same_base: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Write base plus a function of several adapters' deltas as a new model folder.

    Args:
        base: The base that all of them were trained on.
        adapters: As `combine` takes them.
        out: A folder that does not exist yet.
        method: `linear`, `ties`, `dare` or `slerp`, as in `combine`.
        weights: One for each adapter, as in `combine`.
        density: For `ties` and `dare`.
        t: For `slerp`.
        seed: For `dare`.
        same_base: As in `combine`.
        threads: Compute threads; cannot change a bit of what is exact.
        progress: Called with (bytes done, bytes in all) of the base's weights.

    Raises:
        InputError, ModelError, ConflictError, BusyError, NoSpaceError: As `combine`, `plan_adapter` and `resumable_folder`. What an
            adapter saved whole is `modules_to_save`, one side of tied embeddings `tied_embeddings`.
    """
    blend = Blend.checked(method, len(adapters), weights=weights, density=density, t=t, seed=seed)
    if method == "svd":
        raise InputError("`svd` cuts to a rank, and a merge cuts nothing: take `linear`", code="unknown_method")
    check_weights(base)
    checkpoint, read = open_checkpoint(base), [read_adapter(files) for files in adapters]
    check_bases(read, same_base)
    work = _Several(checkpoint, read, blend, threads or usable_cores(), progress)
    with resumable_folder(
        out, key_of("merge-adapters", blend.to_dict() | {"method": method}, base, *adapters)
    ) as folder:
        return work.write(folder)


@dataclass
class _Place:
    """Some rows of one tensor, and the deltas that change them, by their adapters' numbers."""

    layout: Layout
    deltas: dict[int, Delta] = field(default_factory=dict)


class _Several:
    """One merge: which rows of which tensors change, and the certificate that grows."""

    def __init__(
        self, base: Checkpoint, adapters: list[Adapter], blend: Blend, threads: int, progress: Progress | None
    ) -> None:
        self.base, self.adapters, self.blend, self.threads, self.progress = base, adapters, blend, threads, progress
        self.places: dict[str, list[_Place]] = {}
        self.done = 0
        self.total = sum(info.end - info.start for header in base.shards.values() for info in header.tensors.values())
        for number, adapter in enumerate(adapters):
            self._place(number, adapter)
        dense = any(self._is_dense(place) for places in self.places.values() for place in places)
        exact = blend.method == "linear" and not dense
        inputs = {"base": base, **{f"adapter {number}": each.weights for number, each in enumerate(adapters)}}
        self.certificate = Certificate(
            "merge",
            f"{blend.method} of adapters",
            blend.to_dict(),
            EVERYWHERE if exact else THIS_MACHINE,
            {
                role: {name: str(hash_file(each.files.path(name))) for name in each.shards}
                for role, each in inputs.items()
            },
            machine=None if exact else describe_machine(threads=threads),
        )

    def _place(self, number: int, adapter: Adapter) -> None:
        plan = plan_adapter(self.base, adapter.weights)
        combine = "combine the adapters first, then merge the one that comes out"
        if plan.added or plan.config:
            _refuse(adapter, "tied_embeddings", "it changes one side of tied embeddings", combine)
        for tensor, sites in plan.sites.items():
            for site in sites:
                if site.kind == "replaced":
                    _refuse(adapter, "modules_to_save", f"it saved `{show_name(tensor)}` whole", combine)
                if not site.low_rank or site.layout.experts > 1 or (site.layout.transposed and _is_part(site)):
                    _refuse(
                        adapter, "unsupported_adapter", f"its change of `{show_name(tensor)}` is no delta of a layer"
                    )
                places = self.places.setdefault(tensor, [])
                found = next((each for each in places if each.layout.rows == site.layout.rows), None)
                if found is None:
                    found = _Place(site.layout)
                    places.append(found)
                found.deltas[number] = adapter.deltas[site.module]

    def _is_dense(self, place: _Place) -> bool:
        return self.blend.method in {"ties", "dare"} or any(
            each.magnitude is not None for each in place.deltas.values()
        )

    def write(self, work: Work) -> Certificate:
        made = self.certificate
        for name in self.base.shards:
            note = work.finished(name)
            if note is None:
                note = {"changes": self._write_shard(work.folder / name, name)}
                work.finish(name, work_digest := hash_file(work.folder / name), note)
                made.outputs[name] = str(work_digest)
            else:
                self._advance(sum(info.end - info.start for info in self.base.shards[name].tensors.values()))
                made.outputs[name] = str(work.digest(name))
            made.changes += note["changes"]
        if self.base.index is not None:
            made.outputs[self.base.index] = str(copy_file(self.base.files, self.base.index, work.folder))
        for name, source in carried_files(self.base.files, self.adapters[0].weights.files).items():
            made.outputs[name] = str(copy_file(source, name, work.folder))
        operations = Counter(change["operation"] for change in made.changes)
        made.matched = {"tensors": len(self.places), "untouched": len(self.base.home) - len(self.places)} | dict(
            operations
        )
        made.write(work.folder)
        return made

    def _write_shard(self, path: Path, name: str) -> list[dict[str, Any]]:
        changes: list[dict[str, Any]] = []
        with self.base.open(name) as shard:
            tensors = shard.header.in_file_order()
            specs = [TensorSpec(tensor, info.dtype, info.shape) for tensor, info in tensors]
            with ShardWriter(path, specs, shard.header.metadata) as writer:
                for tensor, info in tensors:
                    if tensor in self.places:
                        merged = self._change(tensor, shard.read(tensor), info.dtype, changes)
                        writer.write(merged.reshape(-1).view(np.uint8).data)
                    else:
                        for block in read_blocks(shard, info):
                            writer.write(block.data)
                    self._advance(info.end - info.start)
        return changes

    def _change(self, tensor: str, weight: Array, dtype: str, changes: list[dict[str, Any]]) -> Array:
        made = weight.copy()
        for place in self.places[tensor]:
            rows = slice(place.layout.rows.start, place.layout.rows.stop)
            before = np.ascontiguousarray(weight.reshape(place.layout.shape)[rows])
            try:
                after, operation = self._apply(place, before, dtype)
            except InputError as error:
                raise ModelError(f"`{show_name(tensor)}` cannot be merged: {error.message}", code=error.code) from error
            check_finite(after, dtype, tensor)
            made.reshape(place.layout.shape)[rows] = after
            changes.append(
                {
                    "tensor": tensor,
                    "dtype": dtype,
                    "operation": operation,
                    "modules": sorted({delta.module for delta in place.deltas.values()}),
                    "changed": int(
                        np.count_nonzero(before.view(f"u{before.itemsize}") != after.view(f"u{after.itemsize}"))
                    ),
                }
            )
        return made

    def _apply(self, place: _Place, weight: Array, dtype: str) -> tuple[Array, str]:
        """Some rows of a tensor with their change, and the operation that made them."""
        layout = place.layout
        taken = layout.b_rows
        mine: Any = slice(taken.start, taken.stop) if isinstance(taken, range) else list(taken)
        if not self._is_dense(place):
            products = {}
            for number, delta in place.deltas.items():
                b, a = self.adapters[number].factors(delta)
                products[number] = (b, a, delta.scale)
            b, a = blend_products(self.blend, products)
            turned = layout.transposed
            return apply_lora(
                weight, dtype, a, b[mine], np.float32(1), transposed=turned, threads=self.threads
            ), "lora/1"
        wide = {number: self.adapters[number].dense(delta, self.base) for number, delta in place.deltas.items()}
        # Named by the module, as `combine` does, so that both draw the same numbers for `dare`.
        name = min(delta.module for delta in place.deltas.values())
        change = blend_dense(self.blend, wide, name)[mine].astype(np.float32)
        change = np.ascontiguousarray(change.T if layout.transposed else change).reshape(weight.shape)
        operands = Operands([weight, change], [dtype, "F32"], [1.0, 1.0])
        return apply_linear(operands, dtype, threads=self.threads), "linear/1"

    def _advance(self, size: int) -> None:
        self.done += size
        if self.progress is not None:
            self.progress(self.done, self.total)


def _is_part(site: Site) -> bool:
    return len(site.layout.rows) != site.layout.shape[0]


def _refuse(adapter: Adapter, code: str, what: str, hint: str | None = None) -> None:
    raise ModelError(f"`{adapter.label}` cannot be merged with others: {what}", code=code, hint=hint)
