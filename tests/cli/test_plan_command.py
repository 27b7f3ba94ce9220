"""`yard plan`: the plan of a load as a table or JSON, with what a caller may not have meant as notes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard.cli.main import run
from modelyard.weights.loading.plan import plan_load
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return save_model(tmp_path_factory.mktemp("model"), make_llama())


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `yard plan`; gives the exit code, stdout and stderr."""

    def go(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["plan", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def test_json_is_the_plan(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """`--json` is `plan_load` with the same options, as plain values."""
    code, out, _ = call(folder, "--dtype", "bfloat16", "--device-map", "auto", "--max-memory", "cpu=60KB", "--json")
    made = plan_load(folder, dtype="bfloat16", device_map="auto", max_memory={"cpu": "60KB"})
    assert code == 0
    assert json.loads(out) == {"model": str(folder), **json.loads(json.dumps(asdict(made)))}
    assert made.bytes["disk"] > 0


def test_the_table_says_what_happens(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """Class, dtype, casts and bytes are data; an untrained head is a note on stderr."""
    code, out, err = call(folder, "--task", "text-classification", "--num-labels", 3, "--dtype", "bfloat16")
    assert code == 0
    assert "LlamaForSequenceClassification" in out
    assert "float32 -> bfloat16: 20 tensors" in out
    assert "untrained head: score.weight would be drawn at random" in err
    assert "lm_head.weight" in err


def test_a_place_that_is_none_is_exit_code_two(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """A map that leaves parameters out is a wrong request, with every name in the JSON."""
    code, out, err = call(folder, "--device-map", '{"model": "cpu"}', "--json")
    error = json.loads(err)["error"]
    assert (code, out) == (2, "")
    assert error["code"] == "uncovered_parameters"
    assert error["details"]["uncovered"] == ["lm_head.weight"]
