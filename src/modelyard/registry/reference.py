"""References: the text by which people name versions.

`[datasets/]ns/name[@REV]`, where REV is `v<digits>`, 8 to 64 hex digits, a ref's name or `latest`, and `main` when it is
left out. A path (`./`, `../`, `/`, `~`), a hub id (`hf://`) and a URL are told apart here and refused with the next step.
Knows the grammar, not what exists.

>>> Reference.parse("team/intents@v7")
Reference(repo_type='model', repo='team/intents', rev='v7')
>>> Reference.parse("datasets/team/support").rev
'main'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from modelyard.errors import RefError
from modelyard.registry.names import REF_NAME, check_ref_name, check_repo_name, shown

__all__ = ["Reference", "RepoType", "repo_of"]

RepoType = Literal["model", "dataset"]

_NUMBER = re.compile(r"v(\d{1,18})", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference."""

    repo_type: RepoType
    repo: str
    rev: str = "main"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse `[datasets/]ns/name[@REV]`.

        Raises:
            RefError: `text` is a path, a hub id, a URL, or breaks the rules for names; the hint has the allowed pattern.
        """
        _refuse_others(text)
        name, at, rev = text.partition("@")
        repo_type: RepoType = "model"
        if name.startswith("datasets/"):
            repo_type, name = "dataset", name.removeprefix("datasets/")
        check_repo_name(name)
        if not at:
            return cls(repo_type, name)
        if not (_NUMBER.fullmatch(rev) or _DIGEST.fullmatch(rev) or rev == "latest"):
            _check_rev(rev)
        return cls(repo_type, name, rev)

    @property
    def number(self) -> int | None:
        """The version number when REV is `v<digits>`."""
        found = _NUMBER.fullmatch(self.rev)
        return int(found[1]) if found else None

    @property
    def prefix(self) -> str | None:
        """The digest's first digits when REV is 8 to 64 of them."""
        return self.rev if _DIGEST.fullmatch(self.rev) else None

    @property
    def repo_text(self) -> str:
        """The reference without its REV."""
        return f"datasets/{self.repo}" if self.repo_type == "dataset" else self.repo

    def __str__(self) -> str:
        return f"{self.repo_text}@{self.rev}"


def repo_of(text: str, repo_type: RepoType | None = None) -> Reference:
    """Parse a repo's name, without a REV: `ns/name` or `datasets/ns/name`; `repo_type` settles the type of the former.

    Raises:
        RefError: There is a REV, or the two types disagree.
    """
    reference = Reference.parse(text)
    if "@" in text:
        raise RefError(f"`{shown(text)}` names a version where a repo is meant", hint=reference.repo_text)
    if repo_type is None or repo_type == reference.repo_type:
        return reference
    if reference.repo_type == "dataset":
        raise RefError(f"`{shown(text)}` is a dataset's name, but a {repo_type} is meant", hint=reference.repo)
    return Reference(repo_type, reference.repo)


def _check_rev(rev: str) -> None:
    try:
        check_ref_name(rev)
    except RefError as error:
        raise RefError(
            f"the revision `{shown(rev)}` is refused: it is no `v<digits>`, no 8 to 64 hex digits and no ref's name",
            hint=f"ref names: {REF_NAME}",
            pattern=REF_NAME,
        ) from error


def _refuse_others(text: str) -> None:
    if text.startswith(("./", "../", "/", "~")) or text in {".", ".."}:
        raise RefError(
            f"`{shown(text)}` is a path where a reference is meant",
            hint="commit it first: yard commit PATH --to NAMESPACE/NAME",
        )
    if text.startswith("hf://"):
        raise RefError(
            f"`{shown(text)}` is a hub id where a reference is meant",
            hint=f"import it first: yard import {shown(text)}",
        )
    if "://" in text:
        raise RefError(
            f"`{shown(text)}` is a URL where a reference is meant",
            hint="a reference is [datasets/]NAMESPACE/NAME[@REV]",
        )
    if "/" not in text.partition("@")[0]:
        raise RefError(
            f"`{shown(text)}` is not a reference", hint="a reference is [datasets/]NAMESPACE/NAME[@REV]", given=text
        )
