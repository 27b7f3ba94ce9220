"""The index of a bundle, read strictly: what a reader may believe before it has seen the rest.

See `docs/design/exchange.md`. Knows names, sizes and digests, never a member's bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.digest import Digest, canonical_json
from modelyard.errors import InputError, IntegrityError, InternalError

if TYPE_CHECKING:
    from modelyard.registry.model import RepoType
    from modelyard.registry.tar import Member

__all__ = ["FORMAT", "INDEX", "INDEX_LIMIT", "Index", "Item", "parse_index"]

FORMAT = "modelyard/bundle/1"
INDEX = "bundle.json"
INDEX_LIMIT = 64 << 20
_SMALL = 256 << 20
"""Manifests, reports and signatures together, in bytes: they are held in memory."""

_KEYS = {"format", "version", "versions", "context", "manifests", "reports", "signatures", "files"}
_TEXTS = ("repo", "message", "author", "at", "derivation")
_DERIVATION_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """A member: the digest that it is called by, and its size in bytes."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Described:
    """What an index says of a version."""

    id: Digest
    repo_type: RepoType
    repo: str
    message: str
    metadata: dict[str, str]
    author: str
    at: str
    reports: tuple[Digest, ...]
    derivation: str


@dataclass(frozen=True, slots=True)
class Index:
    """What is in a bundle, in the order of its members."""

    version: Digest
    versions: tuple[Described, ...]
    context: tuple[Digest, ...]
    manifests: tuple[Item, ...]
    reports: tuple[Item, ...]
    signatures: tuple[Item, ...]
    files: tuple[Item, ...]
    signed: tuple[Digest, ...] = ()

    def members(self) -> list[Member]:
        """Names and sizes of all members but the first."""
        return [
            *((f"manifests/{item.digest}", item.size) for item in self.manifests),
            *((f"reports/{item.digest}", item.size) for item in self.reports),
            *((f"signatures/{item.digest}.sig", item.size) for item in self.signatures),
            *((f"files/{item.digest}", item.size) for item in self.files),
        ]


def parse_index(data: bytes, label: str) -> Index:
    """Read an index that somebody else may have written.

    Raises:
        InputError: A bundle of a newer program.
        IntegrityError: It is not exactly what the format allows.
    """
    try:
        value = json.loads(data)
        canonical = canonical_json(value) if isinstance(value, dict) else b""
    except (ValueError, RecursionError, InternalError):
        canonical = b""
    if canonical != data:
        _refuse(label, "its index is not canonical JSON")
    if value.get("format") != FORMAT:
        raise InputError(
            f"`{label}` has the format {str(value.get('format'))[:40]!r}, not {FORMAT!r}", hint="use a newer modelyard"
        )
    try:
        index = _index(value)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        _refuse(label, f"its index is not well formed ({str(error)[:80]})")
    _check(index, label)
    return index


def _index(value: dict[str, Any]) -> Index:
    if set(value) != _KEYS:
        raise ValueError(f"unknown or missing keys: {sorted(set(value) ^ _KEYS)}")
    return Index(
        version=Digest(value["version"]),
        versions=tuple(_described(item) for item in value["versions"]),
        context=tuple(Digest(item) for item in value["context"]),
        manifests=_items(value["manifests"], {"digest", "size"}),
        reports=_items(value["reports"], {"digest", "size"}),
        signatures=_items(value["signatures"], {"digest", "size", "version"}),
        files=_items(value["files"], {"digest", "size"}),
        signed=tuple(Digest(item["version"]) for item in value["signatures"]),
    )


def _items(listing: Any, keys: set[str]) -> tuple[Item, ...]:
    found = []
    for item in listing:
        if set(item) != keys or not isinstance(item["size"], int) or not 0 <= item["size"] < 2**53:
            raise ValueError("a member has no digest or no size")
        found.append(Item(Digest(item["digest"]), item["size"]))
    if [item.digest for item in found] != sorted({item.digest for item in found}):
        raise ValueError("members are not in order, or one is there twice")
    return tuple(found)


def _described(item: Any) -> Described:
    if set(item) != {"id", "repo_type", "metadata", "reports", *_TEXTS}:
        raise ValueError("a version has unknown or missing keys")
    metadata = item["metadata"]
    texts = [*(item[key] for key in _TEXTS), *metadata, *metadata.values()]
    if not all(isinstance(text, str) for text in texts) or item["repo_type"] not in {"model", "dataset"}:
        raise ValueError("a version has a wrong value")
    derivation = item["derivation"]
    if derivation and (len(derivation) > _DERIVATION_LIMIT or not isinstance(json.loads(derivation), dict)):
        raise ValueError("a version's derivation is no JSON object")
    reports = tuple(Digest(digest) for digest in item["reports"])
    if len(set(reports)) != len(reports):
        raise ValueError("a report is named twice")
    return Described(
        id=Digest(item["id"]),
        repo_type=item["repo_type"],
        repo=item["repo"],
        message=item["message"],
        metadata=dict(metadata),
        author=item["author"],
        at=item["at"],
        reports=reports,
        derivation=derivation,
    )


def _check(index: Index, label: str) -> None:
    """What its parts say of each other."""
    if any(version != index.version for version in index.signed):
        _refuse(label, "it has a signature of another version than the one that it is of")
    ids = [item.id for item in index.versions]
    if ids != sorted(set(ids)) or index.version not in ids:
        _refuse(label, "its versions are not in order, or lack the one that it is of")
    if list(index.context) != sorted(set(index.context)) or set(index.context) & set(ids):
        _refuse(label, "its context is not in order, or names a version that it has")
    if {item.digest for item in index.manifests} != {*ids, *index.context}:
        _refuse(label, "its manifests are not those of its versions and their context")
    named = {digest for version in index.versions for digest in version.reports}
    if {item.digest for item in index.reports} != named:
        _refuse(label, "its reports are not those of its versions")
    if sum(item.size for item in (*index.manifests, *index.reports, *index.signatures)) > _SMALL:
        _refuse(label, "its manifests and reports are too large")


def _refuse(label: str, why: str) -> NoReturn:
    raise IntegrityError(
        f"the bundle `{label}` is refused: {why}",
        hint="nothing was unpacked; fetch it again, or pack it again",
        code="bad_bundle",
    )
