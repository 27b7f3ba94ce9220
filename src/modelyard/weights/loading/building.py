"""The model itself: read from a folder's files, or drawn at random, and what of it came from where.

The caller holds `LOADING`. Knows transformers' classes; knows no adapters and no preprocessors.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.audit import audit_keys, audit_ties
from modelyard.weights.files import FolderFiles
from modelyard.weights.headers import read_header
from modelyard.weights.loading.classes import choose
from modelyard.weights.loading.configs import label_config, load_config
from modelyard.weights.loading.dtypes import pick_dtype, stored_dtype
from modelyard.weights.loading.heads import Split, module_names, split
from modelyard.weights.loading.lock import seeded
from modelyard.weights.loading.translate import translated
from modelyard.weights.untrained import Untrained, find_untrained, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelyard.weights.loading.classes import Choice
    from modelyard.weights.loading.options import LoadOptions

__all__ = ["Built", "Hints", "adapter_hints", "build"]

_TASK_TYPES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}


@dataclass(frozen=True, slots=True)
class Hints:
    """What adapters say about the model that they were trained on, for what the caller does not say.

    Attributes:
        task: By the `task_type` of their configuration.
        num_labels: By the shape of the head that they hold.
        heads: Whether an adapter holds a head, so that the base's being absent is no fault.
    """

    task: str | None = None
    num_labels: int | None = None
    heads: tuple[str, ...] = ()


@dataclass(slots=True)
class Built:
    """A model as it was built.

    Attributes:
        model: The model of transformers, on the CPU or where its device map says.
        choice: Its class and task.
        dtype: The torch dtype that was asked for.
        split: What was added, dropped and at fault.
        allowed: Faults that were let pass.
        untrained: The mark of what nobody trained.
        casts: `"float16 -> float32"` to the number of tensors.
    """

    model: Any
    choice: Choice
    dtype: Any
    split: Split
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    untrained: Untrained | None = None
    casts: dict[str, int] = field(default_factory=dict)


def build(folder: Path, options: LoadOptions, device: str, hints: Hints) -> Built:
    """The model of a folder.

    Raises:
        ModelError, RequestError: As `weights.load.load`.
    """
    import torch

    stored = load_config(folder)
    config = load_config(folder, **options.config) if options.config else stored
    count = options.num_labels if options.relabels() else hints.num_labels
    relabelled = _relabels(stored, count, options.id2label)
    config = label_config(config, count, options.id2label)
    choice = choose(config, str(folder), task=_task(config, options, hints), model_class=options.model_class)
    said = str(config.dtype).removeprefix("torch.") if config.dtype is not None else stored_dtype(folder)
    dtype = getattr(torch, pick_dtype(options.dtype, said, torch.device(device).type))
    if options.random:
        return draw(choice, dtype, options.seed, folder)
    with translated(folder), seeded(options.seed):
        model, info = choice.cls.from_pretrained(
            folder,
            config=choice.config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they come back with names, and the audit refuses them
            output_loading_info=True,
        )
    parts = split(info, model, choice, stored, relabelled=relabelled)
    label = str(folder)
    allowed = audit_keys(label, parts.missing, parts.unexpected, parts.mismatched, options.allow)
    if info.get("error_msgs"):
        raise ModelError(f"{folder}: {'; '.join(map(str, info['error_msgs'][:3]))}")
    audit_ties(label, model)
    drawn = {*parts.added, *allowed.get("missing", ()), *(str(item[0]) for item in parts.mismatched)}
    return Built(
        model, choice, dtype, parts, allowed, _untrained(folder, model, drawn - set(hints.heads), options.seed)
    )


def draw(choice: Choice, dtype: Any, seed: int, label: Path | str) -> Built:
    """A model whose every weight is drawn from `seed`."""
    with translated(label), seeded(seed):
        model = choice.cls._from_config(copy.deepcopy(choice.config), dtype=dtype)  # noqa: SLF001  what from_config calls
    model.eval()
    mark = Untrained("random", seed, None, fingerprint(model.state_dict(), None))
    return Built(model, choice, dtype, Split((), (), (), (), ()), {}, mark)


def adapter_hints(folders: Mapping[str, Path], options: LoadOptions) -> Hints:
    """What the adapters in `folders` say about their base."""
    del options
    from modelyard.weights.checks import read_json

    for folder in folders.values():
        said = read_json(FolderFiles(folder), "adapter_config.json")
        task = _TASK_TYPES.get(str(said.get("task_type")))
        kept = [name for name in (said.get("modules_to_save") or ()) if isinstance(name, str)]
        path = folder / "adapter_model.safetensors"
        tensors = read_header(path).tensors if path.exists() else {}
        heads = {
            name.removeprefix("base_model.model."): info.shape
            for name, info in tensors.items()
            if any(f".{module}." in f".{name}." for module in kept)
        }
        sizes = {shape[0] for name, shape in heads.items() if shape and _is_head(name)}
        labelled = task in {"text-classification", "token-classification"} and len(sizes) == 1
        return Hints(task, sizes.pop() if labelled else None, tuple(heads))
    return Hints()


def _is_head(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in {"classifier", "score"} and name.count(".") == 1


def _task(config: Any, options: LoadOptions, hints: Hints) -> str | None:
    if options.task is not None or options.model_class is not None:
        return options.task
    del config
    return hints.task


def _relabels(config: Any, count: int | None, names: Mapping[int, str] | None) -> bool:
    wanted = len(names) if names is not None else count
    return wanted is not None and wanted != config.num_labels


def _untrained(folder: Path, model: Any, drawn: set[str], seed: int) -> Untrained | None:
    """The mark of a loaded model: what was drawn now, and what the folder's own mark says of the rest."""
    found = find_untrained(FolderFiles(folder))
    if found is not None and found.tensors is None:
        return Untrained("random", found.seed, None, fingerprint(model.state_dict(), None))
    if found is not None and found.tensors is not None:
        names = module_names(model, found.tensors)
        kept = {names[name] for name in found.tensors if name in names}
        if kept and not drawn:
            seed = found.seed
        drawn |= kept
    if not drawn:
        return None
    held = model.state_dict()
    names_drawn = tuple(sorted(drawn & set(held), key=str.encode))
    return Untrained("head", seed, names_drawn, fingerprint(held, names_drawn)) if names_drawn else None
