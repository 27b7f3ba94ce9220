"""A caller's values as the options of `load` have them, or an error that names the option.

What users of torch and transformers have at hand is taken for its name: `torch.bfloat16`, `torch.device("cpu")`, a class of
transformers. Knows plain values only; imports no library and looks at no file.

>>> read_given({"dtype": "auto", "allow": "missing", "base": "./base"})["allow"]
('missing',)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modelyard.errors import RequestError

__all__ = ["is_hub", "read_allow", "read_given", "read_source"]

_PATHS = ("base", "offload_folder", "cache_dir")
_SWITCHES = ("random", "training", "compile", "offline")
_TEXTS = ("task", "model_class", "attention", "revision")


def read_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same options with names for objects, paths for text, and tuples for lists.

    Raises:
        RequestError: A value of a type that its option cannot have.
    """
    made = dict(values)
    if "allow" in made:
        made["allow"] = read_allow(made["allow"])
    for name, read in (("dtype", _dtype), ("device", _device), ("model_class", _class)):
        if name in made:
            made[name] = read(made[name])
    for name in _PATHS:
        if made.get(name) is not None:
            made[name] = _path(made[name], name)
    if made.get("adapters") is not None:
        made["adapters"] = _adapters(made["adapters"])
    for name in _SWITCHES:
        if not isinstance(made.get(name, False), bool):
            raise RequestError(f"`{name}` is {made[name]!r}", hint="True or False", field=name)
    for name in _TEXTS:
        if not isinstance(made.get(name), str | None):
            raise RequestError(f"`{name}` is a {type(made[name]).__name__}", hint="a name, as text", field=name)
    if not isinstance(made.get("token"), str | bool | None):  # never shown: it may be one after all
        raise RequestError("`token` is no token", hint="text; False for none", field="token")
    return made


def read_allow(value: Any) -> tuple[str, ...]:
    """Kinds of faults as a tuple; one by itself is one of one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise RequestError(f"`allow` is {value!r}", hint='names of faults, e.g. allow=("missing",)', field="allow")
    return tuple(value)


def read_source(source: Any) -> Path | str:
    """A source as it is, if it can be one.

    Raises:
        RequestError: It is none, or neither text nor a path.
    """
    known = "pass a folder, a .gguf file or hf://org/name"
    if source is None or source == "":
        raise RequestError("no model is given", hint=known, field="source")
    if not isinstance(source, str | os.PathLike):
        raise RequestError(f"the model is given as a {type(source).__name__}", hint=known, field="source")
    return source if isinstance(source, str) else Path(source)


def is_hub(source: object) -> bool:
    """Whether a source is written as a hub's id.

    >>> is_hub("hf://org/name"), is_hub("./hf")
    (True, False)
    """
    return isinstance(source, str) and source.startswith("hf:")


def _path(value: Any, field: str) -> Path | str:
    if field == "base" and is_hub(value):
        return str(value)
    if not isinstance(value, str | os.PathLike):
        raise RequestError(f"`{field}` is a {type(value).__name__}", hint="the path of a folder", field=field)
    return Path(value).expanduser()


def _adapters(value: Any) -> dict[str, Path | str]:
    if not isinstance(value, Mapping):
        raise RequestError(
            "`adapters` is no dictionary of folders by name",
            hint='adapters={"fr": "./fr"}; one adapter by itself is the model: load("./fr", base="./base")',
            field="adapters",
        )
    made: dict[str, Path | str] = {}
    for name, folder in value.items():
        if not isinstance(folder, str | os.PathLike):
            kind = type(folder).__name__
            raise RequestError(f"the adapter `{name}` is a {kind}", hint="the path of its folder", field="adapters")
        made[str(name)] = folder if isinstance(folder, str) and is_hub(folder) else Path(folder).expanduser()
    return made


def _dtype(value: Any) -> Any:
    text = str(value)
    return text.removeprefix("torch.") if not isinstance(value, str) and text.startswith("torch.") else value


def _device(value: Any) -> Any:
    return str(value) if type(value).__module__ == "torch" and type(value).__name__ == "device" else value


def _class(value: Any) -> Any:
    return value.__name__ if isinstance(value, type) else value
