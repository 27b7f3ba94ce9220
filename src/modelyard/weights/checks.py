"""The gate that every model folder passes before a library reads it.

`check_weights` refuses what is dangerous or broken in the weight files, their index and the configuration; `check_loadable`
lets pass what nothing opens, for a folder that is loaded and not kept;
`check_model` also refuses a folder that is not a model at all. Both read headers and small JSON files only. This module
does not know architectures: what is missing *for one* is `doctor`'s business.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, PickleError
from modelyard.weights.content import identify, refuse_content
from modelyard.weights.files import Files, check_name, show_name
from modelyard.weights.headers import Header, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["as_path", "check_config", "check_index", "check_loadable", "check_model", "check_weights", "read_json"]

_UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".ot", ".h5", ".msgpack")

_JSON_LIMIT = 64 << 20
_IMPLEMENTATION_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


def check_loadable(files: Files) -> tuple[str, ...]:
    """As `check_weights`, but weights in a form that no loader opens beside safetensors are left alone, and given back.

    Snapshots of hubs have `pytorch_model.bin`, `training_args.bin` and the like beside `model.safetensors`: with a whole set
    of safetensors there, nothing reads them. A version of a yard holds no pickle at all, since others get it.

    Raises:
        PickleError: There are no safetensors to load in its place; or a pickle has the name of a file that a loader opens.
        ModelError: As `check_weights`.
    """
    names = files.names()
    stem = "adapter_model" if "adapter_config.json" in names else "model"
    whole = {f"{stem}.safetensors", f"{stem}.safetensors.index.json"} & set(names)
    unread = tuple(name for name in names if name.endswith(_UNREAD)) if whole else ()
    _check(files, [name for name in names if name not in unread])
    return unread


def check_weights(files: Files) -> None:
    """Refuse unsafe or broken weights, index or configuration; a set of files without any passes.

    Raises:
        PickleError: Some file is a pickle, whatever its name.
        ModelError: A git-lfs pointer, a web page or an archive; a broken safetensors file; an index that points
            out of the folder or disagrees with its shards; a configuration that asks for code from elsewhere.
    """
    _check(files, files.names())


def _check(files: Files, names: list[str]) -> None:
    headers: dict[str, Header] = {}
    for name in names:
        content = identify(files.path(name))
        label = f"{files.label}/{show_name(name)}"
        if content == "pickle":
            raise PickleError(
                f"`{label}` is a pickle, which can run any code when it is loaded",
                hint=f"convert it in isolation: yard convert {as_path(files.label)} --to ./OUT",
            )
        if content in {"lfs-pointer", "archive"} or (content == "html" and name.endswith((".safetensors", ".json"))):
            refuse_content(content, label)
        if name.endswith(".safetensors"):
            headers[name] = read_header(files.path(name))
        elif content == "safetensors":
            raise ModelError(
                f"`{label}` is a safetensors file under another name, which no loader looks for",
                code="wrong_name",
                hint=f"rename it to {show_name(name.rpartition('.')[0] or name)}.safetensors",
            )
        elif _is_weight_name(name):
            raise ModelError(
                f"`{label}` is named like weights and is not a safetensors file",
                code="unknown_format",
                hint="weights are read from .safetensors files",
            )
    for name in names:
        if name.endswith(".safetensors.index.json"):
            check_index(files, name, headers)
    check_config(files)


def check_model(files: Files) -> None:
    """`check_weights`, and refuse what is neither a model nor an adapter.

    Raises:
        ModelError: `not_a_model`, which says what is missing; or as `check_weights`.
    """
    check_weights(files)
    names = files.names()
    adapter = "adapter_config.json" in names
    config = "adapter_config.json" if adapter else "config.json"
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    missing = [] if config in names else ["config.json"]
    if not weights:
        missing.append("weights (*.safetensors)")
    if missing:
        there = ", ".join(show_name(name) for name in names[:5]) or "nothing"
        raise ModelError(
            f"`{files.label}` is not a model: it has no {' and no '.join(missing)} (there is: {there})",
            code="not_a_model",
            hint="give the folder that `save_pretrained` wrote",
        )


def check_index(files: Files, name: str, headers: dict[str, Header] | None = None) -> dict[str, str]:
    """Check a `*.safetensors.index.json` against its shards and return tensor name -> file name.

    Raises:
        ModelError: `bad_index` for a malformed one, `unsafe_path` for a file outside the folder,
            `incomplete_version` when tensors or shards are missing or in the wrong place.
    """
    label = f"{files.label}/{name}"
    weight_map = read_json(files, name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ModelError(f"`{label}` has no `weight_map` from tensor to file", code="bad_index")
    folder = name.rpartition("/")[0]
    known, prefix = set(files.names()), folder + "/" if folder else ""
    differences: list[str] = []
    found: dict[str, Header] = {}
    for shard in sorted(set(weight_map.values())):
        check_name(shard, label)
        if prefix + shard not in known:
            differences.append(f"shard `{show_name(shard)}` is missing")
        else:
            found[shard] = (headers or {}).get(prefix + shard) or read_header(files.path(prefix + shard))
    differences += _index_differences(weight_map, found)
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ModelError(
            f"`{label}` does not agree with its shards: {'; '.join(differences[:5])}{more}",
            code="incomplete_version",
            hint="download the missing files again, or save the model again",
            differences=differences[:100],
        )
    return {tensor: prefix + shard for tensor, shard in weight_map.items()}


def _index_differences(weight_map: dict[str, str], found: dict[str, Header]) -> Iterator[str]:
    home = {tensor: shard for shard, header in found.items() for tensor in header.tensors}
    for tensor, shard in weight_map.items():
        if shard not in found or tensor in found[shard].tensors:
            continue
        where = f"in `{show_name(home[tensor])}`" if tensor in home else "in no shard"
        yield f"tensor `{show_name(tensor)}` should be in `{show_name(shard)}` and is {where}"
    for shard, header in found.items():
        for tensor in header.tensors:
            if tensor not in weight_map:
                yield f"tensor `{show_name(tensor)}` of `{show_name(shard)}` is not in the index"


def check_config(files: Files) -> None:
    """Refuse a configuration that makes a loader run code from elsewhere.

    Raises:
        ModelError: `remote_code`, naming the file and the key; `bad_json` for a file that is not a JSON object.
    """
    present = set(files.names())
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if name in present:
            _refuse_code(read_json(files, name), f"{files.label}/{name}")
    if "generation_config.json" in present:
        generation = read_json(files, "generation_config.json")
        if generation.get("custom_generate"):
            _refuse_remote(f"{files.label}/generation_config.json", "custom_generate")
    if "adapter_config.json" in present:
        mapping = read_json(files, "adapter_config.json").get("auto_mapping")
        library = mapping.get("parent_library") if isinstance(mapping, dict) else None
        if library is not None and str(library).split(".")[0] != "transformers":
            _refuse_remote(f"{files.label}/adapter_config.json", "auto_mapping.parent_library")


def _refuse_code(value: Any, label: str) -> None:
    """Walk a configuration, nested ones included (a stack, since JSON may be deeper than Python's)."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        if not isinstance(item, dict):
            continue
        for key in ("auto_map", "trust_remote_code", "custom_pipelines"):
            if item.get(key):
                _refuse_remote(label, key)
        for key in _IMPLEMENTATION_KEYS:
            if isinstance(item.get(key), str) and "/" in item[key]:
                _refuse_remote(label, key)
        stack.extend(item.values())


def _refuse_remote(label: str, key: str) -> None:
    raise ModelError(
        f"`{label}` asks for code that is not part of transformers (`{key}`), and code from a model is never run",
        code="remote_code",
        hint=f"remove `{key}` if the architecture is built into transformers",
    )


def read_json(files: Files, name: str) -> dict[str, Any]:
    """A JSON file as a dict.

    Raises:
        ModelError: `bad_json`: not UTF-8, not JSON, nested too deeply, or not an object.
        NotFoundError: There is no such file.
    """
    label = f"{files.label}/{show_name(name)}"
    try:
        parsed = json.loads(files.read(name, _JSON_LIMIT).decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"`{label}` is not UTF-8 text", code="bad_json") from None
    except RecursionError:
        raise ModelError(f"`{label}` is nested too deeply", code="bad_json") from None
    except ValueError as error:
        raise ModelError(f"`{label}` is not JSON ({str(error)[:80]})", code="bad_json") from None
    if not isinstance(parsed, dict):
        raise ModelError(f"`{label}` is not a JSON object", code="bad_json")
    return parsed


def as_path(label: str) -> str:
    """A folder as the command line takes it: a path begins with `/`, `./`, `../` or `~`.

    >>> as_path("model"), as_path("../model")
    ('./model', '../model')
    """
    return label if label.startswith(("/", "./", "../", "~")) else f"./{label}"


def _is_weight_name(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.endswith(".bin") and base.startswith(("pytorch_model", "adapter_model", "model"))
