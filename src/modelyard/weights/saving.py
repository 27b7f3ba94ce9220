"""A loaded model as a folder that `load` reads: safetensors, configuration with its mark, preprocessors, generation config.

The folder is there whole or not at all. An adapter is saved as an adapter, without its base. Knows folders, not yards.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.files import FolderFiles
from modelyard.weights.loading.heads import module_targets
from modelyard.weights.loading.lock import loading
from modelyard.weights.loading.preprocessors import save_preprocessor
from modelyard.weights.loading.quantization import method_name
from modelyard.weights.loading.translate import first_line
from modelyard.weights.output import fresh_folder
from modelyard.weights.untrained import Untrained, is_untrained, mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.model import Model

__all__ = ["save"]


def save(model: Model, folder: Path | str, *, adapter: str | None = None) -> Path:
    """Write a model with its preprocessors.

    Args:
        model: The model; one with adapters saves an adapter.
        folder: A folder that does not exist yet, or is empty.
        adapter: Which of several adapters.

    Returns:
        The folder.

    Raises:
        ConflictError: The folder exists and holds something.
        NoSpaceError: The disk is full; nothing is left behind.
        ModelError: `not_saved`: the library cannot write this model (a quantization without a form on disk).
        RequestError: `adapter` names none, or there are several and none was named.
    """
    folder = Path(folder)
    chosen = _choose_adapter(model, adapter)
    with fresh_folder(folder) as work:
        with loading():
            if chosen is None:
                _write_model(model, work)
            else:
                _write_adapter(model.model, chosen, work)
        if model.processor is not None:
            save_preprocessor(model.processor, work)
        _sync(work)
    return folder


def _choose_adapter(model: Model, wanted: str | None) -> str | None:
    known = sorted(getattr(model.model, "peft_config", None) or ())
    if not known:
        if wanted is not None:
            raise RequestError(f"the model has no adapter `{wanted}`", hint="leave `adapter` out", field="adapter")
        return None
    if wanted is None and len(known) == 1:
        return str(known[0])
    if wanted not in known:
        meant = near_match(wanted or "", known)
        raise RequestError(
            f"the model has no adapter `{wanted}`" if wanted else f"the model has {len(known)} adapters",
            hint=f"did you mean `{meant}`?" if meant else f"name one: adapter={known[0]!r}",
            field="adapter",
            adapters=known,
        )
    return wanted


def _write_model(model: Model, work: Path) -> None:
    from modelyard.weights.loading.compiled import plain_state

    core, untrained = model.model, model.untrained
    state = plain_state(core)
    keep = untrained if isinstance(untrained, Untrained) and is_untrained(untrained, state) else None
    plain = getattr(core, "_orig_mod", core)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            with _reversible(plain):
                plain.save_pretrained(work, state_dict=state)
    except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise _not_saved(model, error) from error
    mark(work, _on_disk(keep, plain, work))


def _not_saved(model: Model, error: BaseException) -> ModelError:
    """Why the library could not write a model, and what can be saved or copied instead."""
    packed = getattr(model.model.config, "quantization_config", None)
    if packed is not None and model.plan is not None and model.plan.quantization is None:
        said = first_line(error) or type(error).__name__
        return ModelError(
            f"`{model.folder}` holds {method_name(packed)} weights, which the library reads and cannot write: {said}",
            code="not_saved",
            hint=f"what would be written is that folder as it is: cp -rL {model.folder} COPY",
        )
    return ModelError(
        f"`{model.folder}` cannot be saved: {first_line(error)}",
        code="not_saved",
        hint="load it without `quantization`, and save that",
    )


@contextmanager
def _reversible(model: Any) -> Iterator[None]:
    """Leave out, while a model is written, what only unpacks quantized weights that were stored as such.

    transformers turns every conversion of the load around when it saves; those of a quantizer have no way back, and need none:
    the quantizer itself says under which names its tensors are stored.
    """
    done = getattr(model, "_weight_conversions", None)
    if getattr(model, "hf_quantizer", None) is None or not done:
        yield
        return
    model._weight_conversions = [each for each in done if _has_way_back(each)] or None  # noqa: SLF001
    try:
        yield
    finally:
        model._weight_conversions = done  # noqa: SLF001


def _has_way_back(conversion: Any) -> bool:
    try:
        for operation in getattr(conversion, "operations", ()):
            operation.reverse_op  # noqa: B018  # a property that raises where there is none
    except NotImplementedError:
        return False
    return True


def _on_disk(untrained: Untrained | None, model: Any, folder: Path) -> Untrained | None:
    """A mark with the names that its tensors have on disk."""
    if untrained is None or untrained.tensors is None:
        return untrained
    from modelyard.weights.checkpoint import open_checkpoint

    wanted = set(untrained.tensors)
    names = module_targets(model, open_checkpoint(FolderFiles(folder)).home)
    found = tuple(name for name, inside in names.items() if wanted & set(inside))
    return replace(untrained, tensors=found) if found else None


def _write_adapter(model: Any, name: str, work: Path) -> None:
    model.save_pretrained(str(work), selected_adapters=[name])
    inner = work / name
    if inner.is_dir():  # PEFT puts an adapter that is not called `default` into a folder of its name
        for path in inner.iterdir():
            path.rename(work / path.name)
        inner.rmdir()
    (work / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card, with nothing filled in


def _sync(folder: Path) -> None:
    """Make every file durable before the folder appears under its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
