"""PEFT adapters on a loaded model of any task: attached whole or not at all, and switched per call.

Every tensor of an adapter is accounted for: those that the file lacks, and those that match nothing in the model, are
errors that list them. Knows PEFT's configurations and modules, no tasks.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.audit import audit_keys
from modelyard.weights.headers import read_header
from modelyard.weights.loading.lock import loading, seeded
from modelyard.weights.loading.translate import translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["active", "attach", "using"]

_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def attach(model: Any, task: str, folders: Mapping[str, Path], *, training: bool = False) -> Any:
    """Put one or several adapters on `model`; the first is active afterwards.

    Args:
        model: A model of transformers; a quantized one, too.
        task: The task's name, for messages.
        folders: Name to the adapter's folder; a name is a Python identifier.
        training: Leave the first adapter's parameters trainable.

    Returns:
        The PEFT model, in eval mode.

    Raises:
        RequestError: A name that PEFT cannot take.
        ModelError: Not an adapter, a tensor missing, unexpected or of another shape, a kind that is not loaded here
            (prompt learning), or no module of the model that it could change.
    """
    from peft import get_peft_model

    if not folders:
        raise RequestError("`adapters` is empty", hint="name at least one folder", field="adapters")
    adapted: Any = None
    with loading(), seeded(0):  # PEFT draws the factors that it then reads: the caller's generators stay as they are
        for name, folder in folders.items():
            config, held = _read(folder, task, model)
            _check_name(name, model, config)
            with translated(folder):
                if adapted is None:
                    adapted = get_peft_model(model, config, adapter_name=name)
                else:
                    adapted.add_adapter(name, config)
                _load(adapted, name, folder, held, training=training and name == next(iter(folders)))
        adapted.set_adapter(next(iter(folders)), inference_mode=not training)
    return adapted.eval()


@contextmanager
def using(model: Any, name: str | None) -> Iterator[Any]:
    """Compute with the adapter `name` of a PEFT model, or with none of them (None: the base), and then as before.

    No weight is read or written. Calls of several threads that ask for different adapters of one model wait for each
    other; the switch belongs to the model, not to the thread.

    Yields:
        `model`.

    Raises:
        RequestError: The model has no such adapter.
    """
    known = sorted(getattr(model, "peft_config", {}) or {})
    if name is not None and name not in known:
        meant = near_match(name, known)
        hint = (
            f"did you mean `{meant}`?"
            if meant
            else f"it has {', '.join(known)}"
            if known
            else "it was loaded with none"
        )
        raise RequestError(f"the model has no adapter `{name}`", hint=hint, field="adapter", adapters=known)
    if not known:
        yield model
        return
    with _lock(model):
        before = active(model)
        if before == name:
            yield model
            return
        _switch(model, name)
        try:
            yield model
        finally:
            _switch(model, before)


def active(model: Any) -> str | None:
    """The adapter that a PEFT model computes with; None where they are switched off, or there are none."""
    if not getattr(model, "peft_config", None):
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            return None if module.disable_adapters else str(model.active_adapter)
    return str(model.active_adapter)


def _lock(model: Any) -> threading.RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def _switch(model: Any, name: str | None) -> None:
    if name is None:
        model.base_model.disable_adapter_layers()
        return
    model.base_model.enable_adapter_layers()
    model.set_adapter(name, inference_mode=True)


def _read(folder: Path, task: str, model: Any) -> tuple[Any, set[str]]:
    """An adapter's configuration, for inference on `model`, and the names of its tensors."""
    from peft import PeftConfig

    path = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").exists():
        raise ModelError(f"`{folder}` is no adapter (no adapter_config.json)", hint="give the folder that PEFT saved")
    if not path.exists():
        raise ModelError(f"`{folder}` has no adapter_model.safetensors", hint=f"yard doctor {folder}")
    held = set(read_header(path).tensors)
    if not held:
        raise ModelError(f"`{path}` holds no tensor: the adapter would change nothing")
    with translated(folder):
        config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise ModelError(
            f"`{folder}` is a prompt-learning adapter ({config.peft_type.value}): not loaded onto a {task} model",
            hint="LoRA and the other methods that change weights are",
        )
    config.inference_mode = True
    config.base_model_name_or_path = model.name_or_path  # the base that it is loaded on, wherever it was trained
    return config, held


def _load(adapted: Any, name: str, folder: Path, held: set[str], *, training: bool) -> None:
    from peft import get_peft_model_state_dict

    expected = set(get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False))
    if held <= expected:
        # Where names agree, look before PEFT does: it counts factors only, not modules that were trained whole.
        audit_keys(str(folder), expected - held, (), ())
    result = adapted.load_adapter(str(folder), name, is_trainable=training)
    # PEFT counts the adapters that are there already as missing, too.
    missing = {key.replace(f".{name}", "") for key in result.missing_keys if f".{name}." in f"{key}."}
    audit_keys(str(folder), missing, result.unexpected_keys, ())


def _check_name(name: str, model: Any, config: Any) -> None:
    """Refuse a name that PEFT would lose: it finds an adapter's tensors by this part of their names."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    if not name.isidentifier():
        raise RequestError(
            f"{name!r} is no name for an adapter", hint="letters, digits and `_`, such as `fr`", field="adapters"
        )
    taken = {part for path, _ in model.named_modules() for part in path.split(".")} | {"weight", "bias"}
    if name in taken or name in PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, ""):
        raise RequestError(
            f"`{name}` is no name for an adapter: names of tensors have it as a part",
            hint=f"call it `{name}_adapter`",
            field="adapters",
        )
