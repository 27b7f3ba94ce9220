"""Loading: a version, a folder or a hub's model becomes a `Model`, with every byte of a version verified.

A version is read from a folder of hard links (`links`) while its bytes are hashed beside that (`verification`); the model is
handed out when both are done. A file that is damaged is mended where its bytes are held elsewhere, and what was read from it
is thrown away. Knows files, that an adapter has a base, and which sources are references; not tensors.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import IntegrityError, ModelError, NotFoundError, RequestError
from modelyard.registry.checkout import checkout
from modelyard.registry.finiteness import are_finite, note_finite
from modelyard.registry.leases import lease
from modelyard.registry.lineage import adapter_base
from modelyard.registry.links import linked_folder, present_folder
from modelyard.registry.model import Version
from modelyard.registry.recency import note_use
from modelyard.registry.resolve import resolve
from modelyard.registry.verification import Verification
from modelyard.registry.verified import verified_beside
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.weights.model import Model

    Observe = Callable[[str, float, int], object]
    Fetch = Callable[..., Path]

__all__ = ["load"]

_MAIN, _BASE, _ADAPTER = "source", "base", "adapter:"


def load(
    context: Context,
    source: str | Path | Version,
    options: Mapping[str, Any],
    *,
    fetch: Fetch,
    trust_verified: bool = False,
    observe: Observe | None = None,
) -> Model:
    """Load a version, a folder or a hub's model; see `Yard.load`.

    Args:
        context: The yard.
        source: What to load.
        options: Those of `weights.load.load`; `base` and the values of `adapters` are sources too.
        fetch: `weights.hub.fetch` with what the surroundings say about the hub.
        trust_verified: Whether files that this boot has verified, and nothing touched since, are not hashed again.
        observe: Told of each stage when it ends: its name, seconds, bytes. `resolve` and `verify` are told from here, the
            others by `weights.load`.
    """
    from modelyard.weights.loading.legacy import modern_names

    rest = modern_names(options, of=_HUB_OPTIONS)
    with _timed(observe, "resolve"):
        sources = _sources(source, rest)
        found = {role: _find(context, each, rest, fetch) for role, each in sources.items()}
        _add_base(context, found, sources[_MAIN], rest, fetch)
    versions = [each for each in found.values() if isinstance(each, Version)]
    _check_adapters(context, found)
    if observe is not None:
        rest["observe"] = observe
    if not versions:
        return _load_folders({role: each for role, each in found.items() if isinstance(each, Path)}, rest)
    with lease(context, "load", versions=[each.id for each in versions]):
        note_use(context, versions)
        rest["finite"] = known = len(versions) == len(found) and are_finite(context, versions)
        if context.links is None:
            model = _load_copies(context, found, rest)
        else:
            model = _load_links(context, context.links, found, rest, trust=trust_verified)
        if not known and all(map(_is_one_set, versions)) and len(versions) == len(found) and _read_every_value(model):
            note_finite(context, versions)
    main = found[_MAIN]
    model.version = main if isinstance(main, Version) else None
    return model


def _sources(source: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that has to be found, by the role that it plays; taken out of `options`."""
    sources = {_MAIN: source}
    base, adapters = options.pop("base", None), options.pop("adapters", None)
    if base is not None:
        sources[_BASE] = base
    if adapters is not None:
        if not hasattr(adapters, "items") or not adapters:
            raise RequestError(
                "`adapters` is no dictionary of sources by name",
                hint='adapters={"fr": "team/fr@v2"}',
                field="adapters",
            )
        sources |= {f"{_ADAPTER}{name}": each for name, each in adapters.items()}
    return sources


def _find(context: Context, source: Any, options: dict[str, Any], fetch: Fetch) -> Version | Path:
    """The version or the folder that a source means; a hub's model is fetched."""
    if isinstance(source, Version):
        return source
    form = source_form(source)
    if form == "hub":
        return fetch(source, **{name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None})
    if form == "path":
        if str(source).startswith("~"):
            raise RequestError(f"`{source}`: the home directory is not known here", hint="write the path in full")
        return Path(source)
    return resolve(context, source)


_HUB_OPTIONS = ("cache_dir", "revision", "token", "offline")


def _add_base(
    context: Context, found: dict[str, Version | Path], source: object, options: dict[str, Any], fetch: Fetch
) -> None:
    """An adapter that is loaded by itself brings its base: a version's by its lineage, a hub's by the id that it names."""
    from modelyard.weights import hub

    main = found[_MAIN]
    if _BASE in found:
        return
    if isinstance(main, Version):
        if main.kind == "adapter":
            found[_BASE] = adapter_base(context, main)
    elif named := hub.named_base(main, source):
        found[_BASE] = _find(context, named, {**options, "revision": None}, fetch)


def _check_adapters(context: Context, found: dict[str, Version | Path]) -> None:
    """Refuse an adapter of another base: it would answer, and nobody would see that it is wrong."""
    base = found.get(_BASE, found[_MAIN])
    for role, each in found.items():
        if not role.startswith(_ADAPTER) or not isinstance(each, Version) or not isinstance(base, Version):
            continue
        if each.kind != "adapter":
            raise ModelError(f"`{each.name}` is no adapter", hint=f"yard show {each.name}", code="not_an_adapter")
        try:
            own = adapter_base(context, each)
        except NotFoundError:
            continue  # lineage does not say; whether its tensors fit is seen when it is loaded
        if _weights(own) != _weights(base):
            raise ModelError(
                f"the adapter `{each.name}` was made on `{own.name}`, not on `{base.name}`",
                hint=f"load it on its own: yard generate {each.name}",
                code="other_base",
            )


def _is_one_set(version: Version) -> bool:
    """Whether the weight files of a version are one file or one set of shards: of two sets, a load reads one."""
    names = [entry.path for entry in version.files if entry.path.endswith(".safetensors")]
    if names in (["model.safetensors"], ["adapter_model.safetensors"]):
        return True
    counts = {int(shard[1]) for name in names if (shard := re.fullmatch(r"model-\d{5}-of-(\d{5})\.safetensors", name))}
    return counts == {len(names)}


def _read_every_value(model: Model) -> bool:
    """Whether the load has looked at each value of the files: nothing left out, let pass or cast, and no buffer among them."""
    report = model.load_report
    held = set(model.model.state_dict())
    looked_at = {name for name, _ in model.model.named_parameters(remove_duplicate=False)}
    plain = model.plan.quantization is None and getattr(model.model.config, "quantization_config", None) is None
    return plain and not (report.dropped or report.allowed or report.casts) and held <= looked_at


def _weights(version: Version) -> set[str]:
    return {str(entry.blake3) for entry in version.files if entry.path.endswith(".safetensors")}


def _load_folders(folders: Mapping[str, Path], options: Mapping[str, Any]) -> Model:
    from modelyard.weights.collector import collector_paused

    given = dict(options)
    # Said when the folder was found; a folder has none of them.
    for name in _HUB_OPTIONS:
        given.pop(name, None)
    adapters = {role.removeprefix(_ADAPTER): path for role, path in folders.items() if role.startswith(_ADAPTER)}
    if adapters:
        given["adapters"] = adapters
    with collector_paused():
        from modelyard.weights.load import load as load_folder

        return load_folder(folders[_MAIN], base=folders.get(_BASE), **given)


def _load_links(
    context: Context,
    links: Path,
    found: Mapping[str, Version | Path],
    options: Mapping[str, Any],
    *,
    trust: bool,
) -> Model:
    """Load from folders of links, whose bytes are hashed meanwhile."""
    folders: dict[str, Path] = {}
    unread: dict[Path, Digest] = {}
    seconds, size = 0.0, 0  # of what was hashed before
    for role, each in found.items():
        if not isinstance(each, Version):
            folders[role] = each
            continue
        present = present_folder(context.raw, links, each)
        if present is None:
            began = time.perf_counter()
            folders[role] = linked_folder(context.store, links, each)
            seconds += time.perf_counter() - began
            size += sum(entry.size for entry in each.files)
        else:
            folders[role] = present
            unread |= {present / entry.path: entry.blake3 for entry in each.files}
    with Verification(list(unread.items()), verified_beside(links), trust=trust) as verification:
        try:
            model = _load_folders(folders, options)
        except Exception:
            # What could not be read because it is damaged is damaged first of all.
            if (mended := _mended(context, links, found, verification)) is None:
                raise
            return _load_folders({**folders, **mended}, options)
        mended = _mended(context, links, found, verification)
    if (observe := options.get("observe")) is not None:
        observe("verify", seconds + verification.seconds, size + verification.size)
    return model if mended is None else _load_folders({**folders, **mended}, options)


def _mended(
    context: Context, links: Path, found: Mapping[str, Version | Path], verification: Verification
) -> dict[str, Path] | None:
    """None when every byte was sound; else the folders made anew, from bytes that are held elsewhere.

    Raises:
        IntegrityError: Nothing that is held makes a damaged file again.
    """
    try:
        verification.finish()
    except (IntegrityError, OSError):
        return {
            role: linked_folder(context.store, links, each) for role, each in found.items() if isinstance(each, Version)
        }
    return None


def _load_copies(context: Context, found: Mapping[str, Version | Path], options: Mapping[str, Any]) -> Model:
    """Load from a temporary folder that lives as long as the model."""
    root = Path(tempfile.mkdtemp(prefix="modelyard-"))
    try:
        folders: dict[str, Path] = {}
        for position, (role, each) in enumerate(found.items()):
            if isinstance(each, Version):
                folders[role] = root / str(position)
                checkout(context.store, each, folders[role])
            else:
                folders[role] = each
        model = _load_folders(folders, options)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, root, ignore_errors=True)
    return model


@contextmanager
def _timed(observe: Observe | None, stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if observe is not None:
        observe(stage, time.perf_counter() - began, 0)
