"""Merging an adapter as PEFT's `merge_and_unload` does, bit for bit, one tensor at a time: mode `peft`.

The bits are PEFT's on the same machine, with the same builds of torch and its BLAS and the same number of threads; the certificate names them. At
most a few tensors and one product are in memory, whatever the model's size. Where PEFT's own merge is another function than the adapter
attached, this mode refuses and names `exact`. The arithmetic is in `formulas`; this module plans files and counts.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.certificate import THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name
from modelyard.weights.merge.formulas import Scratch, apply_sites
from modelyard.weights.merge.names import is_head, is_input_embedding
from modelyard.weights.merge.starts import repeat_start
from modelyard.weights.merge.whole import Job, SourceShard, write_shard
from modelyard.weights.pipeline import Buffers
from modelyard.weights.shards import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.merge.plan import Plan, Site
    from modelyard.weights.output import Work

    Bytes = NDArray[np.uint8]
    Before = Callable[[Tensor, Sequence[Site]], Tensor]

__all__ = ["describe_torch", "merge_peft", "torch_threads"]

_COMPARED = 1 << 18
_LIBRARIES = ("torch", "peft", "transformers")


def merge_peft(
    plan: Plan,
    base: Checkpoint,
    adapter: Checkpoint,
    work: Work,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Certificate:
    """Write the base's shards with the adapter merged in, in the bits that PEFT 0.21's `merge_and_unload` gives here.

    Args:
        plan: What changes, tensor by tensor.
        base: The base's tensors: float32, float16 or bfloat16 where they change.
        adapter: The adapter's tensors.
        work: Where to write; shards that it knows as finished are kept.
        progress: Called with (bytes done, bytes in all).
        threads: torch's threads meanwhile; None leaves them. PEFT gives the same bits with the same number only.

    Returns:
        The certificate, `this machine`, with the digests of the base's files and of the shards.

    Raises:
        ModelError: `tied_embeddings` where PEFT merges wrongly; `unsupported_start`, as `repeat_start`; `infinite_result`, naming the tensor, when the
            result is not finite numbers.
    """
    _refuse_tied(plan, adapter)
    start = read_json(adapter.files, "adapter_config.json").get("init_lora_weights")
    before = repeat_start(plan.start, adapter.files.label)
    merger = _Merger(plan, base, adapter, before, str(start).lower() == "mica", progress)
    made = Certificate("merge", "peft", exactness=THIS_MACHINE, warnings=list(plan.warnings))
    with torch_threads(threads):
        made.machine = describe_torch()
        for shard in base.shards:
            note = work.finished(shard)
            if note is None:
                note = merger.write(shard, work)
            else:
                merger.skip(shard)
            made.inputs.setdefault("base", {})[shard] = note["base"]
            made.outputs[shard] = str(work.digest(shard))
            made.changes += note["changes"]
    replaced = sum("replaced_by" in change for change in made.changes)
    made.matched = {
        "merged": len(made.changes) - replaced,
        "replaced": replaced,
        "added": len(plan.added),
        "untouched": len(base.home) - len(plan.sites.keys() & base.home.keys()),
        "elements": sum(change["elements"] for change in made.changes),
        "elements_changed": sum(change["changed"] for change in made.changes),
    }
    return made


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Torch with `threads` threads inside the block, without gradients; None leaves the number."""
    import torch

    kept = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(kept)


def describe_torch() -> dict[str, Any]:
    """What torch's bits follow from: `describe_machine`, its BLAS and the vector instructions that it uses."""
    import torch

    lines = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    blas = next((line for line in lines if "Math Kernel Library" in line or line.startswith("OpenBLAS")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return describe_machine(*_LIBRARIES, threads=torch.get_num_threads()) | {"blas": blas, "instructions": capability}


@dataclass
class _Merger:
    """The state of one merge."""

    plan: Plan
    base: Checkpoint
    adapter: Checkpoint
    before: Before | None
    rounded: bool
    progress: Callable[[int, int], None] | None
    done: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)
    scratch: Scratch = field(default_factory=Scratch)
    buffers: Buffers = field(default_factory=Buffers)

    def write(self, name: str, work: Work) -> dict[str, Any]:
        """Write one shard and finish it; its note."""
        self.changes = []
        with SourceShard(self.base, name) as source:
            specs = [TensorSpec(each, info.dtype, info.shape) for each, info in source.header.in_file_order()]
            added = self._added_to(name)
            specs += [TensorSpec(each, self.plan.added[each].dtype, self.plan.added[each].shape) for each in added]
            path, jobs = work.folder / name, self._jobs(source, specs, added)
            digest = write_shard(
                path, specs, jobs, self.buffers, metadata=source.header.metadata, progress=self._advance
            )
            note = {"base": source.digest(), "changes": self.changes}
        work.finish(name, digest, note)
        return note

    def skip(self, name: str) -> None:
        """Count a shard that an earlier run wrote."""
        self._advance(sum(info.end - info.start for info in self.base.shards[name].tensors.values()))

    def _added_to(self, shard: str) -> list[str]:
        return list(self.plan.added) if shard == list(self.base.shards)[-1] else []

    def _jobs(self, source: SourceShard, specs: Sequence[TensorSpec], added: Sequence[str]) -> Iterator[Job]:
        for spec in specs:
            sites = self.plan.sites.get(spec.name, ())
            change = _Change(spec, sites, self)
            if spec.name in added:
                yield Job(spec.size, change.begin, change.compute if sites else None, change.check if sites else None)
            elif sites and spec.size:
                yield source.change(spec.name, change.compute, change.check)
            else:
                yield from source.keep(spec.name)

    def read(self, key: str) -> Tensor:
        info = self.adapter.info(key)
        return as_tensor(self.adapter.read(key).reshape(-1).view(np.uint8), info.dtype, info.shape).clone()

    def _advance(self, size: int) -> None:
        self.done += size
        if self.progress is not None:
            total = sum(info.end - info.start for head in self.base.shards.values() for info in head.tensors.values())
            self.progress(min(self.done, total), total)


@dataclass(frozen=True)
class _Change:
    """One tensor that changes: its three jobs."""

    spec: TensorSpec
    sites: Sequence[Site]
    merger: _Merger

    def begin(self, buffer: Bytes) -> None:
        """Fill in what a tensor that the base has not starts from."""
        origin = self.merger.plan.added[self.spec.name].source
        buffer[:] = 0 if origin is None else self.merger.base.read(origin).reshape(-1).view(np.uint8)

    def compute(self, raw: Bytes, room: Bytes) -> Bytes:
        """The merged tensor's bytes."""
        merger = self.merger
        weight, out = (as_tensor(each, self.spec.dtype, self.spec.shape) for each in (raw, room))
        if merger.before is not None:
            weight = merger.before(weight, self.sites)
        merged = apply_sites(weight, self.sites, merger.read, merger.scratch, out=out, rounded=merger.rounded)
        return room if merged is out else as_bytes(merged.contiguous())

    def check(self, raw: Bytes, made: Bytes) -> None:
        """Count what changed and refuse what is not finite."""
        changed = count_changed(raw, made, self.spec)
        self.merger.changes.append(describe_change(self.spec, self.sites, changed))


def as_tensor(raw: Bytes, dtype: str, shape: Sequence[int]) -> Tensor:
    """A float tensor over the bytes of a safetensors file, without a copy."""
    import torch

    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if not raw.size:
        return torch.empty(tuple(shape), dtype=types[dtype])
    return torch.frombuffer(raw, dtype=types[dtype]).reshape(tuple(shape))


def as_bytes(tensor: Tensor) -> Bytes:
    """The bytes of a contiguous tensor, without a copy."""
    import torch

    made: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return made


def count_changed(before: Bytes, after: Bytes, spec: TensorSpec) -> int:
    """How many elements have other bits than before.

    Raises:
        ModelError: `infinite_result`: a number of the result is not finite.
    """
    bits, exponent = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}[spec.dtype]
    olds, news = before.view(bits), after.view(bits)
    changed = 0
    for start in range(0, news.size, _COMPARED):
        old, new = olds[start : start + _COMPARED], news[start : start + _COMPARED]
        changed += int(np.count_nonzero(old != new))
        if int((new & np.array(exponent, bits)).max()) == exponent:
            raise ModelError(
                f"`{show_name(spec.name)}` cannot be merged: the result has numbers that are not finite",
                code="infinite_result",
                hint="cast the base to bfloat16 or float32 first, or check the adapter's values: yard doctor ADAPTER",
            )
    return changed


def describe_change(spec: TensorSpec, sites: Sequence[Site], changed: int) -> dict[str, Any]:
    """One changed tensor for the certificate: integers and strings, the scale as a hexadecimal binary32."""
    first = sites[0]
    modules = list(dict.fromkeys(site.module for site in sites))
    plain: dict[str, Any] = {
        "tensor": spec.name,
        "dtype": spec.dtype,
        "elements": prod(spec.shape),
        "changed": changed,
        "operation": "peft",
        "kind": "dora" if first.dora else first.kind,
        "module": modules[0],
    }
    if len(sites) > 1:
        plain |= {"parts": len(sites), "modules": modules}
    if first.low_rank or first.kind == "bias":
        plain |= {"rank": first.rank, "alpha": repr(first.alpha), "scale": float(first.scale).hex()}
    if first.low_rank:
        return plain | {"transposed": "yes" if first.layout.transposed else "no"}
    replaced_by = first.tensors.get("value") or first.tensors.get("tokens")
    return plain | ({"replaced_by": replaced_by} if replaced_by else {})


def _refuse_tied(plan: Plan, adapter: Checkpoint) -> None:
    """PEFT adds a change of one side, or the one change of both sides twice, to the tensor that both sides share."""
    changed = [name for name, sites in plan.sites.items() if any(site.low_rank for site in sites)]
    parts = plan.added.keys() | {added.source for added in plan.added.values()}
    sides = [name for name in changed if is_head(name) or is_input_embedding(name) or name in parts]
    modules = {f"{key.partition('.lora_')[0]}.weight" for key in adapter.home if ".lora_" in key}
    both = any(is_head(name) for name in modules) and any(is_input_embedding(name) for name in modules)
    parted = any(name.endswith("tie_word_embeddings") and value is False for name, value in plan.config.items())
    if sides and (parted or (both and len(sides) == 1)):
        raise ModelError(
            f"`{adapter.files.label}` cannot be merged as PEFT merges: it changes `{show_name(sides[0])}`, which the base shares"
            " between its input embedding and its output layer, and PEFT's merge is another function there",
            code="tied_embeddings",
            hint="merge it with --mode exact, which computes what the adapter computes when it is attached",
        )
