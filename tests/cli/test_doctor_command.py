"""`yard doctor` on checkpoints: levels, hints, exit codes, the lineage's base, mending and timing."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelyard.cli import main as program
from modelyard.cli.main import run
from tiny_models import make_llama, save_adapter, save_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Call = Callable[..., tuple[int, Any, dict[str, Any]]]


def test_a_sound_folder(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing wrong is said in one line, and exits 0."""
    capsys.readouterr()
    assert run(["doctor", "./model"]) == 0
    assert capsys.readouterr().out == "ok      nothing is wrong with ./model\n"


def test_findings_stand_under_their_levels(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors come first, each with its code and what mends it; an error exits 1."""
    (desk / "model" / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (desk / "model" / "generation_config.json").unlink()
    tensors = load_file(desk / "model" / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, desk / "model" / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert run(["doctor", "./model"]) == 1
    lines = capsys.readouterr().out.splitlines()
    headings = [line.split(" ")[0] for line in lines if not line.startswith(" ")]
    assert headings == ["error", "warning", "info"]
    assert any(line.startswith("  nonfinite: ") for line in lines)
    assert "      yard doctor ./model --fix --to ./MENDED" in lines


def test_exit_codes_and_json(yard: Call, desk: Path) -> None:
    """Warnings alone exit 3, notes alone 0; JSON has every finding's fields."""
    (desk / "model" / "old.safetensors").write_bytes((desk / "model" / "model.safetensors").read_bytes())
    code, found, _ = yard("doctor", "./model")
    assert code == 3
    assert [finding["code"] for finding in found["findings"]] == ["stray_weights"]
    assert found["findings"][0].keys() == {"level", "code", "message", "hint"}
    (desk / "model" / "old.safetensors").unlink()
    (desk / "model" / "generation_config.json").unlink()
    assert yard("doctor", "./model")[0] == 0


def test_mending(yard: Call, desk: Path) -> None:
    """--fix writes a new folder, says what it did, and exits with the state of the copy; the folder is not made twice."""
    (desk / "model" / "old.safetensors").write_bytes((desk / "model" / "model.safetensors").read_bytes())
    code, done, _ = yard("doctor", "./model", "--fix", "--to", "./mended")
    assert code == 0
    assert (done["before"][0]["code"], done["after"], done["left"]) == ("stray_weights", [], ["old.safetensors"])
    assert (desk / "model" / "old.safetensors").exists()
    assert yard("doctor", "./mended")[0] == 0
    assert yard("doctor", "./model", "--fix", "--to", "./mended")[0] == 6


def test_there_is_nothing_to_mend(yard: Call, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--fix of a sound folder says so, writes nothing and exits 0; of one that no copy mends, it exits as the doctor does."""
    assert run(["doctor", "./model", "--fix", "--to", "./mended"]) == 0
    said = capsys.readouterr()
    assert said.out == "ok      nothing is wrong with ./model\n"
    assert "nothing to mend: mended is not written" in said.err
    code, found, _ = yard("doctor", "./model", "--fix", "--to", "./mended")
    assert (code, found["to"], found["applied"], found["after"]) == (0, None, [], [])
    tensors = load_file(desk / "model" / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, desk / "model" / "model.safetensors", {"format": "pt"})
    code, found, _ = yard("doctor", "./model", "--fix", "--to", "./mended")
    assert (code, [finding["code"] for finding in found["after"]]) == (1, ["nonfinite"])
    assert not (desk / "mended").exists()


@pytest.mark.parametrize("words", [["--fix"], ["--to", "./x"], ["--fix", "--to", "./x", "--load"]])
def test_options_that_do_not_go_together(yard: Call, words: list[str]) -> None:
    """--fix and --to go together, and not with --load; without a target there is nothing to mend."""
    assert yard("doctor", "./model", *words)[0] == 2
    assert yard("doctor", *words)[0] == 2


def test_loading_is_timed(yard: Call, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--load times a folder and a version, whose bytes are hashed too; the table names the slowest."""
    stages = [stage["name"] for stage in yard("doctor", "./model", "--load")[1]["stages"]]
    assert "verify" not in stages
    timed = yard("doctor", "team/base", "--load")[1]
    assert "verify" in [stage["name"] for stage in timed["stages"]]
    assert next(stage["bytes"] for stage in timed["stages"] if stage["name"] == "verify") > 0
    assert run(["doctor", "./model", "--load", "--dtype", "float16"]) == 0
    out = capsys.readouterr().out
    assert "STAGE" in out
    assert "slowest: " in out


@pytest.mark.row(25)
def test_an_adapters_base_is_the_lineages(yard: Call, desk: Path) -> None:
    """An adapter's base comes from its lineage; another one given is found by its digest."""
    save_adapter(desk / "adapter", desk / "model")
    assert yard("commit", "./adapter", "--to", "team/adapter", "--from", "finetuned=team/base")[0] == 0
    assert yard("doctor", "team/adapter")[1]["findings"] == []
    save_model(desk / "other", make_llama(seed=4))
    assert yard("import", "./other", "--to", "team/other", "--kind", "base")[0] == 0
    code, found, _ = yard("doctor", "team/adapter", "--base", "team/other")
    assert (code, [finding["code"] for finding in found["findings"]]) == (1, ["base_differs"])
    assert yard("doctor", "team/adapter", "--base", "team/base")[0] == 0


def test_a_folders_base_is_the_one_that_its_configuration_names(yard: Call, desk: Path) -> None:
    """An adapter in a folder is held against the folder that it names, where there is one."""
    adapter = save_adapter(desk / "adapter", desk / "model")
    path = adapter / "adapter_model.safetensors"
    moved = {name.replace("layers.1.", "layers.9."): value for name, value in load_file(path).items()}
    save_file(moved, path)
    assert [finding["code"] for finding in yard("doctor", "./adapter")[1]["findings"]] == ["target_missing"]


def test_the_base_of_a_model_lends_its_template(yard: Call, desk: Path) -> None:
    """A version's own base, by lineage, is what its template is compared with."""
    shutil.copytree(desk / "model", desk / "tuned")
    (desk / "tuned" / "chat_template.jinja").write_text("{{ messages[1].content }}<|end|>")
    assert (
        yard("commit", "./tuned", "--to", "team/tuned", "--kind", "finetuned", "--from", "finetuned=team/base")[0] == 0
    )
    code, found, _ = yard("doctor", "team/tuned")
    assert (code, [finding["code"] for finding in found["findings"]]) == (3, ["template_changed"])


def test_hints_name_commands_that_exist() -> None:
    """Every `yard ...` in a hint of the doctor is a command of the program."""
    folder = Path(str(program.__file__)).parents[1] / "weights"
    sources = [*(folder / "doctor").glob("*.py"), folder / "times.py", folder / "checks.py", folder / "content.py"]
    trees = [ast.parse(path.read_text("utf-8")) for path in sources]
    prose = {id(node.value) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    texts = [
        str(node.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in prose
    ]
    named = {word for text in texts for word in re.findall(r"\byard ([a-z]+)", text)}
    assert {"doctor", "convert", "merge", "train"} <= named
    assert named - set(program.COMMANDS) == set()
