"""`check_gguf`: whether a .gguf file computes what the model does that it was made from.

The file is made a model folder again by `from_gguf`, so that reading and writing are both held to the source: the same fixed inputs through both
models in float32, one after the other. Knows models and batches; writes nothing that stays.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.carry import carried_files
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.convert.gguf.reading import from_gguf
from modelyard.weights.convert.gguf.writing import SCRATCH
from modelyard.weights.files import Files, FolderFiles
from modelyard.weights.gguf import read_gguf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.parity import Check

__all__ = ["TOLERANCES", "check_gguf", "refuse_failing"]

TOLERANCES = {"F32": 1e-5, "F16": 1e-2, "BF16": 5e-2, "Q8_0": 0.1, "Q4_0": 0.5}
"""Type of most of a file's numbers to the largest difference that holds, relative to the largest logit."""


def check_gguf(source: Files | Path | str, file: Path | str, *, tolerance: float | None = None) -> list[Check]:
    """Compare a .gguf file with the model that it was made from, on fixed inputs; peak memory is one model in float32.

    Args:
        source: The model.
        file: The file.
        tolerance: Largest difference that holds, relative to the largest output; None is that of `TOLERANCES` for the file's type.

    Returns:
        One check for each batch and output, and of greedy tokens where the model writes text.

    Raises:
        ModelError: One of the two cannot be loaded.
    """
    from modelyard.weights.load import load
    from modelyard.weights.parity import TorchRunner, compare, fixed_inputs, record

    files = source if isinstance(source, Files) else FolderFiles(source)
    with tempfile.TemporaryDirectory(dir=Path(file).parent, prefix=SCRATCH) as scratch:
        here = Path(scratch)
        from_gguf(file, here / "back", dtype="float32")
        # An encoder whose head has no place in the file is compared as what it became.
        [kind] = json.loads((here / "back" / "config.json").read_text("utf-8"))["architectures"]
        options: dict[str, Any] = {"model_class": kind, "dtype": "float32", "allow": ("preprocessor",)}
        model: Any = load(_folder(files, here / "source"), **options)
        batches = fixed_inputs(model.task, model)
        expected = record(TorchRunner(model), batches)
        del model
        back = load(here / "back", **options)
        bound = TOLERANCES[_kind(Path(file))] if tolerance is None else tolerance
        return compare(expected, TorchRunner(back), batches, tolerance=bound)


def refuse_failing(checks: Sequence[Check], label: str) -> None:
    """Refuse an export one of whose checks does not hold.

    Raises:
        ModelError: `export_differs`, naming the worst.
    """
    from modelyard.weights.parity import failing

    worst = max(failing(checks), key=lambda check: check.max_difference / (check.scale or 1.0), default=None)
    if worst is not None:
        raise ModelError(
            f"the export of `{label}` differs from it: {worst.name} by {worst.max_difference:.3g}, of {worst.scale:.3g}",
            code="export_differs",
            hint=f"the tolerance is {worst.tolerance:g} of the largest output; another type keeps more",
            checks=[check.to_dict() for check in checks],
        )


def _kind(file: Path) -> str:
    """The type that most of a file's matrices are in."""
    sizes: dict[str, int] = {}
    for tensor in read_gguf(file).tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.end - tensor.start
    most = max(sizes, key=lambda kind: sizes[kind])
    return most if most in TOLERANCES else "Q4_0"


def _folder(files: Files, scratch: Path) -> Path:
    """The source as one folder: itself where it is one, else links to its files."""
    names = [*open_checkpoint(files).shards, *carried_files(files, files)]
    names += [name for name in files.names() if name.endswith(".safetensors.index.json")]
    if isinstance(files, FolderFiles):
        return Path(files.label)
    for name in names:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(files.path(name), target)
    return scratch


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
