"""The entry point: finds the command, maps errors to exit codes, and imports nothing that the command does not need.

Exit codes: 0 ok, 1 failed, 2 usage, 3 finished with warnings, 4 authentication, 5 not found, 6 conflict, 7 gate refused,
8 integrity, 9 busy, 10 no space, 130 interrupted. Treat a code that is not in this list as a failure.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.errors import NoSpaceError, RefError, YardError, near_match

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main", "yard"]

INTERRUPTED = 130

# Command name -> (module:attribute, one line of help). Kept here so that `yard --help` imports no command at all.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart:quickstart", "Run the main job end to end on a small shipped base, offline."),
    "init": ("yards:init", "Make a yard."),
    "catalog": ("catalog:catalog", "Show, move or upgrade the database of names and history."),
    "doctor": ("doctor:doctor", "Examine this machine and the yard, or a checkpoint."),
    "import": ("exchange:import_", "Bring versions in: a folder, a hub or its cache, MLflow, SmoLoRA, another yard."),
    "commit": ("versions:commit", "Commit a folder as a new version."),
    "ls": ("versions:ls", "List repos, or the versions and refs of one."),
    "show": ("versions:show", "Show one version: files, lineage, reports, refs."),
    "log": ("history:log", "Show what happened to a repo, newest first."),
    "diff": ("history:diff", "Compare two versions."),
    "lineage": ("history:lineage", "Show what a version was made from and what was made from it."),
    "card": ("versions:card", "Write a version's model card from what the yard knows."),
    "checkout": ("exchange:checkout", "Write a version's files to a folder."),
    "pack": ("exchange:pack", "Write a version to one file."),
    "unpack": ("exchange:unpack", "Take in what `yard pack` wrote."),
    "provenance": ("exchange:provenance", "Print how a version came to be, as an in-toto statement."),
    "sign": ("exchange:sign", "Sign a version's files, offline."),
    "verify": ("exchange:verify", "Check a signature over a version's files."),
    "path": ("versions:path", "Print where a version's files are, verified."),
    "tag": ("refs:tag", "Give a version a name that never moves."),
    "delete": ("refs:delete", "Delete a version, tag or branch; bytes that something needs stay."),
    "undelete": ("refs:undelete", "Take a deletion of a version back."),
    "du": ("upkeep:du", "Show what takes how much, and what holds it."),
    "compact": ("upkeep:compact", "Keep what is not in use in fewer bytes."),
    "gc": ("collection:gc", "Remove what nothing needs."),
    "check": ("collection:check", "Look for faults, and repair what can be."),
    "rebuild": ("collection:rebuild", "Make a lost catalog again from what is stored."),
    "gate": ("refs:gate", "Show or set the rule that an alias demands."),
    "promote": ("refs:promote", "Move an alias to a version, past its gate."),
    "rollback": ("refs:rollback", "Move an alias back to its previous holder."),
    "run": ("runs:run", "Run a recipe: only what changed is done again."),
    "train": ("runs:train", "Fine-tune a base on your data."),
    "eval": ("runs:eval_", "Evaluate a version and keep every example's result."),
    "merge": ("merging:merge", "Merge an adapter into its base, exactly, or whole models."),
    "combine": ("merging:combine", "Make one adapter from several."),
    "extract": ("merging:extract", "Make a LoRA adapter from two checkpoints."),
    "plan": ("plan:plan", "Show what loading a model would do, before anything is loaded."),
    "inspect": (
        "inspect:inspect",
        "Describe a model from its headers: parameters, dtypes, modules, tokenizer, licence.",
    ),
    "estimate": ("estimate:estimate", "Say how much memory a model takes, and whether it fits here."),
    "architectures": ("inspect:architectures", "List each model type: modality, tasks, what serves and trains it."),
    "create": ("create:create", "Make a model from a configuration, with random weights."),
    "convert": (
        "conversion:convert",
        "Write the same weights in another form: dtype, shards, names, safetensors, GGUF.",
    ),
    "quantize": ("conversion:quantize", "Write a model in fewer bits a weight, measured against its source."),
    "export": ("conversion:export", "Write a model in another engine's form, measured against its source."),
    "serve": ("serving:serve", "Serve versions or aliases over an OpenAI-compatible API."),
    "up": ("site:up", "Show the yard in a browser, and let Hub clients download from it."),
    "ps": ("serving:ps", "Show what is being served."),
    "predict": ("predict:predict", "Say what a model of any task says of texts, pictures, sounds or numbers."),
    "generate": ("models:generate", "Answer one prompt with a version."),
    "chat": ("models:chat", "Talk to a version."),
    "compare": ("compare:compare", "Show two models' answers to the same prompts side by side."),
    "tokenize": ("tokens:tokenize", "Show the tokens of a text."),
    "detokenize": ("tokens:detokenize", "Show the text of token ids."),
    "login": ("login:login", "Store a hub's token for this account."),
    "logout": ("login:logout", "Forget the hub's token."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is run, and offers the near match of a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # Click's signature
        """Every command, in the order of a model's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # Click's signature
        """Import and return one command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(f"modelyard.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  # our own table
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click does, with a near match for a mistyped command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            meant = near_match(args[0], COMMANDS)
            ctx.fail(f"no command `{args[0]}`" + (f"; did you mean `yard {meant}`?" if meant else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # Click's signature
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"yard {version('modelyard')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def yard() -> None:
    """Take an open-weight model from checkpoint to production and back, and prove every step.

    \b
    Start with:
      yard quickstart
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `yard`; always ends in `SystemExit` with a documented code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run `yard` with `arguments` and return the exit code."""
    as_json = "--json" in arguments
    debug = "--debug" in arguments
    try:
        result: Any = yard.main(args=arguments, prog_name="yard", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.note("interrupted; what was finished is kept, and the same command goes on from there")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the edge: whatever it is becomes a message and an exit code
        return _explain(error, as_json, debug)
    return result if isinstance(result, int) else 0


def _explain(error: Exception, as_json: bool, debug: bool) -> int:
    """Render any error, with a traceback where one was asked for; return its exit code."""
    if isinstance(error, click.ClickException):
        return _usage(error, as_json)
    if debug:
        traceback.print_exception(error)
    typed = _typed(error)
    if as_json:
        output.error_json(typed.to_dict())
    else:
        output.error(typed)
    return INTERRUPTED if typed.code == "interrupted" else typed.exit_code


def _is_here(name: object) -> bool:
    """Whether what is no reference is the name of something in the current folder, whose path would begin with `./`."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name) < 256 and Path(name).exists()


def _typed(error: Exception) -> YardError:
    if isinstance(error, RefError) and _is_here(error.details.get("given")):
        error.hint = f"if the one that is here is meant, write `./{error.details['given']}`"
    if isinstance(error, YardError):
        return error
    if isinstance(error, BrokenPipeError):
        return YardError("nobody reads the output any more", code="os_error")
    if isinstance(error, OSError):
        where = f"`{error.filename}`: " if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return NoSpaceError(f"{where}no space left", hint="free some space; what was there before is untouched")
        return YardError(f"{where}{error.strerror or error}", code="os_error")
    hint = "run it again with --debug and report the traceback"
    return YardError(f"unexpected {type(error).__name__}: {error}", hint=hint, code="internal")


def _usage(error: click.ClickException, as_json: bool) -> int:
    if as_json:
        output.error_json({"code": "usage", "message": error.format_message(), "exit_code": 2})
    else:
        error.show()
    return 2


if __name__ == "__main__":
    main()
