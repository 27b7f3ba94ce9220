"""Signatures over a version's files with OpenSSF Model Signing, by key and offline.

`sign` makes the file that the `model_signing` command verifies; `verify` is stricter than it: no file in the folder goes
unsigned, `.git*` included, and no link is followed. A signature says who vouches for bytes, never that they are any good.
Needs the extra `signing`. Knows folders and keys; keeps neither keys nor signatures.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.errors import ConflictError, InputError, IntegrityError, NotFoundError, YardError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelyard.registry.model import FileEntry

__all__ = ["Signed", "check_signature", "covers_git", "sign_folder", "verify_folder"]

_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_SIGNATURE_LIMIT = 64 << 20


@dataclass(frozen=True)
class Signed:
    """A signature that was made or that holds.

    Attributes:
        signature: The signature file.
        files: How many files it covers.
        key: The first digits of the SHA-256 of the public key, as DER: what people compare.
    """

    signature: Path
    files: int
    key: str


def sign_folder(folder: Path, signature: Path, key: Path, *, password: str | None = None) -> Signed:
    """Sign every file of a folder.

    Raises:
        ConflictError: `signature` is there already.
        NotFoundError: There is no key.
        InputError: It is not an elliptic-curve private key (P-256, P-384 or P-521), or the password is wrong.
    """
    config = _modules()
    if signature.is_symlink() or signature.exists():
        raise ConflictError(f"`{signature}` is there already", hint="choose another name, or remove it")
    _readable(key, "private key")
    names = _regular(folder)
    hashing = config.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=not covers_git(names))
    draft = signature.with_name(f".{signature.name}.{os.getpid()}.part")
    try:
        signer = config.signing.Config().use_elliptic_key_signer(
            private_key=key, password=password.encode() if password is not None else None
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"`{key}` is not a private key that can sign: {_first_line(error)}",
            hint="openssl ecparam -name prime256v1 -genkey -noout -out private.pem",
        ) from error
    try:
        signature.parent.mkdir(parents=True, exist_ok=True)
        signer.set_hashing_config(hashing).sign(folder, draft)
        os.link(draft, signature)
    except FileExistsError:
        raise ConflictError(
            f"`{signature}` was written by somebody else meanwhile", hint="choose another name"
        ) from None
    except OSError as error:
        raise YardError(f"`{signature}` cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    return Signed(signature, len(names), _fingerprint(key, private=True, password=password))


def verify_folder(folder: Path, signature: Path, key: Path) -> Signed:
    """Check that a signature is by this key and covers exactly the files of a folder.

    Raises:
        NotFoundError: There is no signature, or no key.
        IntegrityError: `bad_signature`: by another key, over other paths or bytes, or damaged; a file in the folder that it
            does not cover; a link or special file in the folder.
    """
    config = _modules()
    _readable(signature, "signature")
    _readable(key, "public key")
    covered = _covered(signature)
    fingerprint = _fingerprint(key, private=False, password=None)
    names = _regular(folder)
    if extra := sorted(names - set(covered)):
        _refuse(signature, f"it does not cover {_some(extra)}")
    if missing := sorted(set(covered) - names):
        _refuse(signature, f"it is over {_some(missing)}, which `{folder}` does not have")
    hashing = config.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    verifier = config.verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(hashing)
    try:
        verifier.verify(folder, signature)
    except Exception as error:  # noqa: BLE001  # whatever it raises means the same: it does not hold
        if "Hash mismatch" in str(error):
            _refuse(signature, "a file is not the one that was signed", str(error))
        _refuse(signature, "it is not by this key, or was changed", str(error))
    return Signed(signature, len(names), fingerprint)


def covers_git(names: Iterable[str]) -> bool:
    """Whether there is a file that the `model_signing` command leaves out unless it is told otherwise."""
    return any(name.partition("/")[0] in _GIT for name in names)


def check_signature(data: bytes, files: Iterable[FileEntry], label: str) -> None:
    """Refuse a signature that is not about these very files; says nothing about who made it.

    Raises:
        IntegrityError: `bad_signature`.
    """
    covered = _payload(data, label)
    if covered != {entry.path: entry.sha256 for entry in files}:
        _refuse(Path(label), "it is about other files than this version's")


def _covered(signature: Path) -> dict[str, str]:
    if signature.stat().st_size > _SIGNATURE_LIMIT:
        _refuse(signature, "it is too large to be one")
    return _payload(signature.read_bytes(), str(signature))


def _payload(data: bytes, label: str) -> dict[str, str]:
    """The files that a signature is about: path to SHA-256. What it says counts only once it was found to be the key's."""
    try:
        envelope = json.loads(data)["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"], validate=True))
        resources: list[dict[str, Any]] = statement["predicate"]["resources"]
        found = {str(item["name"]): str(item["digest"]) for item in resources}
        algorithms = {str(item["algorithm"]) for item in resources}
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
        _refuse(Path(label), "it is no signature of a model")
    if algorithms - {"sha256"} or len(found) != len(resources) or not found:
        _refuse(Path(label), "it is not by file and SHA-256")
    return found


def _regular(folder: Path) -> set[str]:
    """Every file's path in a folder; a link or anything else that is no file is refused."""
    found = set()
    for where, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(where) / name
            mode = path.lstat().st_mode
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode):
                found.add(relative)
            elif not stat.S_ISDIR(mode):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
                raise IntegrityError(
                    f"`{relative}` in `{folder}` is {what}: only regular files are signed",
                    hint="yard checkout the version into a new folder",
                    code="bad_signature",
                )
    if not found:
        raise NotFoundError(f"there is no file in `{folder}`", hint="give the folder of a checkout")
    return found


def _readable(path: Path, what: str) -> None:
    if not path.is_file():
        raise NotFoundError(f"there is no {what} `{path}`")


def _fingerprint(key: Path, *, private: bool, password: str | None) -> str:
    import hashlib

    from cryptography.hazmat.primitives import serialization

    data = key.read_bytes()
    try:
        if private:
            secret = password.encode() if password is not None else None
            public = serialization.load_pem_private_key(data, secret).public_key()
        else:
            public = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise InputError(f"`{key}` is no key in PEM: {_first_line(error)}") from error
    form = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(form).hexdigest()[:16]


def _modules() -> Any:
    """The library, imported when it is used: it is an extra."""
    try:
        import model_signing
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise InputError(
            f"signing needs a package that is not installed: {error.name}", hint="pip install 'modelyard[signing]'"
        ) from error
    assert hashing and signing and verifying  # noqa: S101, PT018  # submodules, loaded
    return model_signing


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _refuse(signature: Path, why: str, cause: str = "") -> NoReturn:
    details = {"cause": cause[:500]} if cause else {}
    raise IntegrityError(
        f"the signature `{signature}` does not hold: {why}",
        hint="do not use these files unless their origin is known otherwise",
        code="bad_signature",
        **details,
    )
