"""Which names are allowed, for repos, refs and the files of a version, and why the others are refused.

A name ends up in paths, URLs, SQL, HTML, logs and shells of three operating systems; the rules refuse what any of them
reads as something else. Knows names only, never whether something of that name exists.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NoReturn

from modelyard.errors import InputError, RefError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["REF_NAME", "check_metadata", "check_path", "check_paths", "check_ref_name", "check_repo_name", "shown"]

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REF = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_LIKE_VERSION = re.compile(r"v\d+|[0-9a-f]{8,64}", re.IGNORECASE)
_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = frozenset('\\:*?"<>|#%;`$')
_RESERVED_NAMESPACES = frozenset({"datasets", "models", "spaces"})

PART_LIMIT = 96
PATH_LIMIT = 1024
COMPONENT_LIMIT = 255

REPO_NAME = (
    "NAMESPACE/NAME, each of A-Z a-z 0-9 . _ -, at most 96 characters, starting and ending with a letter, digit or _"
)
REF_NAME = (
    "A-Z a-z 0-9 . _ -, at most 96 characters, starting and ending with a letter, digit or _, and unlike v7 or a digest"
)
PATH_NAME = 'relative, parts between /, none of them empty, `.`, `..` or `.git`, none of \\ : * ? " < > | # % ; ` $ and no control characters'


def shown(text: str) -> str:
    r"""A name as it may be printed: everything but printable ASCII is escaped, and a long one is cut.

    >>> shown("a" + chr(0x202E) + "b")
    'a\\\\u202eb'
    """
    plain = text.encode("unicode_escape").decode("ascii")
    return plain if len(plain) <= 120 else plain[:117] + "..."


def check_repo_name(name: str) -> str:
    """Return `name` if it is `namespace/name` by the Hub's rules; else `RefError` with the allowed pattern."""
    parts = name.split("/")
    if len(parts) != 2:
        _refuse("repo name", name, "it is not NAMESPACE/NAME", REPO_NAME)
    if parts[0].lower() in _RESERVED_NAMESPACES:
        _refuse("repo name", name, f"the namespace `{parts[0]}` is reserved", REPO_NAME)
    for part in parts:
        _check_word("repo name", name, part, REPO_NAME)
        if part.lower().endswith(".git"):
            _refuse("repo name", name, "it ends in .git", REPO_NAME)
    return name


def check_ref_name(name: str) -> str:
    """Return `name` if a branch, tag or alias may be called so; else `RefError` with the allowed pattern."""
    if not _REF.fullmatch(name) or len(name) > PART_LIMIT:
        _refuse("ref name", name, "it has characters or a form that are not allowed", REF_NAME)
    _check_word("ref name", name, name, REF_NAME)
    if _LIKE_VERSION.fullmatch(name):
        _refuse("ref name", name, "it reads as a version's number or digest", REF_NAME)
    if name.lower() == "latest":
        _refuse("ref name", name, "`latest` is reserved for the highest number", REF_NAME)
    return name


def _check_word(what: str, whole: str, part: str, pattern: str) -> None:
    if not _PART.fullmatch(part) or len(part) > PART_LIMIT:
        _refuse(what, whole, "it has characters or a form that are not allowed", pattern)
    if "--" in part or ".." in part:
        _refuse(what, whole, "it holds `--` or `..`", pattern)
    if _WINDOWS.fullmatch(part):
        _refuse(what, whole, f"Windows reserves `{part}`", pattern)


def check_path(path: str) -> str:
    """Return `path` if a version may hold a file of this name; else `RefError` with the allowed pattern."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        _refuse("file name", path, "it is not valid UTF-8", PATH_NAME)
    if size > PATH_LIMIT:
        _refuse("file name", path, f"it is longer than {PATH_LIMIT} bytes", PATH_NAME)
    for part in path.split("/"):
        _check_component(path, part)
    return path


def _check_component(path: str, part: str) -> None:
    if part in {"", ".", ".."} or part.lower() == ".git":
        _refuse("file name", path, f"it has the part `{part}`", PATH_NAME)
    if len(part.encode()) > COMPONENT_LIMIT:
        _refuse("file name", path, f"a part is longer than {COMPONENT_LIMIT} bytes", PATH_NAME)
    bad = [char for char in part if char in _FORBIDDEN or unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"}]
    if bad:
        _refuse("file name", path, f"`{shown(bad[0])}` is not allowed", PATH_NAME)
    if part[0] in "- " or part[-1] in ". ":
        _refuse("file name", path, "a part starts with `-` or a space, or ends with a dot or a space", PATH_NAME)
    if _WINDOWS.fullmatch(part):
        _refuse("file name", path, f"Windows reserves `{part}`", PATH_NAME)


def check_paths(paths: Iterable[str]) -> None:
    """Refuse hostile paths, and two that are one file on a system that folds case or normalizes Unicode."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_path(path)
        key = _folded(path)
        if key in seen:
            _refuse(
                "file name",
                path,
                f"on some systems it is the same file as `{shown(seen[key])}`",
                "one file per name, whatever its case",
            )
        seen[key] = path
        for parent in _parents(path):
            other = folders.setdefault(_folded(parent), parent)
            if other != parent:
                _refuse(
                    "file name",
                    path,
                    f"on some systems its folder is `{shown(other)}`",
                    "one folder per name, whatever its case",
                )
    for key, path in seen.items():
        if key in folders:
            _refuse(
                "file name",
                path,
                f"on some systems it is the folder `{shown(folders[key])}`",
                "a name is a file or a folder",
            )


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def check_metadata(metadata: object, message: str) -> None:
    """Refuse a message or metadata that one of the databases could not keep."""
    if not isinstance(metadata, dict) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in metadata.items()
    ):
        raise InputError("metadata maps text to text", hint='for example metadata={"license": "apache-2.0"}')
    for text in (message, *metadata, *metadata.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"the text `{shown(text)}` is not valid UTF-8") from None
        if "\0" in text:
            raise InputError(f"the text `{shown(text)}` holds a NUL character")


def _refuse(what: str, name: str, why: str, pattern: str) -> NoReturn:
    raise RefError(f"the {what} `{shown(name)}` is refused: {why}", hint=f"allowed: {pattern}", pattern=pattern)
