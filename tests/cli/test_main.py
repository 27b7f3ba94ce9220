"""The command's edge: help, near matches, exit codes, errors as text and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard import errors
from modelyard.cli import output
from modelyard.cli.main import COMMANDS, run

HEAVY = "{'torch', 'transformers', 'datasets', 'peft', 'sqlalchemy'}"


def loaded(arguments: list[str], modules: str = HEAVY) -> str:
    """Which of `modules` a fresh process has imported after running `yard` with `arguments`."""
    code = (
        "import sys; from modelyard.cli.main import run; "
        f"code = run({arguments!r}); print(sorted({modules} & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.splitlines()[-1]


def test_help_imports_nothing_heavy() -> None:
    """`yard --help` imports neither torch nor a database."""
    assert loaded(["--help"]) == "[] 0"


def test_listing_imports_no_torch(tmp_path: Path) -> None:
    """`yard ls` imports no torch and no transformers."""
    assert run(["init", "--yard", str(tmp_path / "yard")]) == 0

    assert loaded(["ls", "--yard", str(tmp_path / "yard")], "{'torch', 'transformers', 'datasets'}") == "[] 0"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`yard COMMAND --help` describes the command, shows an example of itself, and offers --json."""
    assert run([name, "--help"]) == 0

    text = capsys.readouterr().out
    assert "Example" in text
    assert f"  yard {name}" in text
    assert "--json" in text


def test_a_mistyped_command_gets_its_near_match(capsys: pytest.CaptureFixture[str]) -> None:
    """`yard promot` is a usage error that names `yard promote`."""
    assert run(["promot"]) == 2
    assert "yard promote" in capsys.readouterr().err


def test_errors_as_json_are_one_object_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json an error is one JSON object on stderr, its exit code included, and stdout stays empty."""
    run(["init", "--yard", str(tmp_path)])
    capsys.readouterr()
    code = run(["show", "team/none", "--json", "--yard", str(tmp_path)])

    captured = capsys.readouterr()
    assert code == 5
    assert captured.out == ""
    assert json.loads(captured.err)["error"]["exit_code"] == 5


def test_a_yard_that_is_not_there_is_named_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a yard, a command says so and names `yard init`."""
    assert run(["ls", "--yard", str(tmp_path / "nowhere")]) == 5
    assert "yard init" in capsys.readouterr().err


def test_every_error_has_a_documented_exit_code() -> None:
    """The tree of errors and the table of exit codes agree, and every code of the tree is in the reference."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text("utf-8")
    for name in errors.__all__:
        found = getattr(errors, name)
        if isinstance(found, type) and issubclass(found, errors.YardError):
            row = next(line for line in page.splitlines() if line.startswith(f"| {found.exit_code} |"))
            assert f"`{found.code}`" in row, name


def test_control_characters_never_reach_the_terminal() -> None:
    """What a file calls itself cannot move the cursor, recolour the screen or reverse the text."""
    assert output.clean("a\x1b[2Jb\u202ec\r") == "a\\x1b[2Jb\\u202ec\\r"
