"""Configuration: the one module below the surfaces that knows the environment and the home directory exist.

Everything else receives a `Settings` value or plain arguments. Precedence: an argument, then a `MODELYARD_*` variable,
then the default.

>>> Settings.from_environment({"MODELYARD_HOME": "/data/yard"}, home=Path("/home/me")).home
PosixPath('/data/yard')
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import InputError, near_match

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings"]

_KNOWN = ("MODELYARD_HOME", "MODELYARD_CATALOG", "MODELYARD_THREADS", "MODELYARD_AUTHOR")


@dataclass(frozen=True)
class Settings:
    """What the surroundings say.

    Attributes:
        home: The yard's directory.
        catalog_url: SQLAlchemy URL of the catalog; None means SQLite inside the yard.
        threads: Compute threads for training, evaluation and serving; None means all physical cores.
        author: Who commits and promotes, for the audit log.
        offline: Whether a hub may be asked for anything.
    """

    home: Path
    catalog_url: str | None = None
    threads: int | None = None
    author: str = "unknown"
    offline: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, home: Path | None = None) -> Settings:
        """Read `MODELYARD_*` and `HF_HUB_OFFLINE`; an unknown `MODELYARD_*` name is an `InputError` with a near match."""
        env = os.environ if environment is None else environment
        for name in env:
            if name.startswith("MODELYARD_") and name not in _KNOWN:
                meant = near_match(name, _KNOWN)
                raise InputError(
                    f"unknown variable `{name}`",
                    hint=f"did you mean `{meant}`?" if meant else f"known: {', '.join(_KNOWN)}",
                )
        where = env.get("MODELYARD_HOME")
        threads = env.get("MODELYARD_THREADS")
        if threads is not None and not (threads.isdecimal() and int(threads) > 0):
            raise InputError(f"`MODELYARD_THREADS` is {threads!r}", hint="set it to a positive whole number")
        return cls(
            home=Path(where).expanduser() if where else (home or Path.home()) / ".modelyard",
            catalog_url=env.get("MODELYARD_CATALOG"),
            threads=int(threads) if threads else None,
            author=env.get("MODELYARD_AUTHOR") or env.get("USER") or env.get("LOGNAME") or _account(),
            offline=env.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"},
        )


def _account() -> str:
    """The name of the account that this process runs under."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in many containers
        return "unknown"
