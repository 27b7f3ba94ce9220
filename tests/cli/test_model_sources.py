"""`yard generate` and `yard chat` take a version, a folder and a hub's model, with the same options."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from modelyard.cli.loading import Loading, with_loading
from modelyard.cli.main import run
from tiny_models import save_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

# PEFT 0.21 reads an attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPT = ("where is my card", "--max-new-tokens", "6", "--temperature", "0")


def test_a_folder_answers_as_the_version_does(yard: Callable[..., tuple[int, Any, dict[str, Any]]], desk: Path) -> None:
    """`./folder` needs no yard, and its answer has no version; `--trust-verified` and `--dtype` change no greedy answer."""
    code, version, _ = yard("generate", "team/base", *PROMPT, "--trust-verified")
    assert code == 0
    code, folder, _ = yard("generate", "./model", *PROMPT, "--dtype", "float32", "--yard", str(desk / "no-yard-here"))
    assert code == 0
    assert folder["answer"] == version["answer"]
    assert folder["version"] is None
    assert len(version["version"]) == 64
    assert not (desk / "no-yard-here").exists()


@pytest.mark.parametrize("command", ["generate", "tokenize", "predict"])
def test_a_bare_name_of_a_folder_is_told_how_to_be_one(
    command: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`yard generate model`, where `model` is a folder, says to write `./model`."""
    monkeypatch.chdir(desk)
    assert run([command, "model", "hi"]) == 2
    assert "write `./model`" in capsys.readouterr().err


def test_an_adapter_is_applied(
    yard: Callable[..., tuple[int, Any, dict[str, Any]]], desk: Path, tmp_path: Path
) -> None:
    """`--adapter ./folder` goes onto a version or a folder, and its answer is the adapter's."""
    save_adapter(tmp_path / "adapter", desk / "model")
    plain = yard("generate", "./model", *PROMPT)[1]["answer"]
    on_version = yard("generate", "team/base", *PROMPT, "--adapter", str(tmp_path / "adapter"))[1]["answer"]
    on_folder = yard("generate", "./model", *PROMPT, "--adapter", str(tmp_path / "adapter"))[1]["answer"]
    assert on_version == on_folder != plain


def test_chat_takes_a_folder(
    yard: Callable[..., tuple[int, Any, dict[str, Any]]], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation with a folder's model, whose JSON has no version."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n"))
    code, said, _ = yard("chat", "./model", "--max-new-tokens", "2")
    assert code == 0
    assert (said["model"], said["version"]) == ("./model", None)
    assert [message["role"] for message in said["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("./none",), 1, "bad_model"),
        (("hf://org/never",), 5, "hub_not_cached"),
        (("hf:org/never",), 2, "bad_reference"),
        (("./model", "--dtype", "float31"), 2, "bad_request"),
        (("./model", "--device-map", "{"), 2, "bad_request"),
    ],
)
def test_what_cannot_be_loaded_is_a_typed_error(
    yard: Callable[..., tuple[int, Any, dict[str, Any]]], arguments: tuple[str, ...], code: int, named: str
) -> None:
    """A folder that is not there, a hub's model that is not cached offline, a bad id and bad options: code and exit code."""
    found, _, error = yard("generate", *arguments[:1], *PROMPT, *arguments[1:])
    assert (found, error["code"]) == (code, named)


def test_the_options_become_keywords() -> None:
    """What was given, and only that, becomes keywords of `load`; a device map may be JSON."""
    got: list[Loading] = []

    @click.command()
    @with_loading
    def command(loading: Loading) -> None:
        """Keep what was given."""
        got.append(loading)

    given = ["--task", "fill-mask", "--device-map", '{"": "cpu"}', "--quantization", "bnb-4bit", "--trust-verified"]
    command.main(args=given, standalone_mode=False)
    command.main(args=["--device-map", "auto", "--adapter", "team/fr"], standalone_mode=False)
    assert got[0] == Loading(
        {"task": "fill-mask", "device_map": {"": "cpu"}, "quantization": "bnb-4bit"}, trust_verified=True
    )
    assert got[1] == Loading({"device_map": "auto"}, "team/fr")
    assert (got[0].per_call, got[1].per_call) == ({}, {"adapter": "adapter"})


def test_a_source_as_a_folder(desk: Path, yard: Callable[..., tuple[int, Any, dict[str, Any]]]) -> None:
    """For commands that plan or estimate, a version is its folder of links, and a path itself."""
    from modelyard.cli.options import Home

    home = Home(None)
    folder = Loading().folder(home, "team/base")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert Loading().folder(home, "./model") == Path("./model")


def test_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of both commands lists them."""
    for command in ("generate", "chat"):
        assert run([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(f"--{name}" in shown for name in ("task", "dtype", "device-map", "adapter", "trust-verified"))
