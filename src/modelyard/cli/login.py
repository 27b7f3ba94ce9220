"""`yard login` and `yard logout`: the token that a hub asks for, where every Hugging Face tool finds it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.errors import AuthError, InputError

if TYPE_CHECKING:
    from modelyard.settings import Settings

__all__ = ["login", "logout"]

_TOKEN = re.compile(r"[!-~]{8,1000}")  # printable, no space: what a header can carry


@click.command()
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input: one line.")
@with_yard
@with_json
def login(token_stdin: bool, home: Home, as_json: bool) -> None:
    """Store a hub's token for this account, readable by nobody else, after asking the hub whose it is.

    It is asked for on the terminal, or read from standard input; it is never shown and never an argument. Every tool that uses
    a hub finds it (HF_TOKEN_PATH, or `token` in HF_HOME). With HF_HUB_OFFLINE set, it is stored unchecked.

    \b
    Examples:
      yard login
      yard login --token-stdin < token.txt
    """
    path = _path(home.settings)
    token = _read(token_stdin)
    account = _ask_whose(home.settings, token)
    _store(path, token)
    if home.settings.hub_variables.get("HF_TOKEN"):
        output.note("HF_TOKEN is set, and goes before what was stored")
    if as_json:
        output.json_object({"account": account, "path": str(path), "checked": account is not None})
        return
    output.data(f"logged in as {account}" if account else "the token is stored; nobody was asked whose it is (offline)")


@click.command()
@with_yard
@with_json
def logout(home: Home, as_json: bool) -> None:
    """Forget the hub's token that is stored for this account; without one, nothing is done.

    \b
    Example:
      yard logout
    """
    path = _path(home.settings)
    there = path.is_symlink() or path.is_file()
    if there:
        path.unlink(missing_ok=True)
    if home.settings.hub_variables.get("HF_TOKEN"):
        output.note("HF_TOKEN is still set: unset it, or the hub still knows who asks")
    if as_json:
        output.json_object({"path": str(path), "removed": there})
    else:
        output.data("logged out" if there else "no token was stored")


def _path(settings: Settings) -> Path:
    path = settings.hub_token_path
    if path is None:
        raise InputError("nobody says where tokens are kept", hint="set HF_HOME", code="no_token_path")
    return path


def _read(from_stdin: bool) -> str:
    if from_stdin:
        text = sys.stdin.readline()
    elif sys.stdin.isatty():
        text = click.prompt("token", hide_input=True, err=True, default="", show_default=False)
    else:
        raise InputError("there is no terminal to ask for the token on", hint="yard login --token-stdin < FILE")
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        # The text itself is never part of a message.
        raise InputError("that is no token: one line without spaces is expected", hint="copy the whole token")
    return token


def _ask_whose(settings: Settings, token: str) -> str | None:
    """The account's name; None where nobody may be asked."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from modelyard.app import hub_access

    access = hub_access(settings)
    if access["offline"]:
        return None
    endpoint = access["endpoint"]
    where = f" at `{endpoint}`" if endpoint else ""
    try:
        found: dict[str, Any] = HfApi(endpoint=endpoint, token=token).whoami()
    except OfflineModeIsEnabled:
        return None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in {401, 403}:
            raise AuthError(
                f"the hub{where} does not accept this token",
                hint="copy the whole token, or make a new one",
                code="hub_token",
            ) from None  # what the library says of it may repeat a request
        raise InputError(
            f"the hub{where} answered {status} when it was asked whose token this is",
            hint="check HF_ENDPOINT; HF_HUB_OFFLINE=1 yard login stores it unchecked",
            code="hub_failed",
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise InputError(
            f"the hub{where} cannot be reached: {type(error).__name__}",
            hint="check HF_ENDPOINT and the network; HF_HUB_OFFLINE=1 yard login stores it unchecked",
            code="hub_unreachable",
        ) from None
    return str(found.get("name") or "an account without a name")


def _store(path: Path, token: str) -> None:
    """Write it, all of it or nothing, into a file of this account alone; folders that are made for it are, too.

    A folder that is there keeps its mode: HF_HOME may be a cache that a whole group shares.
    """
    if path.is_dir():
        raise InputError(f"`{path}` is a folder, where the token's file would be", hint="set HF_TOKEN_PATH to a file")
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o700)  # whatever the umask leaves of a mode
    descriptor, name = tempfile.mkstemp(prefix=".token.", dir=path.parent)  # mode 0600, or less, from the first byte on
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, 0o600)
            stream.write(token)
            stream.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
