"""Versions out of an MLflow model folder: `MLmodel` says what is where; pickles are refused by name.

Needs no mlflow and runs nothing of the folder. Knows the `transformers` flavor's layout, and to find a plain model folder
among the artifacts of others.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.errors import ConflictError, InputError, ModelError
from modelyard.registry.imports import Gathered, Imported, Skipped, refuse_pickles, sift
from modelyard.registry.reference import repo_of
from modelyard.weights.files import FolderFiles, check_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelyard.registry.intake import Origin
    from modelyard.registry.model import Kind, Version
    from modelyard.registry.yard import Yard

__all__ = ["import_folder"]

_LIMIT = 4 << 20
_KEPT = ("run_id", "utc_time_created", "model_uuid", "mlflow_version", "artifact_path")
_PICKLED = {"python_function": "python_model", "sklearn": "pickled_model", "pytorch": "model_data"}


def import_folder(yard: Yard, folder: Path, to: str, *, message: str = "") -> Imported:
    """Commit the model in an MLflow model folder; see `Yard.import_mlflow`."""
    repo_of(to)
    files = FolderFiles(folder)
    described = _read(files) if "MLmodel" in files.names() else {}
    flavors = described.get("flavors") or {}
    if not isinstance(flavors, dict):
        raise ModelError(f"`{folder}/MLmodel` has no flavors that can be read", code="bad_mlmodel")
    metadata = _metadata(described, flavors)
    flavor = flavors.get("transformers")
    note = message or f"imported from an MLflow model ({', '.join(sorted(flavors)) or 'no flavor'})"
    if isinstance(flavor, dict):
        return _transformers(yard, files, flavor, to, (note, metadata))
    return _plain(yard, files, flavors, to, (note, metadata))


def _read(files: FolderFiles) -> dict[str, Any]:
    """`MLmodel`, without aliases: a few lines of them expand to gigabytes."""
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases")
            return super().compose_node(parent, index)

    # A date is kept as it was written.
    Plain.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: str(node.value))
    try:
        # SafeLoader builds plain values only; S506 sees a subclass and cannot know.
        found = yaml.load(files.read("MLmodel", _LIMIT), Plain)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ModelError(f"`{files.label}/MLmodel` cannot be read: {reason}", code="bad_mlmodel") from error
    if not isinstance(found, dict):
        raise ModelError(f"`{files.label}/MLmodel` is not a mapping", code="bad_mlmodel")
    return found


def _metadata(described: Mapping[str, Any], flavors: Mapping[str, Any]) -> dict[str, str]:
    """What is kept, as text."""
    kept = {f"mlflow.{key}": _text(described[key]) for key in _KEPT if described.get(key) is not None}
    if flavors:
        kept["mlflow.flavors"] = _text(dict(flavors))
    if described.get("signature") is not None:
        kept["mlflow.signature"] = _text(described["signature"])
    flavor = flavors.get("transformers")
    if isinstance(flavor, dict):
        for key in ("task", "source_model_name", "source_model_revision"):
            if isinstance(flavor.get(key), str):
                kept[f"mlflow.{key}"] = flavor[key]
    run = described.get("run_id")
    return kept | ({"origin": f"mlflow:{run}"} if isinstance(run, str) else {})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _transformers(
    yard: Yard, files: FolderFiles, flavor: Mapping[str, Any], to: str, about: tuple[str, dict[str, str]]
) -> Imported:
    """The model and its components in one folder; an adapter, with its base where that was saved."""
    binary = _inside(files, flavor.get("model_binary", "model"))
    components = [_inside(files, f"components/{name}") for name in _names(flavor.get("components"))]
    components.append("components/processor")
    model = _under(files, binary) or _under(files, "pipeline")
    adapter = _under(files, _inside(files, flavor["peft_adaptor"])) if flavor.get("peft_adaptor") else {}
    parts = [_under(files, component) for component in components]
    merged = _merged(files.label, [model, *parts]) if model else {}
    used = {path for part in (model, adapter, *parts) for path in part.values()}
    left = [Skipped(name, "not part of the model") for name in files.names() if files.path(name) not in used]
    if not merged and not adapter:
        source = flavor.get("source_model_name")
        raise ModelError(
            f"`{files.label}` holds no weights, only the name of a hub model",
            code="incomplete_version",
            hint=f"yard import hf://{source} --to {to}" if isinstance(source, str) else None,
        )
    base: Version | None = None
    made = []
    if merged:
        base, skipped = _commit(yard, files.label, merged, f"{to}-base" if adapter else to, about)
        made.append(base)
        left += skipped
    if adapter:
        whole = _merged(files.label, [adapter, *([] if merged else parts)])
        version, skipped = _commit(yard, files.label, whole, to, about, kind="adapter", base=base)
        made.insert(0, version)
        left += skipped
    return Imported(tuple(made), tuple(sorted(left, key=lambda item: item.name)))


def _commit(
    yard: Yard,
    label: str,
    paths: Mapping[str, Path],
    to: str,
    about: tuple[str, dict[str, str]],
    *,
    kind: Kind | None = None,
    base: Version | None = None,
) -> tuple[Version, list[Skipped]]:
    kept, skipped = sift(paths)
    if not any(name.endswith(".safetensors") for name in kept):
        if skipped:
            raise refuse_pickles(label, skipped)
        raise ModelError(f"`{label}` holds no safetensors weights", code="incomplete_version")
    message, metadata = about
    edges: list[Origin] = [("finetuned", base)] if base is not None else []
    version = yard.commit(
        Gathered(label, kept),
        to,
        kind=kind,
        from_=edges,
        message=message,
        metadata=metadata,
    )
    return version, skipped


def _plain(
    yard: Yard, files: FolderFiles, flavors: Mapping[str, Any], to: str, about: tuple[str, dict[str, str]]
) -> Imported:
    """The one folder among the artifacts that is a model."""
    names = files.names()
    folders = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
    folders = {
        f for f in folders if {f"{f}/config.json".lstrip("/"), f"{f}/adapter_config.json".lstrip("/")} & set(names)
    }
    if len(folders) > 1:
        raise ConflictError(
            f"`{files.label}` holds several models: {', '.join(sorted(folders))}",
            hint=f"import one of them: yard import {files.label}/{min(folders)} --to {to}",
        )
    if not folders:
        _refuse(files, flavors)
    folder = folders.pop()
    inside = _under(files, folder) if folder else {name: files.path(name) for name in names}
    version, skipped = _commit(yard, files.label, inside, to, about)
    taken = set(inside.values())
    left = [Skipped(name, "not part of the model") for name in names if files.path(name) not in taken]
    return Imported((version,), tuple(sorted([*left, *skipped], key=lambda item: item.name)))


def _refuse(files: FolderFiles, flavors: Mapping[str, Any]) -> NoReturn:
    """No model that may be loaded: say which flavors and files stand in the way."""
    _, skipped = sift({name: files.path(name) for name in files.names()})
    pickles = [item for item in skipped if item.reason.startswith("a pickle")]
    declared = [
        f"{name} ({key}: {flavor[key]})"
        for name, key in _PICKLED.items()
        if isinstance(flavor := flavors.get(name), dict) and flavor.get(key)
    ]
    if pickles or declared:
        named = f" of the flavors {', '.join(declared or sorted(flavors))}"
        raise refuse_pickles(files.label, pickles, named)
    raise ModelError(
        f"`{files.label}` holds no folder with config.json and safetensors weights",
        code="incomplete_version",
        hint="log the model with the transformers flavor, or as a folder of artifacts",
    )


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError("`MLmodel` lists components that are no names", code="bad_mlmodel")
    return value


def _inside(files: FolderFiles, name: Any) -> str:
    """A folder that `MLmodel` names, if it is within the model's own."""
    if not isinstance(name, str):
        raise InputError(f"`{files.label}/MLmodel` names a folder that is no text")
    plain = name.removeprefix("./").rstrip("/")
    check_name(plain, files.label)
    return plain


def _under(files: FolderFiles, folder: str) -> dict[str, Path]:
    start = f"{folder}/"
    return {name.removeprefix(start): files.path(name) for name in files.names() if name.startswith(start)}


def _merged(label: str, parts: list[dict[str, Path]]) -> dict[str, Path]:
    """Several folders as one; the same name with other bytes is a conflict."""
    whole: dict[str, Path] = {}
    for part in parts:
        for name, path in part.items():
            other = whole.setdefault(name, path)
            if other != path and other.read_bytes() != path.read_bytes():
                raise ConflictError(
                    f"`{label}` has two different files `{name}` for one folder: {other} and {path}",
                    hint="remove the one that is not the model's",
                )
    return whole
