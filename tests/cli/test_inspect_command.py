"""`yard inspect`, `yard estimate` and `yard architectures`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli.main import run
from tiny_models import save_model

Outcome = tuple[int, Any, dict[str, Any]]


def test_inspect_a_folder_and_a_version(yard: Callable[..., Outcome]) -> None:
    """A folder and the version committed from it are described alike."""
    code, folder, _ = yard("inspect", "./model")
    assert code == 0
    assert (folder["kind"], folder["architecture"]) == ("model", "LlamaForCausalLM")
    code, version, _ = yard("inspect", "team/base")
    assert code == 0
    assert version | {"source": ""} == folder | {"source": ""}


def test_inspect_shows_the_tree(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text has the parameters, the tokenizer and the modules."""
    capsys.readouterr()
    assert run(["inspect", "./model", "--all"]) == 0
    shown = capsys.readouterr().out
    for part in ("parameters", "LlamaForCausalLM", "self_attn", "q_proj", "chat template", "(x2)"):
        assert part in shown


def test_estimate(yard: Callable[..., Outcome]) -> None:
    """The parts, the peak and the verdict are printed, and options where they are asked for."""
    code, found, _ = yard("estimate", "./model", "--length", "32", "--new-tokens", "8")
    assert code == 0
    assert found["peak"] > found["weights"] > 0
    assert (found["fits"], found["options"], found["method"]) == (True, [], "closed-form")
    code, found, _ = yard("estimate", "team/base", "--mode", "lora", "--length", "512", "--rank", "4", "--options")
    assert code == 0
    assert found["trainable"] > 0
    assert any(option["changes"] == {"gradient_checkpointing": True} for option in found["options"])


def test_estimate_as_text(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is data; the question and the verdict are notes."""
    capsys.readouterr()
    assert run(["estimate", "./model", "--length", "32"]) == 0
    shown = capsys.readouterr()
    assert "peak" in shown.out
    assert "MiB" in shown.out
    assert "fits:" in shown.err


def test_estimate_refuses(yard: Callable[..., Outcome]) -> None:
    """A folder without a configuration, and an option that does not exist, are errors with codes."""
    code, _, error = yard("estimate", "./nowhere")
    assert (code, error["code"]) == (1, "not_a_folder")
    code, _, error = yard("estimate", "./model", "--mode", "lora", "--targets", "odd_proj", "--length", "8")
    assert (code, error["code"]) == (2, "bad_request")


def test_architectures(yard: Callable[..., Outcome]) -> None:
    """Types are listed by modality."""
    code, found, _ = yard("architectures", "--modality", "audio")
    assert code == 0
    assert "whisper" in {item["model_type"] for item in found["architectures"]}
    code, _, error = yard("architectures", "--modality", "smell")
    assert (code, error["code"]) == (2, "bad_request")


def test_inspect_and_estimate_of_a_known_family_import_no_library(tmp_path: Path) -> None:
    """What the figures of both commands rest on: neither torch nor transformers is imported for a Llama's folder."""
    save_model(tmp_path / "llama")
    code = (
        "import sys\n"
        "from modelyard.cli.main import run\n"
        "for command in (['inspect'], ['estimate'], ['estimate', '--mode', 'lora']):\n"
        "    assert run([command[0], sys.argv[1], *command[1:]]) == 0\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), command\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "llama")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
