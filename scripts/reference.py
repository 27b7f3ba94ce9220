"""Write `docs/reference/cli.md` from the commands' own help; `--check` only compares (a test runs that)."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from modelyard.cli.main import COMMANDS, yard

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
HEAD = """# The command line

Generated from `yard COMMAND --help` by `make docs`; do not edit. Every command takes `--json` (one object on stdout) and `--debug`
(a traceback on errors); data goes to stdout and everything else to stderr. [Exit codes](errors.md).

"""


def render() -> str:
    """The whole page."""
    root = click.Context(yard, info_name="yard", max_content_width=110, terminal_width=110)
    parts = [HEAD]
    for name, (_, text) in COMMANDS.items():
        command = yard.get_command(root, name)
        assert command is not None  # noqa: S101  # our own table
        context = click.Context(command, info_name=name, parent=root, max_content_width=110, terminal_width=110)
        parts.append(f"## yard {name}\n\n{text}\n\n```text\n{command.get_help(context)}\n```\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    page = render()
    if "--check" in sys.argv:
        sys.exit(
            0
            if PAGE.is_file() and PAGE.read_text("utf-8") == page
            else "docs/reference/cli.md is stale: run `make docs`"
        )
    PAGE.write_text(page, "utf-8")
