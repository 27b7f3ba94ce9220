"""The same model in another dtype, in other shards, under other names: one streaming pass, resumable, with a certificate.

Every tensor is copied, cast by the exact operation `cast/1`, or moved by transformers' own conversion between the two layouts of names (`layouts`), block
by block; digests are computed while bytes pass. Runs no model.

>>> import tempfile, numpy
>>> from pathlib import Path
>>> from safetensors.numpy import save_file
>>> from modelyard.weights import FolderFiles
>>> folder = Path(tempfile.mkdtemp())
>>> (folder / "a").mkdir()
>>> save_file({"w": numpy.ones(3, numpy.float32), "n": numpy.ones(2, numpy.int8)}, folder / "a" / "model.safetensors")
>>> rewrite(FolderFiles(folder / "a"), folder / "b", dtype="bfloat16").matched
{'tensors': 2, 'cast': 1, 'kept': 1}
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import blake3
import numpy as np

from modelyard.derivations import STORAGE
from modelyard.errors import ModelError
from modelyard.weights.carry import is_carried, list_parts
from modelyard.weights.certificate import EVERYWHERE, Certificate
from modelyard.weights.checks import read_json
from modelyard.weights.convert.layouts import PREFIXES
from modelyard.weights.convert.planning import DTYPES, Asked, RewritePlan, TensorPlan, make_plan
from modelyard.weights.convert.streaming import Block, Lane, Piece, cut
from modelyard.weights.files import FolderFiles
from modelyard.weights.output import Digested, copy_file, digest_of, format_json, key_of, resumable_folder, write_file
from modelyard.weights.shards import ShardWriter, TensorSpec, index_name, write_index
from modelyard.weights.untrained import KEY, Untrained, find_untrained, make_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.weights.checkpoint import Shard
    from modelyard.weights.convert.layouts import Group
    from modelyard.weights.files import Files
    from modelyard.weights.output import Work

__all__ = ["TensorPlan", "plan_rewrite", "rewrite"]


def plan_rewrite(
    source: Files,
    *,
    dtype: str | None = None,
    dtypes: Mapping[str, str] | None = None,
    shard_size: int | str | None = None,
    names: str | None = None,
) -> list[TensorPlan]:
    """What `rewrite` would do with the same arguments, tensor by tensor, from headers and configuration alone.

    Raises:
        InputError, ModelError: As `rewrite`, except for what only the values show.
    """
    return make_plan(source, Asked(dtype, dtypes or {}, shard_size, names)).tensors


def rewrite(
    source: Files,
    out: Path,
    *,
    dtype: str | None = None,
    dtypes: Mapping[str, str] | None = None,
    shard_size: int | str | None = None,
    names: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Write a model or adapter anew: cast, in other shards, under other names; interrupted, the same call goes on.

    Args:
        source: The model or adapter.
        out: A folder that does not exist yet.
        dtype: `bfloat16`, `float16` or `float32` for every floating-point tensor; None leaves them. Integers and 8-bit formats stay.
        dtypes: Glob pattern on whole names (as they will be) to a dtype or `keep`; the first that fits counts, before `dtype`.
        shard_size: The most bytes of tensors in a file, or a size as `"5GB"`; a tensor is never cut. None keeps the source's files,
            or with `names` their largest size.
        names: `disk`: the layout that transformers 4 wrote and 5 still saves; `module`: that of transformers 5's modules. None keeps names.
        threads: Compute threads; None is every core that this process may use. Cannot change a bit.
        progress: Called with (bytes done, bytes in all) of the weights that are written.

    Returns:
        The certificate, which is also in `out` as `certificate.json`: `matched` counts `tensors`, those `cast` and those `kept`
        (the dtype that they had), `changes` has every tensor that is not a copy.

    Raises:
        InputError: `unknown_dtype`, `bad_size`, `bad_names`, `unmatched_pattern`.
        ModelError: The source is unsafe or broken; `unsupported_dtype` (F64 has no exact operation), `quantized_source`, `nan_result`
            or `infinite_result`, each naming the tensor or the model; for `names`, `unknown_architecture`, `adapter_names`, `no_layout`.
        BusyError, ConflictError, NoSpaceError: As `resumable_folder`.
    """
    asked = Asked(dtype, dtypes or {}, shard_size, names)
    plan = make_plan(source, asked)
    key = key_of("rewrite", asked.to_dict(), source)
    with resumable_folder(out, key) as work, Lane(threads) as lane:
        rewriter = _Rewriter(plan, work, lane, progress)
        outputs = rewriter.write_shards()
        outputs |= _write_index(plan, work.folder)
        outputs |= _write_rest(plan, work.folder, asked)
        certificate = _certify(plan, asked, {"source": rewriter.input_digests()}, outputs)
        certificate.write(work.folder)
    return certificate


class _Rewriter:
    """One run: the source's open files, the plan, and the digests of what was read so far."""

    def __init__(self, plan: RewritePlan, work: Work, lane: Lane, progress: Callable[[int, int], None] | None) -> None:
        self._plan, self._work, self._lane, self._progress = plan, work, lane, progress
        self._files = plan.weights.files
        self._open: dict[str, Shard] = {}
        self._held = ExitStack()
        self._group: tuple[Group | None, dict[str, NDArray[np.uint8]]] = (None, {})
        # Tensors that keep their order pass whole files in the order of their bytes, which so are hashed on the way.
        self._hashing = not plan.renamed and not isinstance(self._files, Digested)
        self._hashes: dict[Shard, Any] = {}
        self._done, self._total = 0, sum(tensor.size for tensor in plan.tensors)

    def write_shards(self) -> dict[str, str]:
        """Write every file of tensors that is not finished yet; name to digest."""
        outputs: dict[str, str] = {}
        with self._held, ThreadPoolExecutor(1) as hasher:
            for name, tensors in self._plan.files().items():
                if self._work.finished(name) is None:
                    self._write(name, tensors, hasher)
                else:
                    self._pass_over(tensors)
                outputs[name] = str(self._work.digest(name))
            return outputs

    def input_digests(self) -> dict[str, str]:
        """The digests of the source's files of tensors."""
        if not self._hashing:
            return {name: str(digest_of(self._files, name)) for name in self._plan.weights.shards}
        return {name: self._hashes[shard].hexdigest() for name, shard in sorted(self._open.items())}

    def _write(self, name: str, tensors: list[TensorPlan], hasher: ThreadPoolExecutor) -> None:
        specs = [TensorSpec(tensor.name, tensor.after, tensor.shape) for tensor in tensors]
        with ShardWriter(self._work.folder / name, specs, self._metadata(name)) as writer:
            for block in self._lane.run(self._pieces(tensors)):
                hashing = hasher.submit(self._hash, block)
                writer.write(block.after.data)
                hashing.result()
                self._advance(block.after.size)
        self._work.finish(name, writer.digest())

    def _pass_over(self, tensors: list[TensorPlan]) -> None:
        """A finished file's tensors are read again only to hash the source that they came from."""
        if self._hashing:
            for block in self._lane.run(self._pieces([replace(tensor, after=tensor.before) for tensor in tensors])):
                self._hash(block)
        self._advance(sum(tensor.size for tensor in tensors))

    def _hash(self, block: Block) -> None:
        if self._hashing:
            self._hashes[cast("Shard", block.piece.source)].update(block.before.data)

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _metadata(self, name: str) -> dict[str, str]:
        shards = self._plan.weights.shards
        header = shards.get(name) or next(iter(shards.values()))
        kept = {key: text for key, text in header.metadata.items() if not self._plan.renamed or key != PREFIXES}
        return (kept or {"format": "pt"}) | self._plan.metadata

    def _pieces(self, tensors: list[TensorPlan]) -> Iterator[Piece]:
        """The bytes that become these tensors. Neighbours that stay as they are come in one go: there may be thousands of small ones."""
        run: tuple[str, Shard, int, int] | None = None
        for tensor in tensors:
            source, start, end = self._find(tensor)
            copied = tensor.before == tensor.after and not isinstance(source, np.ndarray)
            if run is not None and copied and run[1] is source and run[3] == start:
                run = (*run[:3], end)
                continue
            if run is not None:
                yield from cut(run[0], run[1], run[2:], ("", ""))
            run = (tensor.name, cast("Shard", source), start, end) if copied else None
            if not copied:
                yield from cut(tensor.name, source, (start, end), (tensor.before, tensor.after))
        if run is not None:
            yield from cut(run[0], run[1], run[2:], ("", ""))

    def _find(self, tensor: TensorPlan) -> tuple[Shard | NDArray[np.uint8], int, int]:
        """Where the bytes of a tensor come from, before any cast."""
        group = self._plan.groups.get(tensor.name)
        if group is not None:
            if self._group[0] is not group:
                self._group = (None, {})  # the last one's memory first
                self._group = (group, group.compute(self._plan.weights))
            made = self._group[1][tensor.name]
            return made, 0, made.size
        (name,) = tensor.sources
        info = self._plan.weights.info(name)
        return self._shard(self._plan.weights.home[name]), info.start, info.end

    def _shard(self, name: str) -> Shard:
        if name not in self._open:
            shard = self._held.enter_context(self._plan.weights.open(name))
            if shard.header != self._plan.weights.shards[name]:
                raise ModelError(f"`{shard.label}` changed while it was read", code="truncated")
            self._open[name] = shard
            if self._hashing:
                self._hashes[shard] = blake3.blake3(shard.header_bytes)
        return self._open[name]


def _write_index(plan: RewritePlan, folder: Path) -> dict[str, str]:
    """The index that belongs to the files, with what the source's said beside sizes."""
    placed = {
        file: [TensorSpec(tensor.name, tensor.after, tensor.shape) for tensor in tensors]
        for file, tensors in plan.files().items()
    }
    known: dict[str, Any] = {}
    if plan.weights.index is not None:
        known = dict(read_json(plan.weights.files, plan.weights.index).get("metadata") or {})
    digest = write_index(folder, placed, known)
    return {} if digest is None else {str(index_name(placed)): str(digest)}


def _write_rest(plan: RewritePlan, folder: Path, asked: Asked) -> dict[str, str]:
    """Configuration, tokenizer and everything else that belongs to the model."""
    files = plan.weights.files
    outputs: dict[str, str] = {}
    parts = list_parts(files)
    for name in files.names():
        if name == "config.json":
            config = _remark(plan, folder, _retype(read_json(files, name), _dtype_of(plan, asked)))
            outputs[name] = str(write_file(folder / name, format_json(config)))
        elif is_carried(name) or name == "adapter_config.json" or name in parts:
            outputs[name] = str(copy_file(files, name, folder))
    return outputs


def _dtype_of(plan: RewritePlan, asked: Asked) -> str | None:
    """What the configuration says: the one dtype of all floating-point tensors, else the one asked for; None leaves it."""
    if asked.dtype is None and not asked.dtypes:
        return None
    found = {tensor.after for tensor in plan.tensors if tensor.after in STORAGE}
    return next(name for name, code in DTYPES.items() if code in found) if len(found) == 1 else asked.dtype


def _retype(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """The configuration with its dtype said anew, those of the parts of a multi-modal model included."""
    if dtype is None:
        return config
    old = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return _retype_parts(config, dtype) | {old: dtype}


def _retype_parts(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    made = dict(config)
    for key, value in config.items():
        if key in {"dtype", "torch_dtype"} and isinstance(value, str):
            made[key] = dtype
        elif isinstance(value, dict) and key != "quantization_config":
            made[key] = _retype_parts(value, dtype)
    return made


def _remark(plan: RewritePlan, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the mark of untrained tensors for the bytes that were written; without one that is untrue."""
    if KEY not in config:
        return config
    found = find_untrained(plan.weights.files)
    rest = {key: value for key, value in config.items() if key != KEY}
    if found is None:
        return rest
    if found.tensors is not None and plan.renamed:
        names = {new for old in found.tensors for new in plan.renamed[old]}
        found = Untrained(found.kind, found.seed, tuple(sorted(names, key=str.encode)))
    return rest | {KEY: make_mark(found, FolderFiles(folder))}


def _certify(
    plan: RewritePlan, asked: Asked, inputs: dict[str, dict[str, str]], outputs: dict[str, str]
) -> Certificate:
    count = sum(tensor.before != tensor.after for tensor in plan.tensors)
    matched: dict[str, Any] = {"tensors": len(plan.tensors), "cast": count, "kept": len(plan.tensors) - count}
    method = ["cast/1"] if count else []
    if plan.renamed:
        method.append(f"{asked.names} names")
        matched["renamed"] = sum(tensor.operation.startswith("rename") for tensor in plan.tensors)
        matched["rebuilt"] = len(plan.groups)
    if asked.shard_size is not None:
        method.append("shards")
    narrow = sum(tensor.before == tensor.after and tensor.after.startswith("F8") for tensor in plan.tensors)
    warnings = list(plan.warnings)
    if narrow and (asked.dtype or asked.dtypes):
        warnings.append(f"{narrow} tensors of 8-bit formats stayed as they were")
    changes = [tensor.to_dict() for tensor in plan.tensors if tensor.operation != "copy"]
    return Certificate(
        "convert", " + ".join(method) or "copy", asked.to_dict(), EVERYWHERE, inputs, outputs, matched, changes,
        warnings=warnings,
    )  # fmt: skip
