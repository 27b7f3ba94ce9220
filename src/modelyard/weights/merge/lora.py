"""Merging a LoRA adapter into its base by the exact operation `lora/1`, tensor by tensor, block by block.

The base streams from its files to new ones of the same names and layout; at no time is more than a few blocks and one
module's factors in memory, so a 70B model merges in what a 1B one takes. The result depends on the two inputs only: not on
threads, block size or machine. This module knows files and tensors, no repos and no libraries that run models.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3
import numpy as np

from modelyard.derivations import STORAGE, Lora, Workspace
from modelyard.derivations.cast import cast_block
from modelyard.derivations.lora import BLOCK_ELEMENTS
from modelyard.derivations.numbers import Array, widen
from modelyard.digest import Digest
from modelyard.errors import InputError, ModelError
from modelyard.weights.carry import carried_files
from modelyard.weights.checkpoint import Checkpoint, Shard, open_checkpoint
from modelyard.weights.checks import check_weights
from modelyard.weights.files import Files, show_name
from modelyard.weights.merge.adapter import AdapterPlan, Site, plan_adapter
from modelyard.weights.merge.certificate import Change, MergeCertificate
from modelyard.weights.output import HashingWriter, copy_file, fresh_folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.weights.headers import TensorInfo

__all__ = ["MergeCertificate", "merge_lora"]

Progress = Callable[[int, int], None]

_STRIPE_ELEMENTS = 1 << 18
_COPY_BYTES = 1 << 20


def merge_lora(
    base: Files,
    adapter: Files,
    out: Path,
    *,
    progress: Progress | None = None,
    block_elements: int = BLOCK_ELEMENTS,
    threads: int | None = None,
) -> MergeCertificate:
    """Write base + adapter as a new model folder, and return the proof of what was done.

    Linear layers (and GPT-2's `Conv1D`), rsLoRA, per-module ranks and alphas, and tensors saved whole are merged. What
    has no exact operation is refused before anything is written: DoRA, embeddings, trained tokens, convolutions,
    mixture-of-experts parameters, biases, quantized bases, and one side of tied embeddings.

    Args:
        base: The base model: `model.safetensors`, sharded or not, and its `config.json`.
        adapter: A PEFT adapter: `adapter_model.safetensors` and `adapter_config.json`.
        out: A folder that does not exist yet; it appears whole, or not at all.
        progress: Called with (bytes done, bytes in all) of the base's weights.
        block_elements: How many elements are worked on at once; cannot change a bit of the result.
        threads: Compute threads; None is every core that this process may use. Cannot change a bit either.

    Raises:
        ModelError: The base or the adapter is unsafe, broken or refused (see `plan_adapter`); `nan_result` or
            `infinite_result`, naming the tensor, when the result is not finite numbers.
        ConflictError: `out` exists.
        NoSpaceError: The disk is full.
    """
    check_weights(base)
    check_weights(adapter)
    weights, factors = open_checkpoint(base), open_checkpoint(adapter, "adapter_model")
    plan = plan_adapter(weights, factors)
    certificate = MergeCertificate(adapter_digests={name: _digest(adapter, name) for name in sorted(factors.shards)})
    certificate.adapter_digests["adapter_config.json"] = _digest(adapter, "adapter_config.json")
    with fresh_folder(out) as folder:
        cores = threads or _usable_cores()
        with _Merger(weights, factors, plan, certificate, progress, _Pool(cores, block_elements)) as merger:
            for shard in weights.shards:
                merger.merge_shard(shard, folder / shard)
        if weights.index is not None:
            certificate.outputs[weights.index] = copy_file(base, weights.index, folder)
        for name, source in carried_files(base, adapter).items():
            certificate.outputs[name] = copy_file(source, name, folder)
    return certificate


Work = Callable[["Array", "Array", int, Workspace], bool]


@dataclass(frozen=True)
class _Stripe:
    """Some rows of one tensor: which bytes they are, and what is to be done to them (`work` None: nothing)."""

    tensor: str
    info: TensorInfo
    first: int
    rows: int
    row_bytes: int
    work: Work | None = None
    change: Change | None = None


@dataclass(frozen=True)
class _Done:
    """A stripe's bytes before and after, in buffers that go back to the pool once they are written."""

    stripe: _Stripe
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    changed: int = 0
    infinite: bool = False


class _Pool:
    """Threads and the memory they use again and again. Lists serve as pools: `append` and `pop` are atomic."""

    def __init__(self, threads: int, block_elements: int) -> None:
        self.executor = ThreadPoolExecutor(threads)
        self.depth = threads + 1  # stripes under way: one for each thread and one being written
        self.workspaces = [Workspace(block_elements) for _ in range(threads)]
        self._buffers: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """A buffer of exactly `size` bytes, its content undefined."""
        buffer = self._buffers.pop() if self._buffers else np.empty(size, np.uint8)
        return buffer[:size] if buffer.size >= size else np.empty(size, np.uint8)

    def give(self, part: NDArray[np.uint8]) -> None:
        """Put a buffer back."""
        self._buffers.append(part if part.base is None else part.base)


@dataclass
class _Merger:
    """The state of one merge: its inputs, its threads, and the certificate that grows."""

    base: Checkpoint
    adapter: Checkpoint
    plan: AdapterPlan
    certificate: MergeCertificate
    progress: Progress | None
    pool: _Pool
    done: int = 0

    def __enter__(self) -> _Merger:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.executor.shutdown(cancel_futures=True)

    def merge_shard(self, name: str, target: Path) -> None:
        """Write one shard anew: the same header, the same places, other bytes where the plan says so."""
        total = sum(info.end - info.start for head in self.base.shards.values() for info in head.tensors.values())
        with self.base.open(name) as shard, HashingWriter(target) as writer:
            if shard.header != self.base.shards[name]:
                raise ModelError(f"`{shard.label}` changed while it was read", code="truncated")
            before = blake3.blake3(shard.header_bytes)
            writer.write(shard.header_bytes)
            for done in self._in_order(shard):
                before.update(done.before.data)
                writer.write(done.after.data)
                self._note(done)
                self.done += done.before.size
                if self.progress is not None:
                    self.progress(self.done, total)
        self.certificate.base_digests[name] = Digest(before.hexdigest())
        self.certificate.outputs[name] = writer.digest()

    def _in_order(self, shard: Shard) -> Iterator[_Done]:
        """The shard's stripes in the order of its bytes, computed a few ahead by the pool's threads."""
        running: deque[Future[_Done]] = deque()
        try:
            for stripe in self._stripes(shard):
                running.append(self.pool.executor.submit(self._compute, shard, stripe))
                while len(running) >= self.pool.depth:
                    yield from self._next(running)
            while running:
                yield from self._next(running)
        finally:
            # After an error, nobody may still be reading when the file is closed.
            wait([future for future in running if not future.cancel()])

    def _next(self, running: deque[Future[_Done]]) -> Iterator[_Done]:
        done = running.popleft().result()
        yield done
        self.pool.give(done.before)
        if done.after is not done.before:
            self.pool.give(done.after)

    def _stripes(self, shard: Shard) -> Iterator[_Stripe]:
        """A shard's tensors cut into rows, with what the plan says about them."""
        for tensor, info in shard.header.in_file_order():
            site, key = self.plan.sites.get(tensor), self.plan.replaced.get(tensor)
            if site is None and key is None:
                self.certificate.untouched += 1
                size = info.end - info.start
                for start in range(0, size, _COPY_BYTES):
                    yield _Stripe(tensor, info, start, min(_COPY_BYTES, size - start), 1)
                continue
            change = Change(tensor, site, key, info)
            self.certificate.changes.append(change)
            if info.elements == 0:
                continue
            work = self._lora(site, info) if site is not None else self._replacement(str(key), info)
            rows, columns = info.shape if len(info.shape) == 2 else (info.elements, 1)
            tall = max(_STRIPE_ELEMENTS // columns, 1)
            row_bytes = columns * STORAGE[info.dtype].itemsize
            for row in range(0, rows, tall):
                yield _Stripe(tensor, info, row, min(tall, rows - row), row_bytes, work, change)

    def _compute(self, shard: Shard, stripe: _Stripe) -> _Done:
        """One thread's part: read rows, compute them, count what changed."""
        size = stripe.rows * stripe.row_bytes
        before = self.pool.take(size)
        shard.read_into(before.data, stripe.info.start + stripe.first * stripe.row_bytes)
        if stripe.work is None:
            return _Done(stripe, before, before)
        after = self.pool.take(size)
        kept = STORAGE[stripe.info.dtype]
        workspace = self.pool.workspaces.pop()
        try:
            shape = (stripe.rows, -1)
            infinite = stripe.work(
                before.view(kept).reshape(shape), after.view(kept).reshape(shape), stripe.first, workspace
            )
        except InputError as error:
            what = f"`{show_name(stripe.tensor)}` cannot be merged: {error.message}"
            raise ModelError(what, code=error.code, hint=error.hint) from error
        finally:
            self.pool.workspaces.append(workspace)
        bits = np.dtype(f"<u{kept.itemsize}")
        return _Done(stripe, before, after, int(np.count_nonzero(before.view(bits) != after.view(bits))), infinite)

    def _note(self, done: _Done) -> None:
        change, info = done.stripe.change, done.stripe.info
        if change is not None:
            change.changed += done.changed
        if done.infinite:
            raise ModelError(
                f"`{show_name(done.stripe.tensor)}` cannot be merged: the result does not fit {info.dtype}",
                code="infinite_result",
                hint="cast the base to bfloat16 or float32 first, or check the adapter's values: yard doctor ADAPTER",
            )

    def _lora(self, site: Site, info: TensorInfo) -> Work:
        lora = Lora(self._floats(site.a), self._floats(site.b), site.scale, info.dtype, transposed=site.transposed)
        return lora.apply

    def _floats(self, key: str) -> NDArray[np.float32]:
        raw = self.adapter.read(key)
        made = np.empty(raw.shape, np.float32)
        widen(raw, self.adapter.info(key).dtype, made)
        return made

    def _replacement(self, key: str, info: TensorInfo) -> Work:
        """A tensor that the adapter saved whole takes the base's dtype by `cast/1`."""
        given = self.adapter.read(key).reshape(-1)
        from_ = self.adapter.info(key).dtype

        def replace(before: Array, after: Array, row: int, workspace: Workspace) -> bool:
            flat, first = after.reshape(-1), row * before.shape[1]
            overflow = False
            for start in range(0, flat.size, workspace.elements):
                part = flat[start : start + workspace.elements]
                source = given[first + start : first + start + part.size]
                overflow |= cast_block(source, from_, part, info.dtype, workspace)
            return overflow

        return replace


def _digest(files: Files, name: str) -> Digest:
    made = blake3.blake3()
    with files.path(name).open("rb") as stream:
        while chunk := stream.read(_COPY_BYTES):
            made.update(chunk)
    return Digest(made.hexdigest())


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
