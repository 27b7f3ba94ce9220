"""Carrying out a plan exactly: every shard of the base streams to a new one of the same name, changed where the plan says so.

At no time is more than a few stripes and one module's factors in memory, so a 70B model merges in what a 1B one takes. The result depends on the
two inputs only: not on threads, block size or machine. A shard that an earlier, interrupted run finished is not written again.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np

from modelyard.derivations import STORAGE, Workspace
from modelyard.errors import ModelError
from modelyard.weights.certificate import Certificate
from modelyard.weights.files import show_name
from modelyard.weights.merge.exact.factors import Factors
from modelyard.weights.merge.exact.operations import make_operation, operation_name
from modelyard.weights.merge.exact.stripes import Pool, Stripe
from modelyard.weights.output import HashingWriter
from modelyard.weights.shards import TensorSpec, encode_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.derivations import Dora
    from modelyard.weights.checkpoint import Checkpoint, Shard
    from modelyard.weights.merge.exact.operations import Operation
    from modelyard.weights.merge.exact.stripes import Done
    from modelyard.weights.merge.plan import Plan, Site
    from modelyard.weights.output import Work

__all__ = ["MERGE_BLOCK", "merge_exact"]

MERGE_BLOCK = 1 << 18
"""Elements at once in a merge: a step of 64 Ki takes so short that two threads wait for the interpreter's lock between steps."""

_STRIPE_ELEMENTS = 1 << 18
_COPY_BYTES = 1 << 20


def merge_exact(
    plan: Plan,
    base: Checkpoint,
    adapter: Checkpoint,
    work: Work,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    block_elements: int = MERGE_BLOCK,
) -> Certificate:
    """Write the base's shards with the plan carried out, each exactly.

    Args:
        plan: What changes, tensor by tensor.
        base: The base's tensors: float32, float16 or bfloat16 where they change.
        adapter: The adapter's tensors.
        work: Where to write; shards that it knows as finished are kept.
        progress: Called with (bytes done, bytes in all) of the base's weights.
        threads: Compute threads; None is every core that this process may use. Cannot change a bit of the result.
        block_elements: How many elements are worked on at once; cannot change a bit either.

    Returns:
        The certificate, with the digests of the base's files and of the shards.

    Raises:
        ModelError: `unsupported_start`; `nan_result` or `infinite_result`, naming the tensor, when the result is not finite numbers.
    """
    if plan.start is not None:
        _refuse_start(plan.start, adapter.files.label)
    notes: dict[str, dict[str, Any]] = {}
    with Factors(adapter) as factors, Pool(threads, block_elements) as pool:
        merger = _Merger(plan, base, factors, pool, progress)
        for shard in base.shards:
            notes[shard] = merger.resume(shard, work) or merger.write(shard, work)
    return _certify(plan, base, notes, {shard: str(work.digest(shard)) for shard in notes})


@dataclass
class _Change:
    """One tensor's line in the certificate while it is counted."""

    spec: TensorSpec
    sites: tuple[Site, ...]
    changed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Integers and strings only, so that a digest may cover it; the scale is binary32, in hexadecimal."""
        first = self.sites[0]
        names = dict.fromkeys(operation_name(site) for site in self.sites)
        modules = list(dict.fromkeys(site.module for site in self.sites))
        plain: dict[str, Any] = {
            "tensor": self.spec.name,
            "dtype": self.spec.dtype,
            "elements": prod(self.spec.shape),
            "changed": self.changed,
            "operation": ", ".join(names),
            "kind": first.kind,
            "module": modules[0],
        }
        if len(self.sites) > 1:
            plain |= {"parts": len(self.sites), "modules": modules}
        if first.low_rank or first.kind == "bias":
            plain |= {"rank": first.rank, "alpha": repr(first.alpha), "scale": float(first.scale).hex()}
        if first.low_rank:
            return plain | {"transposed": "yes" if first.layout.transposed else "no"}
        replaced_by = first.tensors.get("value") or first.tensors.get("tokens")
        return plain | ({"replaced_by": replaced_by} if replaced_by else {})


@dataclass
class _Merger:
    """The state of one merge: its inputs, its threads, and how far it is."""

    plan: Plan
    base: Checkpoint
    factors: Factors
    pool: Pool
    progress: Callable[[int, int], None] | None
    done: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(_size(self.base, shard) for shard in self.base.shards)

    def resume(self, name: str, work: Work) -> dict[str, Any] | None:
        """The note of a shard that an earlier run finished; None when it must be written."""
        note = work.finished(name)
        if note is not None:
            self._advance(_size(self.base, name))
        return note

    def write(self, name: str, work: Work) -> dict[str, Any]:
        """Write one shard anew, and finish it; its note."""
        changes: dict[str, _Change] = {}
        with ExitStack() as stack:
            shard, writer = stack.enter_context(self.base.open(name)), HashingWriter(work.folder / name)
            stack.enter_context(writer)
            if shard.header != self.base.shards[name]:
                raise ModelError(f"`{shard.label}` changed while it was read", code="truncated")
            before = blake3.blake3(shard.header_bytes)
            added = self._open_added(stack) if name == list(self.base.shards)[-1] else {}
            writer.write(self._header(shard, list(added)))
            for done in self.pool.run(self._stripes(shard, added, changes)):
                if done.stripe.shard is shard:
                    before.update(done.before.data)
                    self._advance(done.before.size)
                writer.write(done.after.data)
                self._count(done, changes)
        note = {"base": before.hexdigest(), "changes": [change.to_dict() for change in changes.values()]}
        work.finish(name, writer.digest(), note)
        return note

    def _open_added(self, stack: ExitStack) -> dict[str, Shard | None]:
        """The tensors that the base lacks, which the last file takes, and the open file that each one's values come from."""
        made: dict[str, Shard | None] = {}
        for name, added in self.plan.added.items():
            source = added.source
            made[name] = None if source is None else stack.enter_context(self.base.open(self.base.home[source]))
        return made

    def _header(self, shard: Shard, added: list[str]) -> bytes | bytearray:
        """The base's own header, byte for byte, unless the file takes more tensors."""
        if not added:
            return shard.header_bytes
        specs = [TensorSpec(each, info.dtype, info.shape) for each, info in shard.header.in_file_order()]
        return encode_header(specs + [self._added(each) for each in added], shard.header.metadata)

    def _added(self, name: str) -> TensorSpec:
        return TensorSpec(name, self.plan.added[name].dtype, self.plan.added[name].shape)

    def _stripes(self, shard: Shard, added: dict[str, Shard | None], changes: dict[str, _Change]) -> Iterator[Stripe]:
        """A shard's tensors cut into rows, with what the plan does to them."""
        for name, info in shard.header.in_file_order():
            yield from self._cut(TensorSpec(name, info.dtype, info.shape), shard, info.start, changes)
        for name, other in added.items():
            source = self.plan.added[name].source
            start = 0 if source is None else self.base.info(source).start
            yield from self._cut(self._added(name), other, start, changes)

    def _cut(self, spec: TensorSpec, shard: Shard | None, start: int, changes: dict[str, _Change]) -> Iterator[Stripe]:
        sites = self.plan.sites.get(spec.name, ())
        if not sites:
            for first in range(0, spec.size, _COPY_BYTES):
                yield Stripe(spec.name, spec.dtype, shard, start + first, min(_COPY_BYTES, spec.size - first))
            return
        changes[spec.name] = _Change(spec, sites)
        rows, columns = sites[0].layout.shape
        if not rows * columns:
            return
        width = columns * STORAGE[spec.dtype].itemsize
        operations = [self._operation(site, spec, shard, start) for site in sites]
        tall = max(_STRIPE_ELEMENTS // columns, 1)
        for row in range(0, rows, tall):
            here = range(row, min(row + tall, rows))
            mine = tuple(each for each in operations if each.rows.start < here.stop and here.start < each.rows.stop)
            yield Stripe(spec.name, spec.dtype, shard, start + row * width, len(here) * width, row, columns, mine)

    def _operation(self, site: Site, spec: TensorSpec, shard: Shard | None, start: int) -> Operation:
        def measure(dora: Dora) -> None:
            """Give a DoRA on a weight stored (in, out) all its rows in order, a few at a time."""
            kept, columns = STORAGE[spec.dtype], site.layout.shape[1]
            tall = max(_STRIPE_ELEMENTS // columns, 1)
            workspace = Workspace(_STRIPE_ELEMENTS)
            for row in range(site.layout.rows.start, site.layout.rows.stop, tall):
                values = np.empty((min(tall, site.layout.rows.stop - row), columns), kept)
                if shard is not None:
                    shard.read_into(values.reshape(-1).view(np.uint8).data, start + row * columns * kept.itemsize)
                dora.measure(values, workspace)

        return make_operation(site, spec.dtype, self.factors, measure)

    def _count(self, done: Done, changes: dict[str, _Change]) -> None:
        if done.stripe.operations:
            changes[done.stripe.tensor].changed += done.changed
        if done.infinite:
            raise ModelError(
                f"`{show_name(done.stripe.tensor)}` cannot be merged: the result does not fit {done.stripe.dtype}",
                code="infinite_result",
                hint="cast the base to bfloat16 or float32 first, or check the adapter's values: yard doctor ADAPTER",
            )

    def _advance(self, size: int) -> None:
        self.done += size
        if self.progress is not None:
            self.progress(self.done, self.total)


def _size(base: Checkpoint, shard: str) -> int:
    return sum(info.end - info.start for info in base.shards[shard].tensors.values())


def _certify(plan: Plan, base: Checkpoint, notes: dict[str, dict[str, Any]], outputs: dict[str, str]) -> Certificate:
    changes = [change for note in notes.values() for change in note["changes"]]
    replaced = sum("replaced_by" in change for change in changes)
    names = sorted({name for change in changes for name in str(change["operation"]).split(", ")})
    names.sort(key=lambda name: name not in {"lora/1", "dora/1"})
    touched = plan.sites.keys() & base.home.keys()
    return Certificate(
        "merge",
        ", ".join(names),
        options={"mode": "exact"},
        inputs={"base": {shard: note["base"] for shard, note in notes.items()}},
        outputs=outputs,
        matched={
            "merged": len(changes) - replaced,
            "replaced": replaced,
            "added": len(plan.added),
            "untouched": len(base.home) - len(touched),
            "elements": sum(change["elements"] for change in changes),
            "elements_changed": sum(change["changed"] for change in changes),
        },
        changes=changes,
        warnings=list(plan.warnings),
    )


def _refuse_start(start: str, label: str) -> None:
    from modelyard.weights.merge.starts import REPEATED, refuse_start

    if start not in REPEATED:
        refuse_start(start, label)
    raise ModelError(
        f"`{label}` cannot be merged exactly: `init_lora_weights` is {show_name(start)}, which rewrote the base by a decomposition that has"
        " no fixed order of operations",
        code="unsupported_start",
        hint="merge it with --mode peft, which repeats the start as PEFT does on this machine",
    )
