"""`export`: a model's folder in another runtime's form, with the certificate of what was measured, there whole or not at all.

Knows folders, what a model takes along, and how an export is asked for; the graph is made and compared in another process
(`process`, `_worker`, `steps`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import FILE as CERTIFICATE
from modelyard.weights.certificate import THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checks import as_path, check_loadable
from modelyard.weights.export import manifest
from modelyard.weights.export.formats import check_request, default_tolerance
from modelyard.weights.export.process import run_in_process
from modelyard.weights.export.steps import Job
from modelyard.weights.files import Files, FolderFiles
from modelyard.weights.output import Digested, Work, copy_file, hash_file, key_of, resumable_folder, write_file
from modelyard.weights.parity import Check, failing
from modelyard.weights.pipeline import usable_cores
from modelyard.weights.untrained import KEY, find_untrained, make_export_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["export"]

# How far an export is when a step begins, in thousandths: measured on a model of 135M parameters.
_REACHED = {"load": 0, "record the source": 50, "build": 100, "trace": 120, "write": 820, "check": 850}
_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai", "openvino")


def export(
    source: Files | Path | str,
    out: Path | str,
    format: str,  # noqa: A002  the word that everybody uses
    *,
    task: str | None = None,
    type: str | None = None,  # noqa: A002  the formats' own word
    tolerance: float | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Write a model as `onnx`, `openvino`, `genai` or `gguf`, and compare it with the source before it is there.

    The export is compared in float32 with the source on single rows, a padded batch and, where it writes text, 16 greedy tokens decoded
    with a cache; every difference is in the certificate. An interrupted export goes on with the comparison if its graph was finished.

    Args:
        source: A model folder as `load` reads it, or the files of a version.
        out: A folder that does not exist yet.
        format: One of `FORMATS`.
        task: The task to export for, a name of `weights.tasks.TASKS`; by default that of the checkpoint.
        type: Of the numbers, one of `TYPES[format]`; by default the first.
        tolerance: The largest difference that holds, relative to the largest magnitude of the source's output; by default
            `default_tolerance(type)`.
        threads: Compute threads; by default every core that this process may use.
        progress: Told bytes done and bytes in all, of the source's weights.

    Raises:
        ModelError: `export_differs`: the export computes something else, and was not kept; `not_exportable`: the exporter
            cannot do this architecture, with its reason; `missing_package`; or as `load`.
        RequestError: No such format or type.
        ConflictError, BusyError, NoSpaceError: As `resumable_folder`.
    """
    chosen = check_request(format, type)
    out = Path(out)
    files = source if not isinstance(source, Path | str) else FolderFiles(source)
    if format == "gguf":
        from modelyard.weights.convert.gguf import to_gguf

        return to_gguf(files, out, type=chosen, check=True, tolerance=tolerance, progress=progress)
    _refuse_no_model(files)
    held = default_tolerance(chosen) if tolerance is None else tolerance
    check_loadable(files)
    asked = {"format": format, "type": chosen, "task": task}
    count = threads or usable_cores()
    with (
        resumable_folder(out, key_of("export", asked | _versions(), files)) as work,
        _as_folder(files, out.parent) as folder,
    ):
        written = _is_written(work)
        job = Job(str(folder), str(work.folder), format, chosen, task, held, count, written)
        result = run_in_process(job, _Listener(work, _weights_size(files), progress))
        _refuse_different(result, files.label, format, held)
        _carry(files, work)
        options = asked | {"task": result["task"], "tolerance": held, "architecture": result["architecture"]}
        made = Certificate(
            "export",
            f"{format} {chosen}",
            options,
            THIS_MACHINE,
            inputs={"source": {name: _digest(files, name) for name in files.names() if name != CERTIFICATE}},
            outputs={name: str(work.digest(name)) for name in _names(work.folder)},
            matched={"graphs": len(result["graphs"]), "checks": len(result["checks"])},
            checks=result["checks"],
            warnings=result["warnings"],
            machine=describe_machine(*_LIBRARIES, threads=count),
        )
        made.write(work.folder)
    return made


def _refuse_no_model(files: Files) -> None:
    names = files.names()
    if "adapter_config.json" in names:
        raise ModelError(
            f"`{files.label}` is an adapter: an export holds one model",
            code="not_exportable",
            hint=f"merge it into its base first: yard merge BASE {as_path(files.label)} --to ./MERGED",
        )
    if "config.json" not in names:
        raise ModelError(
            f"`{files.label}` is not a model: it has no config.json",
            code="not_a_model",
            hint="give the folder that `save_pretrained` wrote",
        )


class _Listener:
    """What is done with the events of the worker: files that are complete are remembered, steps are progress."""

    def __init__(self, work: Work, size: int, progress: Callable[[int, int], None] | None) -> None:
        self._work = work
        self._size = size
        self._progress = progress

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("written"):
            _finish_files(self._work)
        if self._progress is not None and "stage" in event:
            words = event["stage"]
            share = _REACHED.get(words, _REACHED.get(words.partition(" ")[0], 0))
            self._progress(self._size * share // 1000, self._size)


def _finish_files(work: Work) -> None:
    """Remember every file of the graph; the manifest last, with the names of all."""
    names = [name for name in _names(work.folder) if name != manifest.FILE]
    for name in names:
        _sync(work.folder / name)
        work.finish(name, hash_file(work.folder / name))
    _sync(work.folder / manifest.FILE)
    work.finish(manifest.FILE, hash_file(work.folder / manifest.FILE), {"files": names})


def _is_written(work: Work) -> bool:
    """Whether an earlier run wrote the graph, and all of it still is what it was; else the folder is empty."""
    note = work.finished(manifest.FILE)
    if note is not None and all([work.finished(name) is not None for name in note["files"]]):  # noqa: C419  each is looked at
        return True
    work.finished(manifest.FILE)
    for path in work.folder.iterdir():
        if path.name != "progress.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return False


def _refuse_different(result: dict[str, Any], label: str, format: str, tolerance: float) -> None:  # noqa: A002
    bad = failing(Check.from_dict(each) for each in result["checks"])
    if not bad:
        return
    worst = max(bad, key=lambda check: check.max_difference / (check.scale or 1.0))
    share = worst.max_difference / worst.scale if worst.scale else worst.max_difference
    raise ModelError(
        f"the export of `{label}` to {format} computes something else, and was not kept: {worst.name} differs by {worst.max_difference:.3g}"
        f" on a scale of {worst.scale:.3g} ({share:.2g} of it; {tolerance:g} is allowed)",
        code="export_differs",
        hint=f"if that is good enough for you: --tolerance {_above(share)}",
        checks=result["checks"],
        tolerance=tolerance,
    )


def _carry(files: Files, work: Work) -> None:
    """What goes along, but for what the exporter wrote in its own form; the mark of untrained weights is of these files."""
    graphs = {name: str(work.digest(name)) for name in _names(work.folder)}
    for name in carried_files(files, files):
        if (work.folder / name).exists() or name == CERTIFICATE:
            continue
        if name == "config.json":
            digest = write_file(work.folder / name, _config(files, graphs))
        else:
            digest = copy_file(files, name, work.folder)
        work.finish(name, digest)


def _config(files: Files, graphs: dict[str, str]) -> bytes:
    config: dict[str, Any] = json.loads(files.read("config.json"))
    if KEY not in config:
        return files.read("config.json")
    untrained = find_untrained(files)
    config.pop(KEY)
    if untrained is not None:
        config[KEY] = make_export_mark(untrained, graphs)
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@contextmanager
def _as_folder(files: Files, near: Path) -> Iterator[Path]:
    """The files as a folder that libraries can read: their own, or hard links and copies for as long as the block lasts."""
    if isinstance(files, FolderFiles):
        yield files.path("config.json").parent.absolute()
        return
    with tempfile.TemporaryDirectory(prefix=".export-", dir=near) as scratch:
        for name in files.names():
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(files.path(name))
            except OSError:  # another file system, or one without links
                copy_file(files, name, Path(scratch))
        yield Path(scratch).absolute()


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("progress.json")
    )


def _digest(files: Files, name: str) -> str:
    return str(files.digest(name) if isinstance(files, Digested) else hash_file(files.path(name)))


def _weights_size(files: Files) -> int:
    return sum(files.size(name) for name in files.names() if name.endswith(".safetensors"))


def _versions() -> dict[str, Any]:
    """A graph is what these libraries made of the model: another version's is not gone on with."""
    return {"libraries": describe_machine(*_LIBRARIES)["libraries"]}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _above(share: float) -> str:
    """A tolerance that would have held, with one digit."""
    return f"{share * 1.1:.1g}" if float(f"{share * 1.1:.1g}") > share else f"{share * 2:.1g}"
