"""Where a model comes from: a folder, a .gguf file, or a hub's repo. Knows paths and `hf://`; reads no model."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.checks import as_path, read_json
from modelyard.weights.files import FolderFiles
from modelyard.weights.loading.given import is_hub

if TYPE_CHECKING:
    from modelyard.weights.loading.options import LoadOptions

__all__ = ["find_base", "locate", "locate_files", "locate_parts", "read_adapter"]


def locate(source: Path | str, options: LoadOptions) -> Path:
    """The folder or .gguf file that a source means; a hub's repo is fetched into its cache first.

    Raises:
        ModelError: There is nothing there.
        RequestError: `revision` was given for what has none.
        NotFoundError, AuthError: As `weights.hub.fetch`.
    """
    if isinstance(source, str) and is_hub(source):
        return _fetch(source, options)
    if options.revision is not None:
        raise RequestError(
            f"`{source}` is a path, which has no revisions", hint="leave `revision` out", field="revision"
        )
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ModelError(f"`{source}` is a file", hint="give the folder that holds it, or a .gguf file")
    hub = isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~"))
    hint = f"a hub's repo is written hf://{source}" if hub else "give the path of a model's folder"
    raise ModelError(f"no folder `{source}`", hint=hint)


def locate_parts(options: LoadOptions) -> LoadOptions:
    """The options with a folder for a base and for adapters that a hub has; `revision` is the model's own, not theirs.

    Raises:
        NotFoundError, AuthError: As `weights.hub.fetch`.
    """
    plain = replace(options, revision=None)
    base = _fetch(str(options.base), plain) if is_hub(options.base) else options.base
    adapters = options.adapters and {
        name: _fetch(str(each), plain) if is_hub(each) else each for name, each in options.adapters.items()
    }
    return replace(options, base=base, adapters=adapters)


def locate_files(source: Path | str) -> Path:
    """The folder of a configuration or preprocessor; of a hub's repo everything but the weights is fetched."""
    if isinstance(source, str) and is_hub(source):
        from modelyard.weights import hub

        return hub.fetch(source, weights=False)
    return Path(source).expanduser()


def read_adapter(folder: Path) -> dict[str, Any] | None:
    """The adapter_config.json of a folder; None where it has none."""
    if not (folder / "adapter_config.json").exists():
        return None
    return read_json(FolderFiles(folder), "adapter_config.json")


def find_base(folder: Path, adapter: dict[str, Any], base: Path | str | None) -> Path:
    """The folder of an adapter's base: the one that is given, else the one that its config names if it is here.

    Raises:
        ModelError: It is not here, or is itself an adapter.
    """
    named = adapter.get("base_model_name_or_path")
    if base is None and isinstance(named, str) and Path(named).is_dir():
        base = named
    if base is None:
        raise ModelError(
            f"`{folder}` is an adapter of `{named}`, which is no folder here",
            hint="pass the folder of its base as `base`",
            base_model=named,
        )
    if Path(base).suffix == ".gguf" and Path(base).is_file():
        raise ModelError(
            f"the base `{base}` is a GGUF file, whose tensors have other names than the adapter `{folder}` changes",
            hint=f"make a folder of it: yard convert {shlex.quote(as_path(str(base)))} --to ./base; then pass ./base",
        )
    if not Path(base).is_dir():
        raise ModelError(f"no folder `{base}` for the base of the adapter `{folder}`")
    if (Path(base) / "adapter_config.json").exists():
        raise ModelError(f"the base `{base}` is itself an adapter", hint="merge it first, and use the merged model")
    return Path(base)


def _fetch(source: str, options: LoadOptions) -> Path:
    from modelyard.weights import hub

    return hub.fetch(
        source,
        cache_dir=options.cache_dir,
        revision=options.revision,
        token=options.token,
        offline=options.offline,
    )
