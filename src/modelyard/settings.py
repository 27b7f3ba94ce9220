"""Configuration: the one module below the surfaces that knows the environment and the home directory exist.

Everything else receives a `Settings` value or plain arguments. Precedence: an argument, then a `MODELYARD_*` variable,
then the default.

>>> Settings.from_environment({"MODELYARD_HOME": "/data/yard"}, home=Path("/home/me")).home
PosixPath('/data/yard')
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import InputError, IntegrityError, near_match

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Places", "Settings"]

_KNOWN = (
    "MODELYARD_HOME",
    "MODELYARD_STORE",
    "MODELYARD_CATALOG",
    "MODELYARD_CACHE",
    "MODELYARD_THREADS",
    "MODELYARD_AUTHOR",
)
_HUB_VARIABLES = (
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "PYTORCH_PRETRAINED_BERT_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "TRANSFORMERS_CACHE",
    "TRANSFORMERS_OFFLINE",
)
"""What is read about hubs, names of yesterday included: `app.hub_access` gives them their meaning."""

_TRUE = {"1", "ON", "YES", "TRUE"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Settings:
    """What the surroundings say.

    Attributes:
        home: The yard's directory.
        store_url: Where the bytes are (`s3://BUCKET/PREFIX`); None means what the yard's folder says, else that folder.
        catalog_url: SQLAlchemy URL of the catalog; None means what the yard's folder says, else SQLite inside it.
        cache_bytes: Bound of the read cache of a store that is not on this machine; None means the default.
        access_key: Of a store on S3, with `secret_key` and perhaps `session_token`.
        region: Of a store on S3, where its URL names none.
        endpoint: Of a store on S3, where its URL names none; None means Amazon's own.
        threads: Compute threads for training, evaluation and serving; None means all physical cores.
        author: Who commits and promotes, for the audit log.
        offline: Whether no hub may be asked for anything.
        hub_home: Where tools that use a hub keep their cache and token (`HF_HOME`).
        hub_variables: What else the surroundings say about hubs, by variable; it may hold a token.
    """

    home: Path
    catalog_url: str | None = None
    threads: int | None = None
    author: str = "unknown"
    offline: bool = False
    store_url: str | None = None
    cache_bytes: int | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None
    endpoint: str | None = None
    hub_home: Path | None = None
    hub_variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, home: Path | None = None) -> Settings:
        """Read `MODELYARD_*` and the standard `HF_*` and `AWS_*` names; an unknown `MODELYARD_*` name is an `InputError` with a near match."""
        env = os.environ if environment is None else environment
        for name in env:
            if name.startswith("MODELYARD_") and name not in _KNOWN:
                meant = near_match(name, _KNOWN)
                raise InputError(
                    f"unknown variable `{name}`",
                    hint=f"did you mean `{meant}`?" if meant else f"known: {', '.join(_KNOWN)}",
                )
        account = home or Path.home()
        where = env.get("MODELYARD_HOME")
        caches = _expanded(env.get("XDG_CACHE_HOME") or str(account / ".cache"), env)
        threads = env.get("MODELYARD_THREADS")
        if threads is not None and not (threads.isdecimal() and int(threads) > 0):
            raise InputError(f"`MODELYARD_THREADS` is {threads!r}", hint="set it to a positive whole number")
        return cls(
            home=Path(where).expanduser() if where else account / ".modelyard",
            catalog_url=env.get("MODELYARD_CATALOG"),
            threads=int(threads) if threads else None,
            author=env.get("MODELYARD_AUTHOR") or env.get("USER") or env.get("LOGNAME") or _account(),
            offline=env.get("HF_HUB_OFFLINE", "").upper() in _TRUE,
            hub_home=_expanded(env["HF_HOME"], env) if env.get("HF_HOME") else caches / "huggingface",
            hub_variables={name: env[name] for name in _HUB_VARIABLES if env.get(name)},
            store_url=env.get("MODELYARD_STORE") or None,
            cache_bytes=_bytes(env["MODELYARD_CACHE"]) if env.get("MODELYARD_CACHE") else None,
            access_key=env.get("AWS_ACCESS_KEY_ID") or None,
            secret_key=env.get("AWS_SECRET_ACCESS_KEY") or None,
            session_token=env.get("AWS_SESSION_TOKEN") or None,
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None,
            endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None,
        )

    @property
    def hub_token_path(self) -> Path | None:
        """The file where tools that use a hub keep a token; None where nobody said where these tools live."""
        named = self.hub_variables.get("HF_TOKEN_PATH")
        if named:
            return self.expanded(named)
        return self.hub_home / "token" if self.hub_home is not None else None

    def expanded(self, text: str) -> Path:
        """A path of a variable, with what the surroundings put for `~` and `$NAME` in it."""
        return _expanded(text, os.environ)

    @staticmethod
    def is_on(text: str | None) -> bool:
        """Whether a variable says yes, as `huggingface_hub` reads it."""
        return (text or "").upper() in _TRUE


@dataclass(frozen=True)
class Places:
    """Where a yard's store and catalog are, as its folder records it in `yard.json`; None where that is the folder itself.

    The file is readable by its owner only, since a catalog's URL may hold a password. A store's URL holds none.
    """

    store: str | None = None
    catalog: str | None = None

    @classmethod
    def read(cls, home: Path) -> Places:
        """What the folder records; `IntegrityError` when that cannot be understood."""
        path = home / "yard.json"
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except ValueError:
            found = None
        places = {"store", "catalog"}
        if not isinstance(found, dict) or not all(isinstance(found.get(key, ""), str) for key in places):
            raise IntegrityError(
                f"`{path}` does not say where the yard's store and catalog are",
                hint="run `yard init --store URL --catalog URL` again after moving that file away",
                path=str(path),
            )
        return cls(**{key: found[key] for key in places if key in found})

    def write(self, home: Path) -> None:
        """Record this in the folder, which is made if it is missing: all of it or nothing, durably."""
        home.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: value for key, value in vars(self).items() if value is not None}, indent=1)
        fd, name = tempfile.mkstemp(prefix=".yard.", dir=home)  # mode 0600
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(text.encode() + b"\n")
                stream.flush()
                os.fsync(fd)
            Path(name).replace(home / "yard.json")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _expanded(text: str, environment: Mapping[str, str]) -> Path:
    """A path with `$NAME` and `~` in it, as `huggingface_hub` reads the variables that hold one."""
    named = re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda found: environment.get(found[1] or found[2], found[0]), text)
    return Path(named).expanduser()


def _bytes(text: str) -> int:
    """Bytes from text like `20GB`, in powers of ten."""
    match = re.fullmatch(r"(\d{1,15}) ?([KMGT]?B?)", text.strip().upper())
    unit = match[2].rstrip("B") + "B" if match and match[2].rstrip("B") else ""
    if match is None or not int(match[1]):
        raise InputError(f"`MODELYARD_CACHE` is {text!r}", hint="set it to a size, such as 20GB")
    return int(match[1]) * _UNITS[unit]


def _account() -> str:
    """The name of the account that this process runs under."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in many containers
        return "unknown"
