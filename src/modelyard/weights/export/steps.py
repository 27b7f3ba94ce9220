"""The steps of an export, in the process that was started for it: load, record the source, write the graph, compare.

The source's answers are recorded before any exporter is imported, so that nothing that one patches can change them, and the
model is gone before the graph is opened. Knows jobs as plain values; starts no process.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, YardError
from modelyard.weights.export.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.parity import Batch, Check

__all__ = ["TOKENS", "Job", "run_job"]

TOKENS = 16
"""Greedy tokens that an export has to write like its source."""


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        source: The model's folder.
        folder: Where the files go; it exists.
        format: One of `FORMATS`, but `gguf`.
        type: One of its types.
        task: A name of `weights.tasks.TASKS`; None for the checkpoint's own.
        tolerance: What every check is held to, relative to the source's largest output.
        threads: Compute threads of each library.
        written: Whether an earlier run wrote the graph: only the check is left.
    """

    source: str
    folder: str
    format: str
    type: str
    task: str | None
    tolerance: float
    threads: int
    written: bool = False


def run_job(job: Job, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do the export.

    Args:
        job: What to do.
        tell: Told `{"stage": words}` as each step begins, and `{"written": True}` when all files are there.

    Returns:
        Plain JSON: `task`, `architecture`, `checks`, `warnings`, `graphs`.

    Raises:
        ModelError: As `load`; `not_exportable`; `export_broken`.
    """
    from modelyard.weights.export.samples import make_batches
    from modelyard.weights.load import load
    from modelyard.weights.parity import TorchRunner, record

    folder = Path(job.folder)
    tell({"stage": "load"})
    model = load(Path(job.source), task=job.task, dtype="float32", threads=job.threads, attention=None)
    _refuse_packed(model)
    batches = make_batches(model)
    tell({"stage": "record the source"})
    reference = record(TorchRunner(model), batches, tokens=TOKENS)
    found: dict[str, Any] = {
        "task": model.task,
        "architecture": str(model.core.__class__.__name__),
        "warnings": _warnings(model),
    }
    if job.format == "genai" and not job.written:
        from modelyard.weights.export import genai

        genai.refuse(model.core, model.task)
        del model  # the builder loads its own
        gc.collect()
        tell({"stage": "build"})
        genai.build(Path(job.source), folder, job.type, architecture=found["architecture"]).write(folder)
    else:
        if not job.written:
            _trace(job, model, batches, tell)
        del model
    gc.collect()
    if not job.written:
        tell({"written": True})
    tell({"stage": "check"})
    checks = compare_export(folder, reference, batches, job)
    graphs = {role: asdict(each) for role, each in Manifest.read(folder).graphs.items()}
    return {**found, "checks": [check.to_dict() for check in checks], "graphs": graphs}


def compare_export(folder: Path, reference: Any, batches: Sequence[Batch], job: Job) -> list[Check]:
    """How far the folder is from the recorded source.

    Raises:
        ModelError: `export_broken`: the runtime fails on it.
    """
    from modelyard.weights.export.opening import open_export
    from modelyard.weights.parity import compare

    runner = open_export(folder, threads=job.threads)
    try:
        return compare(reference, runner, batches, tolerance=job.tolerance, tokens=TOKENS)
    except YardError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the export to {job.format} was made and does not run: {said}", code="export_broken", target=job.format
        ) from error


def _trace(job: Job, model: Model, batches: Sequence[Batch], tell: Callable[[dict[str, Any]], None]) -> None:
    from modelyard.weights.export.tracing import trace

    folder = Path(job.folder)
    made = trace(model, batches, folder, target=job.format, type=job.type, tell=lambda words: tell({"stage": words}))
    made.write(folder)


def _refuse_packed(model: Model) -> None:
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"`{model.folder}` is quantized by {model.config.quantization_config.quant_method}, which no exporter here reads",
            code="not_exportable",
            hint="export the model that it was quantized from",
        )


def _warnings(model: Model) -> list[str]:
    from modelyard.weights.export.samples import sliding_window

    said = []
    window = sliding_window(model.config)
    if window is not None and window + 4 > 2048 and model.task == "text-generation":
        said.append(f"no check is longer than the sliding window of {window} tokens")
    if model.untrained is not None:
        said.append(f"the source holds {model.untrained.describe()}")
    return said
