"""What is wrong with a checkpoint, by name, and the command that mends it.

transformers loads a checkpoint with missing tensors, a `module.` prefix or NaN weights and says nothing but a table in a
log. `diagnose` says it before. It never raises for what it finds: whatever state the files are in, the answer is a list.
Files are judged by what they hold, not by a list of names. `mend` writes a copy without what is mechanical to mend.

Knows files, and what transformers expects of an architecture; knows no yard.

>>> import tempfile
>>> from pathlib import Path
>>> from modelyard.weights.files import FolderFiles
>>> [finding.code for finding in diagnose(FolderFiles(Path(tempfile.mkdtemp())))]
['not_a_model']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import YardError
from modelyard.weights.checks import as_path
from modelyard.weights.doctor.adapters import BaseIds, examine_adapter
from modelyard.weights.doctor.case import Case
from modelyard.weights.doctor.findings import CODES, Finding, from_error, make
from modelyard.weights.doctor.folder import examine_files
from modelyard.weights.doctor.ggufs import examine_ggufs
from modelyard.weights.doctor.mending import Mended, mend
from modelyard.weights.doctor.names import examine_names
from modelyard.weights.doctor.numbers import examine_values
from modelyard.weights.doctor.settings import examine_mark, examine_settings
from modelyard.weights.doctor.shards import examine_set
from modelyard.weights.doctor.templates import examine_templates
from modelyard.weights.doctor.vocabulary import examine_vocabulary, read_vocabulary
from modelyard.weights.files import SingleFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.weights.files import Files

__all__ = ["CODES", "BaseIds", "Finding", "Mended", "SingleFile", "diagnose", "mend"]

_ORDER = {"error": 0, "warning": 1, "info": 2}


def diagnose(
    files: Files, *, base: Files | None = None, ids: BaseIds | None = None, path: str | None = None
) -> list[Finding]:
    """Examine a model or adapter, a GGUF file, or one safetensors file (`SingleFile`); errors first.

    An empty list means that nothing is wrong. Reads every weight once (for values that are not finite numbers). Needs
    transformers for the comparison with the architecture; without a usable `config.json` that part is left out.

    Args:
        files: What to examine.
        base: What it was made from: an adapter's base, or the model that a fine-tuned one began as.
        ids: For an adapter of a yard: which base its lineage records, and which one `base` is.
        path: How hints name it on the command line; by default its label as a path.
    """
    case = Case(files, path or as_path(files.label))
    found: list[Finding] = []
    try:
        case.names  # noqa: B018  # a link or a FIFO in the folder is said here, and ends it
        for stage in (_as_files, _as_model):
            found += stage(case, base, ids)
    except YardError as error:
        found.append(from_error(error))
    return sorted(found, key=lambda finding: _ORDER[finding.level])


def _as_files(case: Case, base: Files | None, ids: BaseIds | None) -> Iterable[Finding]:  # noqa: ARG001
    return examine_files(case)


def _as_model(case: Case, base: Files | None, ids: BaseIds | None) -> Iterable[Finding]:
    yield from examine_ggufs(case)
    if isinstance(case.files, SingleFile):
        case.take_all()
        yield from examine_values(case)
        return
    yield from examine_set(case)
    config = "adapter_config.json" if case.kind == "adapter" else "config.json"
    if config not in case.names and case.weights is not None:
        what = f"`{case.files.label}` is not a model: it has no {config}"
        yield make("not_a_model", what, "give the folder that `save_pretrained` wrote")
        return
    vocabulary = read_vocabulary(case)
    if case.kind == "adapter":
        yield from examine_adapter(case, base, ids)
    else:
        yield from examine_names(case)
        yield from examine_vocabulary(case, vocabulary)
        yield from examine_settings(case, vocabulary)
        yield from examine_mark(case)
    yield from examine_templates(case, vocabulary, base)
    yield from examine_values(case)
