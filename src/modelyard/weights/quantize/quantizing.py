"""`quantize`: a model's folder in fewer bits, written as transformers writes it, loaded again from disk and compared.

The model is built in memory, once as it is and once quantized, one after the other: quantizers work on modules. That sets what a
process computes with (threads, torchao's registrations), so a surface runs it in a process of its own. What a method leaves as
it is stands in the certificate: embeddings, the output layer, and the fused experts that no method for linear layers reaches.
Knows folders; no references and no stores.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights import certificate as certificates
from modelyard.weights import parity
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checks import read_json
from modelyard.weights.folders import as_files, as_folder
from modelyard.weights.output import Work, copy_file, hash_file, key_of, resumable_folder
from modelyard.weights.quantize.methods import Method, check_method, make_config, refuse_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.weights.files import Files
    from modelyard.weights.model import Model

    Progress = Callable[[int, int], None]

__all__ = ["quantize"]

_LIBRARIES = ("torch", "transformers", "torchao", "bitsandbytes")
_STAGES = 4
_SHOWN = 6
_ALLOW = ("preprocessor",)  # weights alone can be quantized, and seeded inputs need no tokenizer


def quantize(
    source: Files | Path | str,
    out: Path | str,
    method: str,
    *,
    tolerance: float | None = None,
    check: bool = True,
    tokens: int = 16,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Write `source` quantized to `out`: safetensors and `quantization_config`, as transformers' own `save_pretrained` writes them.

    Tokenizer, preprocessors, chat template, generation config and licence come along byte for byte.

    Args:
        source: A model's folder, in full precision.
        out: A folder that does not exist yet; it appears whole, or not at all.
        method: One of `METHODS`.
        tolerance: Largest difference of any output from the source's that holds, relative to the output's largest magnitude; by
            default the method's own. It is measured on the folder as it is loaded again from disk, on `parity.fixed_inputs`.
        check: Whether that is measured; without, the certificate says so.
        tokens: Greedy tokens to compare, of models that write text.
        dtype: What is kept in full precision, and computed in: `float32`, `bfloat16` or `float16`; by default what the source is in.
        threads: Compute threads of torch in this process; None leaves them as they are.
        progress: Called with (stages done, stages in all): the source is computed, quantized, written, and computed again from disk.

    Returns:
        The certificate, which is `certificate.json` in `out` too: the kind of every difference, and what stays as it was.

    Raises:
        RequestError: `no_quantization`, or another option has a value that it cannot have.
        ModelError: `quantization_differs`: out of tolerance, and nothing is left; `already_quantized`; `nothing_quantized`: no linear
            layer that the method takes; an adapter, or no usable model (as `load`); `missing_package`; `out_of_memory`.
        ConflictError: `out` exists.
        NoSpaceError: The disk is full.
    """
    chosen = check_method(method)
    if tolerance is not None and not tolerance > 0:
        raise RequestError(f"`tolerance` is {tolerance!r}", hint="a number above 0", field="tolerance")
    files, out = as_files(source), Path(out)
    _refuse(files)
    held = chosen.tolerance if tolerance is None else tolerance
    options = {"method": method, "dtype": dtype, "tolerance": held if check else None, "tokens": tokens if check else 0}
    made = Certificate("quantize", method, options, THIS_MACHINE)
    # A tolerance changes nothing that is written: another one goes on with what is there.
    key = key_of("quantize", {"method": method, "dtype": dtype}, files)
    near = out.parent if out.parent.is_dir() else None
    with as_folder(source, near=near) as folder, resumable_folder(out, key) as work:
        job = _Job(files, folder, chosen, dtype, threads, progress)
        reference = _record(folder, tokens, threads) if check else None
        job.advance()
        made.matched, made.warnings = _write(job, work)
        if reference is not None:
            made.checks = [each.to_dict() for each in _compare(work.folder, reference, held, tokens, files.label)]
        else:
            made.warnings.append("nothing was compared with the source: `check` was off")
        job.advance()
        made.inputs = {"source": {name: str(hash_file(files.path(name))) for name in files.names()}}
        names = sorted(path.relative_to(work.folder).as_posix() for path in work.folder.rglob("*") if path.is_file())
        made.outputs = {name: str(work.digest(name)) for name in names if name != _PROGRESS}
        made.machine = describe_machine(*_LIBRARIES, threads=threads)
        made.write(work.folder)
    return made


_PROGRESS = "progress.json"


@dataclass
class _Job:
    """One quantization: what of, how, and how far it got."""

    files: Files
    folder: Path
    method: Method
    dtype: str | None
    threads: int | None
    progress: Progress | None
    done: int = 0

    def advance(self, stages: int = 1) -> None:
        """Report that some of the stages are over."""
        self.done += stages
        if self.progress is not None:
            self.progress(self.done, _STAGES)


def _refuse(files: Files) -> None:
    names = files.names()
    if "adapter_config.json" in names:
        raise ModelError(
            f"`{files.label}` is an adapter",
            code="is_adapter",
            hint="merge it into its base first: yard merge BASE ADAPTER --to MERGED",
        )
    if "config.json" not in names:
        raise ModelError(
            f"`{files.label}` has no config.json", code="no_config", hint="give the folder of a model of transformers"
        )
    refuse_source(files.label, read_json(files, "config.json"))


def _record(folder: Path, tokens: int, threads: int | None) -> tuple[parity.Recorded, list[parity.Batch]]:
    """What the source says of its fixed inputs, as anybody loads it; the model is gone afterwards."""
    from modelyard.weights.load import load

    model = load(folder, threads=threads, allow=_ALLOW)
    try:
        batches = parity.fixed_inputs(model.task, model)
        return parity.record(parity.TorchRunner(model), batches, tokens=tokens), batches
    finally:
        model.release()


def _write(job: _Job, work: Work) -> tuple[dict[str, Any], list[str]]:
    """The quantized folder, unless an earlier run finished it; counts and warnings for the certificate."""
    note = work.finished("config.json")
    if note is not None and all(work.finished(name) is not None for name in note["files"]):
        job.advance(2)
        return note["matched"], note["warnings"]
    for path in work.folder.iterdir():
        if path.name != _PROGRESS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    matched, told = _save_quantized(job, work.folder)
    for name, holder in carried_files(job.files, job.files).items():
        if name not in {"config.json", certificates.FILE}:
            (work.folder / name).unlink(missing_ok=True)
            copy_file(holder, name, work.folder)
    names = sorted(
        path.relative_to(work.folder).as_posix()
        for path in work.folder.rglob("*")
        if path.is_file() and path.name != _PROGRESS
    )
    mode = (work.folder / "config.json").stat().st_mode  # safetensors' own writer lets nobody else read
    for name in [*(name for name in names if name != "config.json"), "config.json"]:
        (work.folder / name).chmod(mode)
        _sync(work.folder / name)
        note = {"files": names, "matched": matched, "warnings": told} if name == "config.json" else None
        work.finish(name, hash_file(work.folder / name), note)
    return matched, told


def _save_quantized(job: _Job, target: Path) -> tuple[dict[str, Any], list[str]]:
    from modelyard.weights.load import load
    from modelyard.weights.loading import quantization
    from modelyard.weights.loading.dtypes import stored_dtype
    from modelyard.weights.loading.lock import loading
    from modelyard.weights.loading.translate import translated

    wanted = job.dtype or stored_dtype(job.folder) or "float32"
    model = load(
        job.folder, quantization=make_config(job.method, wanted), dtype=wanted, threads=job.threads, allow=_ALLOW
    )
    try:
        found = quantization.describe(model.model, job.method.name)
        if not found.tensors:
            raise ModelError(
                f"`{job.files.label}` has no linear layer that {job.method.name} quantizes",
                code="nothing_quantized",
                hint="a smaller dtype halves it: yard convert SOURCE --dtype bfloat16 --to TARGET",
            )
        job.advance()
        with loading(), translated(job.folder, "saved"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            model.model.save_pretrained(target)
        job.advance()
        return _count(found), _tell(model, found, wanted)
    finally:
        model.release()


def _count(found: Any) -> dict[str, Any]:
    return {"quantized": found.tensors, "kept": len(found.kept), "bytes_in_memory": found.bytes}


def _tell(model: Model, found: Any, dtype: str) -> list[str]:
    """What stays in full precision, in sentences."""
    told = []
    experts = set(found.experts)
    skipped = set(model.plan.skipped) if model.plan is not None else set()
    if experts:
        size = sum(found.kept[name] for name in experts)
        told.append(
            f"{len(experts)} tensors of fused experts stay in {dtype}, {size:,} of {found.bytes:,} bytes: {_list(experts)}; "
            "methods for linear layers do not reach them"
        )
    if skipped & set(found.kept):
        told.append(f"{len(skipped)} matrices stay in {dtype}, whose width fills no group: {_list(skipped)}")
    rest = [name for name in found.kept if name not in experts and name not in skipped]
    if rest:
        size = sum(found.kept[name] for name in rest)
        told.append(f"{len(rest)} matrices stay in {dtype}, {size:,} of {found.bytes:,} bytes: {_list(rest)}")
    return told


def _list(names: Any) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_SHOWN]) + (f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _compare(
    folder: Path, recorded: tuple[parity.Recorded, list[parity.Batch]], tolerance: float, tokens: int, label: str
) -> list[parity.Check]:
    from modelyard.weights.load import load

    reference, batches = recorded
    model = load(folder, allow=_ALLOW)
    try:
        checks = parity.compare(reference, parity.TorchRunner(model), batches, tolerance=tolerance, tokens=tokens)
    finally:
        model.release()
    failed = parity.failing(checks)
    if failed:
        worst = max(failed, key=lambda check: check.max_difference / check.scale if check.scale else 0.0)
        found = worst.max_difference / worst.scale if worst.scale else float("inf")
        raise ModelError(
            f"quantized, `{label}` computes something else: {worst.name} is off by {found:.3g} of its scale, "
            f"and {tolerance:g} is allowed; nothing was written",
            code="quantization_differs",
            hint=f"use a method of more bits, or allow it: --tolerance {found * 1.05:.2g}",
            checks=[check.to_dict() for check in failed],
        )
    return checks


def _sync(path: Path) -> None:
    """Make a file durable that a library wrote."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
