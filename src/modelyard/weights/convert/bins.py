"""Safetensors as pickles, for tools that still want `pytorch_model.bin`: streamed from mapped files, compared bit for bit afterwards.

torch writes its own format (`torch.save`), one file after another, and the isolated process of `pickles` reads it back under `weights_only` before the
folder appears. Knows tensors and files; no architecture.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.carry import is_carried, list_parts
from modelyard.weights.certificate import EVERYWHERE, Certificate
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import check_weights
from modelyard.weights.convert.pickles import BATCH, run_worker
from modelyard.weights.files import show_name
from modelyard.weights.output import HashingWriter, copy_file, digest_of, key_of, resumable_folder
from modelyard.weights.shards import TensorSpec, index_name, name_shards, parse_size, plan_shards, write_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.weights.files import Files
    from modelyard.weights.output import Work

__all__ = ["to_bin"]

_NOT_IN_TORCH = frozenset({"F4", "F6_E2M3", "F6_E3M2"})


def to_bin(
    source: Files,
    out: Path,
    *,
    shard_size: int | str | None = None,
    seconds: int = 3600,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Write a model as `pytorch_model.bin`, or numbered files and `pytorch_model.bin.index.json`; an adapter as `adapter_model.bin`.

    Every tensor that safetensors holds comes back with the same bits from `torch.load(..., weights_only=True)`. What is tied is stored once, as it
    was: transformers ties it again by the configuration.

    Args:
        source: The model or adapter.
        out: A folder that does not exist yet.
        shard_size: The most bytes of tensors in a file, or a size as `"5GB"`; None keeps the source's shards.
        seconds: How long reading about a GB of files back may take.
        progress: Called with (bytes done, bytes in all) of what is written.

    Raises:
        InputError: `bad_size`.
        ModelError: The source is unsafe or broken; `unsupported_dtype`: torch has none like it; `adapter_shards`; `conversion_differs`: what torch
            read back is not what was given.
        BusyError, ConflictError, NoSpaceError: As `resumable_folder`; interrupted, the same call goes on.
    """
    size = None if shard_size is None else parse_size(shard_size)
    check_weights(source)
    adapter = "adapter_config.json" in source.names()
    weights = open_checkpoint(source, "adapter_model" if adapter else "model")
    plan = _plan(weights, size, adapter=adapter)
    options = {"shard_size": size} if size else {}
    parts = list_parts(source)
    with resumable_folder(out, key_of("to_bin", options, source)) as work:
        outputs: dict[str, str] = {}
        total = sum(spec.size for specs in plan.values() for spec in specs)
        done = 0

        def advance(written: int) -> None:
            if progress is not None:
                progress(min(done + written, total), total)  # the format's own bytes do not count

        for batch in _batches(plan):
            fresh = {}
            for name, specs in batch.items():
                if work.finished(name) is None:
                    fresh[name] = _write(weights, [spec.name for spec in specs], work.folder / name, advance)
                done += sum(spec.size for spec in specs)
                advance(0)
            if fresh:
                _compare(weights, {name: batch[name] for name in fresh}, work, seconds)
            for name, digest in fresh.items():
                work.finish(name, digest)
            outputs |= {name: str(work.digest(name)) for name in batch}
        index = write_index(work.folder, plan)
        if index is not None:
            outputs[str(index_name(plan))] = str(index)
        for name in source.names():
            if is_carried(name) or name == "adapter_config.json" or name in parts:
                outputs[name] = str(copy_file(source, name, work.folder))
        inputs = {"source": {name: str(digest_of(source, name)) for name in weights.shards}}
        matched: dict[str, Any] = {"tensors": len(weights.home), "files": len(plan)}
        checks = [{"name": "read back under weights_only", "tensors": len(weights.home), "differing": 0, "holds": True}]
        made = Certificate("convert", "bin", options, EVERYWHERE, inputs, outputs, matched, checks=checks)
        made.write(work.folder)
    return made


def _plan(weights: Checkpoint, size: int | None, *, adapter: bool) -> dict[str, list[TensorSpec]]:
    """File name to its tensors: as the source has them where no size is asked for."""
    shards = [
        [TensorSpec(name, info.dtype, info.shape) for name, info in header.in_file_order()]
        for header in weights.shards.values()
    ]
    for spec in (spec for specs in shards for spec in specs):
        if spec.dtype in _NOT_IN_TORCH:
            raise ModelError(
                f"`{show_name(spec.name)}` is {spec.dtype}, and torch has no such dtype", code="unsupported_dtype"
            )
    stem = "adapter_model" if adapter else "pytorch_model"
    if size is None:
        return dict(zip(name_shards(len(shards), stem, ".bin"), shards, strict=True))
    plan = plan_shards((spec for specs in shards for spec in specs), size, stem, ".bin")
    if adapter and len(plan) > 1:
        raise ModelError(
            f"`{weights.files.label}` is an adapter: PEFT reads its tensors from one file", code="adapter_shards"
        )
    return plan


class _Sink:
    """A file as `torch.save` wants one."""

    def __init__(self, writer: HashingWriter, advance: Callable[[int], None]) -> None:
        self._writer, self._advance = writer, advance

    def write(self, data: memoryview) -> int:
        self._writer.write(data)
        self._advance(self._writer.size)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def _write(weights: Checkpoint, names: list[str], path: Path, advance: Callable[[int], None]) -> Digest:
    """One pickle, its tensors mapped from the source's files and never copied; its digest. `advance` is told the bytes written."""
    import torch
    from safetensors import safe_open

    with ExitStack() as held, HashingWriter(path) as writer:
        files = {
            shard: held.enter_context(safe_open(weights.files.path(shard), "pt"))
            for shard in sorted({weights.home[name] for name in names})
        }
        torch.save({name: files[weights.home[name]].get_tensor(name) for name in names}, _Sink(writer, advance))  # type: ignore[arg-type]
    return writer.digest()


def _batches(plan: dict[str, list[TensorSpec]]) -> Iterator[dict[str, list[TensorSpec]]]:
    """Files in groups of about a GB: each is read back by one process, which costs a second or two to start."""
    batch: dict[str, list[TensorSpec]] = {}
    for name, specs in plan.items():
        batch[name] = specs
        if sum(spec.size for held in batch.values() for spec in held) >= BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch


def _compare(weights: Checkpoint, files: dict[str, list[TensorSpec]], work: Work, seconds: int) -> None:
    """Read files back in the isolated process, and refuse them where one bit is another."""
    jobs: list[tuple[str, dict[str, list[str]]]] = []
    for name, specs in files.items():
        wanted: dict[str, list[str]] = {}
        for spec in specs:
            wanted.setdefault(str(weights.files.path(weights.home[spec.name]).absolute()), []).append(spec.name)
        jobs.append((str((work.folder / name).absolute()), wanted))
    sizes = [(work.folder / name).stat().st_size for name in files] + list(map(weights.files.size, weights.shards))
    asked = {
        "task": "compare",
        "jobs": jobs,
        "tied": False,
        "seconds": seconds,
        "memory": (8 << 30) + 4 * max(sizes),
        "file_size": 64 << 20,
    }
    outcome = run_worker(asked, work.folder, weights.files.label)
    for place, (name, specs) in enumerate(files.items()):
        done = outcome["made"][place] if place < len(outcome["made"]) else None
        if done is None or done["dropped"] or done["tensors"] != sorted(spec.name for spec in specs):
            said = ", ".join(map(show_name, done["dropped"][:5])) if done else show_name(str(outcome.get("message")))
            raise ModelError(f"`{name}` does not give back what was written ({said})", code="conversion_differs")
