"""What of a hub's model is fetched into the hub cache, and whether what lies there is all of it.

`hub.fetch` is the way in; what `huggingface_hub` raises here is given its meaning by `hub.errors`. Knows file names; opens
one file, the index that names the shards.
"""

from __future__ import annotations

import glob
import importlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, NotFoundError, near_match

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.weights.hub import HubSource, Token

__all__ = ["Access", "cached_folder", "choose_preprocessors", "choose_weights", "fetch"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX_SUFFIX = ".safetensors.index.json"
_WHOLE = ("model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors")
_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".spm", ".tiktoken", ".bpe", ".codes")
_FOLDERS = ("additional_chat_templates/", "qformer_tokenizer/")
_INDEX_LIMIT = 64 << 20


@dataclass(frozen=True)
class Access:
    """Where the hub and its cache are and who asks, as `hub.fetch` was told."""

    endpoint: str | None = None
    cache_dir: str | None = None
    token: Token = None
    offline: bool = False
    progress: bool = False


def choose_preprocessors(names: Iterable[str]) -> list[str]:
    """Of a repo's files: configurations, tokenizers and every other preprocessor's, the card and the licence.

    >>> choose_preprocessors(["config.json", "tokenizer.model", "pytorch_model.bin", "pytorch_model.bin.index.json", "run.py"])
    ['config.json', 'tokenizer.model']
    """
    found = []
    for name in names:
        inside = name.startswith(_FOLDERS)
        plain = name.endswith(_SUFFIXES) and (not name.endswith(".index.json") or name.endswith(_INDEX_SUFFIX))
        if ("/" not in name or inside) and (plain or name == "README.md" or name.upper().startswith("LICENSE")):
            found.append(name)
    return sorted(found)


def choose_weights(names: Iterable[str], index: dict[str, Any] | None) -> list[str]:
    """Of a repo's files: the safetensors that are loaded, so that a second copy in another precision stays where it is.

    Args:
        names: Every file of the repo.
        index: What `model.safetensors.index.json` holds, where the repo has one.

    >>> choose_weights(["model.safetensors", "model.fp16.safetensors", "onnx/model.onnx"], None)
    ['model.safetensors']
    >>> choose_weights(["a.safetensors", "b.safetensors"], {"weight_map": {"x": "a.safetensors"}})
    ['a.safetensors']
    """
    present = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    if index is not None:
        named = index.get("weight_map")
        shards = {str(shard) for shard in named.values()} if isinstance(named, dict) else set()
        if shards:
            # A shard that is not there is named all the same: it is missed, not passed over.
            return sorted(shards)
    return sorted(present & set(_WHOLE)) or sorted(present)


def fetch(source: HubSource, access: Access, *, weights: bool) -> Path:
    """See `hub.fetch`; raises what `huggingface_hub` raises."""
    from huggingface_hub import HfApi, constants

    if access.offline or constants.is_offline_mode():
        return _cached(source, replace(access, offline=True), weights)
    if source.revision is not None and _COMMIT.fullmatch(source.revision):
        folder = cached_folder(source, access)
        if folder is not None and not _lacking(source, folder, weights):
            return _result(source, folder)
    info = HfApi(endpoint=access.endpoint, token=access.token).model_info(source.repo, revision=source.revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if info.sha is None:
        raise NotFoundError(f"`{source}`: the hub names no commit", hint="check HF_ENDPOINT", code="hub_failed")
    if source.file is not None:
        if source.file not in names:
            raise _no_file(source, names)
        return _download(source, info.sha, [source.file], access) / source.file
    folder = _download(source, info.sha, choose_preprocessors(names), access)
    if weights:
        chosen = choose_weights(names, _index(folder))
        if not chosen:
            raise _no_weights(source, names)
        _download(source, info.sha, chosen, access)
        lacking = [name for name in chosen if not (folder / name).exists()]
        if lacking:
            raise _lacks(source, lacking)
    return folder


def cached_folder(source: HubSource, access: Access) -> Path | None:
    """The snapshot of the revision in the cache, whole or not; None where there is none. Nobody is asked."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = Path(access.cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repo, repo_type="model")
    revision = source.revision or "main"
    if not _COMMIT.fullmatch(revision):
        try:
            revision = (root / "refs" / revision).read_text("utf-8").strip()
        except OSError:
            return None
    folder = root / "snapshots" / revision
    return folder if _COMMIT.fullmatch(revision) and folder.is_dir() else None


def _cached(source: HubSource, access: Access, weights: bool) -> Path:
    """What the cache holds of it, whole, or the reason why that is not enough."""
    folder = cached_folder(source, access)
    hint = "go online once and run it again, or use a folder on this machine (`./folder`) or a version of the yard"
    if folder is None:
        beside = replace(source, revision=None)
        other = cached_folder(beside, access) if source.revision else None
        raise NotFoundError(
            f"`{source}` is not in the hub cache, and nobody may be asked (HF_HUB_OFFLINE)"
            + (f"; `{beside}` is there, at {other.name[:12]}" if other else ""),
            hint=hint,
            code="hub_not_cached",
        )
    lacking = _lacking(source, folder, weights)
    if lacking:
        raise NotFoundError(
            f"`{source}` is in the hub cache without {', '.join(lacking[:5])}, and nobody may be asked (HF_HUB_OFFLINE)",
            hint=hint,
            code="hub_not_cached",
            missing=lacking,
        )
    return _result(source, folder)


def _lacking(source: HubSource, folder: Path, weights: bool) -> list[str]:
    """What a snapshot lacks of what is wanted of it."""
    if source.file is not None:
        return [] if (folder / source.file).exists() else [source.file]
    names = [entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if not entry.is_dir()]
    if "config.json" not in names and "adapter_config.json" not in names:
        return ["config.json"]
    if not weights:
        return []
    chosen = choose_weights(names, _index(folder))
    return [name for name in chosen if not (folder / name).exists()] if chosen else ["safetensors weights"]


def _result(source: HubSource, folder: Path) -> Path:
    return folder / source.file if source.file else folder


def _download(source: HubSource, commit: str, names: list[str], access: Access) -> Path:
    from huggingface_hub import snapshot_download

    bars: dict[str, Any] = {} if access.progress else {"tqdm_class": _silent()}
    folder = snapshot_download(
        source.repo,
        revision=commit,
        endpoint=access.endpoint,
        cache_dir=access.cache_dir,
        token=access.token,
        allow_patterns=[glob.escape(name) for name in names],
        **bars,
    )
    _note_ref(Path(folder), source.revision or "main", commit)
    return Path(folder)


def _note_ref(folder: Path, revision: str, commit: str) -> None:
    """Note which commit a branch or tag was at, where every tool that uses the cache looks for it when it is offline."""
    if _COMMIT.fullmatch(revision):
        return
    path = folder.parent.parent / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8").strip() != commit:
        path.write_text(commit, "utf-8")


def _silent() -> type[Any]:
    bars: Any = importlib.import_module("huggingface_hub.utils")  # carry no types

    class Silent(bars.tqdm):  # type: ignore[misc]
        """Bars that are never drawn: a library says nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent


def _index(folder: Path) -> dict[str, Any] | None:
    path = folder / _WHOLE[0]
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _INDEX_LIMIT:
            raise ValueError(f"more than {_INDEX_LIMIT} bytes")
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{path}` is no index of weights: {error}", hint="report it to the model's owner") from error
    return found if isinstance(found, dict) else {}


def _no_file(source: HubSource, names: list[str]) -> NotFoundError:
    others = [name for name in names if name.endswith(".gguf")]
    meant = near_match(str(source.file), others)
    hint = f"did you mean `{replace(source, file=meant)}`?" if meant else "leave the file out for its safetensors"
    return NotFoundError(f"`{source}`: the model has no such file", hint=hint, code="hub_file", files=others)


def _no_weights(source: HubSource, names: list[str]) -> ModelError:
    quantized = [name for name in names if name.endswith(".gguf") and "/" not in name]
    if quantized:
        return ModelError(
            f"`{source}` has no safetensors weights, but GGUF files",
            hint=f"name one: `{replace(source, file=quantized[0])}`",
            code="hub_no_safetensors",
            files=quantized,
        )
    return ModelError(
        f"`{source}` has no safetensors weights",
        hint="fetch it by hand and run `yard convert`; weights in a pickle are never loaded",
        code="hub_no_safetensors",
    )


def _lacks(source: HubSource, lacking: list[str]) -> NotFoundError:
    return NotFoundError(
        f"`{source}`: its index names {', '.join(lacking[:5])}, which the hub does not have",
        hint="report it to the model's owner, or take another revision",
        code="hub_file",
        missing=lacking,
    )
