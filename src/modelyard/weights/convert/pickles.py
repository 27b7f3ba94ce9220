"""Pickled weights as safetensors.

Unpickling is a separate act in a separate process: `convert_pickle` starts `_pickle_worker.py` without this process's
environment, limited in memory, time and file size, and believes nothing of what comes back before our own reader passed
it. The result appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.errors import ModelError, PickleError
from modelyard.weights.carry import is_carried, list_parts
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.content import identify
from modelyard.weights.files import Files, FolderFiles, SingleFile, check_name, show_name
from modelyard.weights.headers import read_header
from modelyard.weights.output import Work, copy_file, hash_file, key_of, resumable_folder, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BATCH", "Conversion", "convert_pickle", "run_worker"]

_WORKER = Path(__file__).with_name("_pickle_worker.py")
_TRAINER_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state\w*|random_states\w*)\.(bin|pt|pth|pkl)"
)
_RESULT_LIMIT = 64 << 20
BATCH = 1 << 30
"""Bytes of pickles for one process: what was finished before is kept when it is interrupted."""


@dataclass
class Conversion:
    """What `convert_pickle` did.

    Attributes:
        converted: Pickled file to the safetensors file made from it.
        carried: Files taken along as they were.
        left: Files left behind: pickles that are no weights, and other formats of the weights.
        dropped: Entries of the pickles that are no tensors, or a tied output layer.
        copied: Tensors that shared memory with another and now have their own.
        isolated: Whether the worker had no network either; its other limits always hold.
    """

    converted: dict[str, str] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    isolated: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return dict(vars(self))


def convert_pickle(source: Path, out: Path, *, seconds: int = 3600, memory: int | None = None) -> Conversion:
    """Write the model folder `source`, whose weights are pickles, or one such file, as safetensors to `out`.

    Where safetensors weights are there too, they are kept and the pickles are only left behind.

    Args:
        source: A folder with `pytorch_model.bin`, its shards and index, or `adapter_model.bin`; or a file (`.bin`, `.pt`, `.ckpt`).
        out: A folder that does not exist yet.
        seconds: How long each process (of about a GB of pickles) may take, in processor time and on the clock.
        memory: Address space for it in bytes; None is 8 GiB plus four times the largest file.

    Raises:
        PickleError: A pickle needs code to be loaded (`pickle_code`), or is compressed or padded (`pickle_bomb`).
        ModelError: `nothing_to_convert`; `conversion_failed` (what the worker said); `incomplete_version` when the index
            and the shards disagree; or as `check_weights` for the result.
        BusyError, ConflictError, NoSpaceError: As `resumable_folder`; interrupted, the same call goes on.
    """
    files: Files = SingleFile(source) if source.is_file() else FolderFiles(source)
    names = files.names()
    pickles = [name for name in names if identify(files.path(name)) == "pickle"]
    safe = [
        name for name in names if name.endswith((".safetensors", ".safetensors.index.json")) and name not in pickles
    ]
    targets = {} if safe else _targets(files, pickles)
    if not pickles or not (safe or targets):
        raise ModelError(
            f"`{files.label}` has no pickled weights to convert",
            code="nothing_to_convert",
            hint="give a folder with pytorch_model.bin or adapter_model.bin",
        )
    made = Conversion(converted=targets)
    tied = "config.json" in names and read_json(files, "config.json").get("tie_word_embeddings") is True
    parts = list_parts(files)
    with resumable_folder(out, key_of("convert_pickle", {}, files)) as work:
        for note in _unpickle(files, targets, work, _Limits(seconds, memory, tied=tied)):
            made.dropped += note["dropped"]
            made.copied += note["copied"]
            made.isolated &= note["isolated"]
        for name in names:
            carried = is_carried(name) or name in {"README.md", "adapter_config.json"} or name in parts
            if name in safe or (name not in pickles and carried):
                made.carried.append(name)
                copy_file(files, name, work.folder)
            elif name not in targets:
                made.left.append(name)
        if len(targets) > 1:
            _write_index(work.folder, list(targets.values()))
        check_weights(FolderFiles(work.folder))
    return made


def _targets(files: Files, pickles: list[str]) -> dict[str, str]:
    """Pickled weight file to the name of its safetensors file."""
    names = files.names()
    index = next((name for name in names if name.endswith(".bin.index.json") and "/" not in name), None)
    if index is not None:
        weight_map = read_json(files, index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ModelError(f"`{files.label}/{index}` has no `weight_map` from tensor to file", code="bad_index")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            check_name(shard, f"{files.label}/{index}")
        missing = [shard for shard in shards if shard not in pickles]
        if missing:
            raise ModelError(
                f"`{files.label}/{index}` names shards that are not there: {', '.join(map(show_name, missing[:5]))}",
                code="incomplete_version",
                hint="download them again",
            )
        return {shard: _safe_name(shard) for shard in shards} if len(shards) > 1 else {shards[0]: "model.safetensors"}
    weights = [name for name in pickles if "/" not in name and not _TRAINER_STATE.fullmatch(name)]
    preferred = [name for name in weights if name in {"pytorch_model.bin", "adapter_model.bin", "model.bin"}] or weights
    if len(preferred) > 1:
        raise ModelError(
            f"`{files.label}` has several pickles and no index that says which are the weights:"
            f" {', '.join(map(show_name, preferred[:5]))}",
            code="conversion_failed",
            hint="leave only the weights in the folder",
        )
    return {name: _safe_name(name) for name in preferred}


def _safe_name(name: str) -> str:
    stem = name.rpartition(".")[0]
    if stem == "adapter_model":
        return "adapter_model.safetensors"
    shard = re.search(r"-(\d{5}-of-\d{5})$", stem)
    return f"model-{shard[1]}.safetensors" if shard else "model.safetensors"


@dataclass(frozen=True)
class _Limits:
    """What the converting process may use, and whether the model's embeddings are tied."""

    seconds: int
    memory: int | None
    tied: bool


def _unpickle(files: Files, targets: dict[str, str], work: Work, limits: _Limits) -> Iterator[dict[str, Any]]:
    """Convert every file that is not converted yet, in processes of about a GB each; what each ended with."""
    batch: list[str] = []
    for place, name in enumerate(targets):
        _refuse_bomb(files.path(name), files.size(name), f"{files.label}/{show_name(name)}")
        note = work.finished(targets[name])
        if note is not None:
            yield note
        else:
            batch.append(name)
        if batch and (sum(map(files.size, batch)) >= BATCH or place == len(targets) - 1):
            yield from _convert_batch(files, {name: targets[name] for name in batch}, work, limits)
            batch = []


def _convert_batch(files: Files, targets: dict[str, str], work: Work, limits: _Limits) -> Iterator[dict[str, Any]]:
    sizes = [files.size(name) for name in targets]
    asked = {
        "task": "convert",
        "jobs": [(str(files.path(name)), str((work.folder / target).absolute())) for name, target in targets.items()],
        "tied": limits.tied,
        "seconds": limits.seconds,
        "memory": limits.memory or (8 << 30) + 4 * max(sizes),
        "file_size": 4 * max(sizes) + (64 << 20),
    }
    outcome = run_worker(asked, work.folder, files.label)
    for (name, target), done in zip(targets.items(), outcome["made"], strict=False):
        if sorted(read_header(work.folder / target).tensors) != done["tensors"]:
            _fail(f"{files.label}/{show_name(name)}", "what was written is not what the converting process said")
        note: dict[str, Any] = {key: [str(each) for each in done[key]] for key in ("dropped", "copied")}
        note["isolated"] = bool(outcome["isolated"])
        work.finish(target, hash_file(work.folder / target), note)
        yield note
    if len(outcome["made"]) < len(targets):
        _explain(f"{files.label}/{show_name(list(targets)[len(outcome['made'])])}", outcome)


def run_worker(asked: dict[str, Any], folder: Path, label: str) -> dict[str, Any]:
    """Run `_pickle_worker` on a request, in a process that ends with it; its outcome, checked for its form only.

    Raises:
        ModelError: `conversion_failed`: it ended without an outcome, or took longer than `asked["seconds"]`.
    """
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=folder) as scratch:
        request, result = Path(scratch, "request.json"), Path(scratch, "result.json")
        request.write_text(json.dumps(asked | {"result": str(result.absolute())}), "utf-8")
        complaint = _start(request, asked["seconds"], label)
        outcome = _read_outcome(result)
    if outcome is None:
        _fail(label, f"the converting process ended without a result{complaint}")
    return outcome


def _start(request: Path, seconds: int, label: str) -> str:
    """Run the worker in a process group of its own, to its end or its limit; what it wrote to stderr last."""
    # An empty environment: no variable of ours reaches it. `-I` also keeps the working folder off its import path.
    command = [sys.executable, "-I", "-B", str(_WORKER), request.name]
    with tempfile.TemporaryFile(dir=request.parent) as stderr:
        process = subprocess.Popen(
            command,
            cwd=request.parent,
            env={"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _fail(label, f"converting it took longer than {seconds} seconds")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        stderr.seek(max(stderr.tell() - 400, 0))
        lines = stderr.read().decode("utf-8", "replace").strip().splitlines()
    how = f" (signal {-process.returncode})" if process.returncode < 0 else ""
    return how + (f": {show_name(lines[-1])}" if lines else "")


def _read_outcome(result: Path) -> dict[str, Any] | None:
    if not result.is_file() or result.stat().st_size > _RESULT_LIMIT:
        return None
    try:
        outcome = json.loads(result.read_text("utf-8"))
    except ValueError:
        return None  # it was cut off while writing: the caller says so
    kinds = {"tensors": list, "dropped": list, "copied": list}
    made = outcome.get("made") if isinstance(outcome, dict) else None
    sound = isinstance(made, list) and all(
        isinstance(done, dict) and all(isinstance(done.get(key), kind) for key, kind in kinds.items()) for done in made
    )
    return outcome if sound else None


def _refuse_bomb(source: Path, size: int, label: str) -> None:
    """What torch saves is stored uncompressed: one that would grow is not torch's."""
    if not zipfile.is_zipfile(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        _fail(label, f"its archive is broken ({show_name(str(error))})")
    grown = sum(entry.file_size for entry in entries)
    if grown > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise PickleError(
            f"`{label}` would unpack to {grown} bytes from {size}; torch never compresses its files", code="pickle_bomb"
        )


def _explain(label: str, outcome: dict[str, Any]) -> NoReturn:
    said = show_name((str(outcome.get("message")).splitlines() or [""])[0])
    if outcome.get("error") == "UnpicklingError":
        raise PickleError(
            f"`{label}` needs code of its own to be loaded, so it was not ({said})",
            code="pickle_code",
            hint="ask its author for safetensors",
        )
    _fail(label, f"{show_name(str(outcome.get('error')))}: {said}")


def _fail(label: str, what: str) -> NoReturn:
    raise ModelError(f"`{label}` was not converted: {what}", code="conversion_failed")


def _write_index(folder: Path, shards: list[str]) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for shard in sorted(shards):
        for tensor, info in read_header(folder / shard).tensors.items():
            if tensor in weight_map:
                raise ModelError(
                    f"tensor `{show_name(tensor)}` is in `{weight_map[tensor]}` and in `{shard}`",
                    code="incomplete_version",
                )
            weight_map[tensor] = shard
            total += info.end - info.start
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_file(folder / "model.safetensors.index.json", (json.dumps(index, indent=2) + "\n").encode())
