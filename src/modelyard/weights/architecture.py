"""What tensors an architecture expects on disk, from a model built without memory (on torch's meta device).

The only place that asks transformers about names; needs no weights and no folder. A configuration is data here: it was
checked for code before (`checks.check_config`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.files import show_name
from modelyard.weights.leftovers import find_harmless, is_idle, is_pooler, lacks_pooler
from modelyard.weights.tasks import TASKS, task_of_architecture, tasks_of_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "Comparison",
    "build_without_memory",
    "compare_tensors",
    "converted_names",
    "find_base_class",
    "is_sentence_encoder",
]

_WHOLE_TASKS = frozenset({"fill-mask", "text-generation", "pretraining"})


@dataclass(frozen=True)
class Comparison:
    """A checkpoint's tensors against its architecture's.

    Attributes:
        missing: The model's tensors that nothing on disk gives; tied ones are not missing.
        unexpected: Names on disk that the model has no place for, but for those that are harmless (`leftovers`).
        mismatched: (name, shape on disk, shape in the model), where names correspond one to one.
        tied: Tensor name to the one that it shares its values with, as the model's code says.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    tied: dict[str, str]


def compare_tensors(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Comparison:
    """Compare names and shapes on disk with the class that `config` names.

    Raises:
        ModelError: `unknown_architecture`: transformers has no such class, or cannot build it from this configuration.
    """
    model = build_without_memory(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    renamed = _rename(model, shapes)
    left, mismatched = {}, []
    for name, (target, converted, _) in renamed.items():
        if target not in expected:
            left[name] = target
        elif not converted and expected[target] != shapes[name]:
            mismatched.append((name, shapes[name], expected[target]))
    harmless = find_harmless({target: shapes[name] for name, target in left.items()}, model)
    unexpected = [name for name, target in left.items() if target not in harmless]
    no_pooler = lacks_pooler(type(model), shapes, lambda: model)
    given = {each for target, _, others in renamed.values() for each in (target, *others)}
    missing = [
        name
        for name in expected
        if name not in given
        and not _ignored(name, model, "_keys_to_ignore_on_load_missing")
        and not is_idle(name)
        and not (no_pooler and is_pooler(name))
        and not any(partner in given for partner in _partners(name, tied))
    ]
    return Comparison(tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(sorted(mismatched)), tied)


def is_sentence_encoder(architecture: str | None, names: Iterable[str]) -> bool:
    """Whether a folder holds an encoder of sentences under the name of the class that it was pretrained as.

    sentence-transformers saves the base model alone, and leaves `BertForMaskedLM` or the like in config.json; the file
    `modules.json` beside it says so.

    Args:
        architecture: The class that config.json names.
        names: The folder's files.
    """
    task = task_of_architecture(architecture) if architecture else None
    return task is not None and task.name in _WHOLE_TASKS and "modules.json" in names


def find_base_class(model_type: str, *, generative: bool = True) -> str | None:
    """The class of a model type without any head, by its name; None where transformers has none.

    Args:
        model_type: As config.json has it.
        generative: Also of a type whose every use is to write text, which its base class cannot.
    """
    able = {info.name for info in tasks_of_type(model_type)}
    if not generative and "fill-mask" not in able and able & {"text-generation", "text2text-generation"}:
        return None
    return TASKS["feature-extraction"].model_types().get(model_type)


def build_without_memory(config: Mapping[str, Any]) -> Any:
    """The model that a config.json describes, of the class that it names, on torch's meta device, in float32.

    Raises:
        ModelError: `unknown_architecture`: transformers has no such class, or cannot build it from this configuration.
    """
    from modelyard.weights.loading.quantization import quiet_imports

    quiet_imports()
    import torch
    import transformers

    from modelyard.weights.loading.lock import LOADING

    model_type, architectures = config.get("model_type"), config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not architectures and isinstance(model_type, str):
        name = find_base_class(model_type, generative=False)
    kind = getattr(transformers, str(name), None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ModelError(
            f"transformers has no architecture `{show_name(str(name))}` (model type `{show_name(str(model_type))}`)",
            code="unknown_architecture",
        )
    options = {key: value for key, value in config.items() if key not in {"model_type", "quantization_config"}}
    try:
        # A class's constructor runs over values from a file: whatever it raises is a finding about the file.
        settings = transformers.AutoConfig.for_model(str(model_type), **options)
        with LOADING, torch.device("meta"):
            return kind(settings)
    except Exception as error:
        raise ModelError(
            f"`{name}` cannot be built from this config.json: {type(error).__name__}: {str(error)[:200]}",
            code="unknown_architecture",
        ) from error


def converted_names(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The tensors on disk that are joined, cut or turned while they are loaded, so that memory holds copies of them.

    Raises:
        ModelError: `unknown_architecture`.
    """
    renamed = _rename(build_without_memory(config), names)
    return [name for name, found in renamed.items() if found[1]]


def _rename(model: Any, names: Iterable[str]) -> dict[str, tuple[str, bool, tuple[str, ...]]]:
    """Disk name -> (the model's name, whether tensors are also reshaped or joined on the way, what else is cut from it)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    state = model.state_dict()
    made = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        made[name] = (target, pattern is not None, _siblings(target, pattern, converters))
    return made


def _siblings(target: str, pattern: str | None, converters: Iterable[Any]) -> tuple[str, ...]:
    """The other tensors of the model where one on disk is cut into several (a fused qkv, gate and up)."""
    for converter in converters:
        if pattern is not None and pattern in converter.source_patterns and len(converter.target_patterns) > 1:
            first, *others = (each.strip("^$") for each in converter.target_patterns)
            if first in target:
                return tuple(target.replace(first, other, 1) for other in others)
    return ()


def _ignored(name: str, model: Any, attribute: str) -> bool:
    return any(re.search(pattern, name) for pattern in getattr(model, attribute, None) or ())


def _partners(name: str, tied: Mapping[str, str]) -> set[str]:
    """Every tensor that shares its values with `name`."""
    group = {name}
    while True:
        more = {side for pair in tied.items() for side in pair if group & set(pair)} - group
        if not more:
            return group - {name}
        group |= more
