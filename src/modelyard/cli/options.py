"""Options that several commands share, as decorators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelyard.errors import RecipeError
from modelyard.settings import Settings

if TYPE_CHECKING:
    from modelyard.registry import Yard

__all__ = ["Home", "key_values", "with_json", "with_yard"]

Command = TypeVar("Command", bound=Callable[..., Any])


class Home:
    """Where the yard is, and how to open it."""

    def __init__(self, folder: Path | None) -> None:
        self.settings = settings(folder)

    def open(self, *, create: bool = False) -> Yard:
        """Open the yard; `create` makes it first where there is none."""
        from modelyard.app import open_yard

        return open_yard(self.settings, create=create)


def settings(folder: Path | None) -> Settings:
    """The settings of the environment, with `folder` as the yard when given."""
    import dataclasses

    found = Settings.from_environment()
    return dataclasses.replace(found, home=folder) if folder else found


def with_yard(command: Command) -> Command:
    """Add `--yard FOLDER` and pass a `Home` as `home`."""

    def convert(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Home:
        return Home(value)

    return click.option(
        "--yard",
        "home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=convert,
        metavar="FOLDER",
        help="The yard to use (default: $MODELYARD_HOME, or ~/.modelyard).",
    )(command)


def with_json(command: Command) -> Command:
    """Add `--json` (as `as_json`) and `--debug`."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on errors.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def key_values(pairs: tuple[str, ...], option: str) -> dict[str, str]:
    """Split `KEY=VALUE` arguments; anything else is a `RecipeError` that names the option."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise RecipeError(f"`{option} {pair}` is not of the form KEY=VALUE")
        found[key] = value
    return found
