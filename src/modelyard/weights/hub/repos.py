"""A model on a hub, as `hf://org/name[@revision]`: into the cache that every Hugging Face tool shares, pinned to a commit.

Fetched are config, preprocessors and safetensors, or the one GGUF file that is named. Weights in a pickle and code are not:
neither would be loaded. The bytes lie in the cache as links; `open_folder` opens such a folder as `Files`.

Where the hub is, where its cache is and who asks are arguments: this module reads no environment, and what is None is left to
`huggingface_hub`. Knows no yard and no model.

>>> parse("hf://org/small@main")
HubSource(repo='org/small', revision='main', file=None)
>>> parse("hf://org/small/small-q4.gguf").file
'small-q4.gguf'
>>> str(parse("hf://org/small@refs/pr/1"))
'hf://org/small@refs/pr/1'
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import RefError
from modelyard.weights.files import Files, FolderFiles

if TYPE_CHECKING:
    from modelyard.weights.hub.remote import RemoteFiles

__all__ = ["HubSource", "Token", "fetch", "is_hub_id", "named_base", "open_folder", "open_remote", "parse"]

Token = str | bool | None
"""A token; False for none at all; None for the one that `huggingface_hub` finds."""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_ID = re.compile(rf"hf://({_PART}/{_PART}|{_PART})(?:/({_PART}\.gguf))?(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")
_FORMS = "write `hf://org/name`, `hf://org/name@revision` or `hf://org/name/file.gguf`"


@dataclass(frozen=True)
class HubSource:
    """A model on a hub.

    Attributes:
        repo: `org/name`.
        revision: A branch, a tag or a commit; None for the hub's default branch.
        file: The GGUF file that was named, else None.
    """

    repo: str
    revision: str | None
    file: str | None = None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf://{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")


def is_hub_id(text: object) -> bool:
    """Whether `text` is written as a hub's id, rightly or wrongly.

    >>> is_hub_id("hf://org/name"), is_hub_id("org/name")
    (True, False)
    """
    return isinstance(text, str) and text.startswith("hf:")


def parse(text: str) -> HubSource:
    """Read `hf://org/name[@revision]` or `hf://org/name/file.gguf[@revision]`.

    Raises:
        RefError: It is neither.
    """
    found = _ID.fullmatch(text)
    if found is None or ".." in text or "//" in text.removeprefix("hf://") or text.endswith(("/", ".lock")):
        raise RefError(f"`{text}` is not a hub id", hint=_FORMS)
    return HubSource(found[1], found[3], found[2])


def open_folder(folder: Path) -> Files:
    """A model folder as `Files`; a snapshot in a hub cache, whose files are links into it, too."""
    return FolderFiles(folder)


def fetch(
    source: str | HubSource,
    *,
    endpoint: str | None = None,
    cache_dir: Path | str | None = None,
    revision: str | None = None,
    token: Token = None,
    offline: bool = False,
    weights: bool = True,
    progress: bool = False,
) -> Path:
    """Fetch what is missing of a hub's model; returns its folder in the cache, or the GGUF file that `source` names.

    With everything in the cache only the revision is asked for; with a whole commit id, or `offline`, nobody is asked.

    Args:
        source: A hub's id.
        endpoint: Where the hub is.
        cache_dir: The cache's folder.
        revision: A branch, a tag or a commit, where `source` names none.
        token: Who asks: a token, or False for nobody.
        offline: Whether nobody may be asked; everything has to be in the cache.
        weights: Whether weights are wanted too; without them config and preprocessors come alone.
        progress: Whether `huggingface_hub` draws its bars on standard error.

    Raises:
        RefError: `source` is no hub id.
        NotFoundError: `hub_absent`, `hub_revision`, `hub_file`, `hub_disabled`; `hub_not_cached` when offline.
        AuthError: `hub_gated`, `hub_private`, `hub_token` (not valid), `hub_forbidden` (not enough).
        InputError: `hub_unreachable`, `hub_failed`.
        ModelError: `hub_no_safetensors`: it has no weights that would be loaded.
    """
    from modelyard.weights.hub import cache as hub_cache
    from modelyard.weights.hub import errors as hub_errors

    asked = _with_revision(source, revision)
    access = hub_cache.Access(
        endpoint=endpoint,
        cache_dir=str(Path(cache_dir).expanduser()) if cache_dir is not None else None,
        token=token,
        offline=offline,
        progress=progress,
    )
    with hub_errors.translated(asked, access):
        return hub_cache.fetch(asked, access, weights=weights)


def named_base(folder: Path, source: object) -> str | None:
    """The hub's id of the base that an adapter from a hub names; None for every other folder.

    Args:
        folder: What `fetch` gave.
        source: What was fetched; an adapter that is no hub's may name a folder that is here, which is for loading to find.
    """
    import json

    if not is_hub_id(source) or not (folder / "adapter_config.json").is_file():
        return None
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        revision = config.get("revision")
        return str(parse(f"hf://{config['base_model_name_or_path']}" + (f"@{revision}" if revision else "")))
    except (ValueError, KeyError, TypeError, AttributeError, RefError):
        return None  # it names no hub's model: loading says what it lacks


def open_remote(
    source: str | HubSource, *, endpoint: str | None = None, token: Token = None, revision: str | None = None
) -> RemoteFiles:
    """A hub's model as `Files` of which only the asked-for bytes are fetched, at the commit that the revision is at now.

    Args:
        source: A hub's id.
        endpoint: Where the hub is.
        token: Who asks; see `fetch`.
        revision: As `fetch` takes it.

    Raises:
        RefError, NotFoundError, AuthError, InputError: As `fetch`.
    """
    from urllib.parse import quote

    from huggingface_hub import HfApi, constants, get_token

    from modelyard.weights.hub import cache as hub_cache
    from modelyard.weights.hub import errors as hub_errors
    from modelyard.weights.hub.remote import RemoteFiles

    asked = _with_revision(source, revision)
    with hub_errors.translated(asked, hub_cache.Access(endpoint=endpoint, token=token)):
        info = HfApi(endpoint=endpoint, token=token).model_info(asked.repo, revision=asked.revision)
    root = f"{(endpoint or constants.ENDPOINT).rstrip('/')}/{asked.repo}/resolve/{quote(str(info.sha), safe='')}"
    names = [sibling.rfilename for sibling in info.siblings or []]
    urls = {name: f"{root}/{quote(name)}" for name in names if asked.file in {None, name}}
    said = get_token() if token in {None, True} else token or None
    return RemoteFiles(urls=urls, token=said, label=str(replace(asked, revision=info.sha)))  # type: ignore[arg-type]


def _with_revision(source: str | HubSource, revision: str | None) -> HubSource:
    asked = parse(source) if isinstance(source, str) else source
    if revision is None:
        return asked
    if asked.revision not in {None, revision}:
        raise RefError(f"`{asked}` names a revision, and `revision` is `{revision}`", hint="say it once")
    return parse(str(replace(asked, revision=revision)))
