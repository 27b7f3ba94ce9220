"""A configuration by itself: read from a folder, overridden key by key, made from a model type, saved.

An override names a key that the configuration has, `text_config.hidden_size` for one inside another; an unknown key is an
error with the near match, because transformers would keep it and ignore it. Knows configurations, not weights.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.checks import read_json
from modelyard.weights.files import FolderFiles
from modelyard.weights.loading.quantization import quiet_imports
from modelyard.weights.loading.sources import locate_files
from modelyard.weights.loading.translate import translated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["label_config", "load_config", "make_config", "override", "read_architecture", "save_config"]


def load_config(source: Path | str, /, **overrides: Any) -> Any:
    """The configuration of a model, alone, as transformers' class for its model type; nothing else is read.

    Args:
        source: A folder, or `hf://org/name[@revision]`.
        **overrides: Keys to change, as `override`.

    Raises:
        ModelError: There is none, it is broken, or its model type is unknown to transformers (`unknown_architecture`).
        RequestError: An override that the configuration has no key for, or a value that it does not take.
    """
    quiet_imports()
    from transformers import AutoConfig

    folder = locate_files(source)
    files = FolderFiles(folder)
    if "config.json" not in files.names():
        raise ModelError(f"`{folder}` is no model: it has no config.json", hint="give the folder that holds it")
    kind = read_json(files, "config.json").get("model_type")
    if kind is not None:
        _config_class(str(kind), str(folder))
    with translated(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return override(config, overrides) if overrides else config


def make_config(model_type: str, /, **overrides: Any) -> Any:
    """A configuration of a model type with its defaults and `overrides`.

    Raises:
        RequestError: No such model type, or as `load_config`.
    """
    quiet_imports()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = list(CONFIG_MAPPING.keys())
    if model_type not in names:
        meant = near_match(model_type, names)
        raise RequestError(
            f"transformers has no model type `{model_type}`",
            hint=f"did you mean `{meant}`?" if meant else "they are listed by `yard architectures`",
            field="model_type",
        )
    with translated(model_type):
        config = CONFIG_MAPPING[model_type]()
    return override(config, overrides) if overrides else config


def save_config(config: Any, folder: Path | str) -> None:
    """Write `folder/config.json`."""
    with translated(folder):
        config.save_pretrained(folder)


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """A new configuration with some keys changed: `{"num_hidden_layers": 2, "text_config.hidden_size": 32}`."""
    plain = config.to_dict()
    for key, value in values.items():
        if key.rpartition(".")[2] == "model_type":
            raise RequestError(
                f"`{key}` is not changed: it says which configuration this is",
                hint="make another model: yard create TYPE --to ./FOLDER",
                field=key,
            )
        _set(config, plain, key, value)
    plain.pop("transformers_version", None)
    try:
        made = type(config).from_dict(copy.deepcopy(plain))
    except Exception as error:
        # Configurations check their own values, each in its own way: what they say is what the caller must know.
        names = ", ".join(f"`{key}`" for key in values)
        raise RequestError(
            f"the configuration of `{config.model_type}` does not take {names}: {_said(error)}",
            hint="look at the keys of its config.json",
            field="config",
        ) from error
    made._name_or_path = config._name_or_path  # noqa: SLF001  where the weights are read from; no public setter
    return made


def label_config(config: Any, num_labels: int | None, id2label: Mapping[int, str] | None) -> Any:
    """A copy of a configuration with this many labels, or with these."""
    config = copy.deepcopy(config)
    if id2label is not None:
        config.id2label = {
            int(key): str(value) for key, value in sorted(id2label.items(), key=lambda item: int(item[0]))
        }
        config.label2id = {value: key for key, value in config.id2label.items()}
    elif num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    return config


def read_architecture(config: Any) -> str | None:
    """The class that a configuration names as its own, None where it names none."""
    named = getattr(config, "architectures", None)
    return str(named[0]) if isinstance(named, list | tuple) and named else None


def _config_class(model_type: str, label: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = list(CONFIG_MAPPING.keys())
    if model_type in names:
        return CONFIG_MAPPING[model_type]
    meant = near_match(model_type, names)
    raise ModelError(
        f"`{label}` is of the model type `{model_type}`, which transformers does not know",
        code="unknown_architecture",
        hint=f"did you mean `{meant}`?" if meant else "they are listed by `yard architectures`",
    )


def _said(error: Exception) -> str:
    """What a configuration's check says, on one line: `Validation error for field 'x': TypeError: ...`."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def _set(config: Any, plain: dict[str, Any], key: str, value: Any) -> None:
    """Set one key, that may name one inside a nested configuration, in the plain form of `config`."""
    head, dot, rest = key.partition(".")
    head = config.attribute_map.get(head, head)
    nested = getattr(config, head, None)
    if dot and isinstance(plain.get(head), dict):
        if hasattr(nested, "to_dict"):
            _set(nested, plain[head], rest, value)
        else:
            plain[head][rest] = value
        return
    known = {*plain, *config.attribute_map, *_fields(config)}
    if dot or head not in known:
        meant = near_match(key, sorted(known))
        raise RequestError(
            f"the configuration of `{config.model_type}` has no key `{key}`",
            hint=f"did you mean `{meant}`?" if meant else f"known: {', '.join(sorted(known)[:40])}, ...",
            field=key,
        )
    if isinstance(value, dict) and hasattr(nested, "to_dict"):
        for name, item in value.items():
            _set(nested, plain[head], name, item)
        return
    if head == "num_labels":  # these three are one thing; the old labels would contradict the new number
        plain.pop("id2label", None)
        plain.pop("label2id", None)
    plain[head] = value


def _fields(config: Any) -> set[str]:
    """The keys that a configuration class declares, whether or not they are written when they have their default."""
    declared = {name for kind in type(config).__mro__ for name in getattr(kind, "__annotations__", {})}
    return {name for name in declared if not name.startswith("_")} | {"num_labels"}
