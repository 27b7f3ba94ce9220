"""Bad input gets a clear error and loses nothing: what the first issue lists, at the command line."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import modelyard
from cli.conftest import Outcome
from modelyard.settings import Settings

Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _nothing_is_lost(yard: Call) -> Iterator[None]:
    """After every refusal the yard holds what it held: the same versions, each byte as its digest says."""
    before = yard("ls", "team/base")[1]
    yield
    after = yard("ls", "team/base")[1]
    assert after["versions"] == before["versions"]
    opened = modelyard.open()
    for entry in opened.resolve("team/base@v1").files:
        opened.path("team/base@v1", entry.path)


def test_an_unknown_reference_gets_its_near_match(yard: Call) -> None:
    """A mistyped repo is not found, and the near match is named."""
    code, _, error = yard("show", "team/bsae")

    assert code == 5
    assert "team/base" in error["hint"]


def test_an_unknown_version_names_what_there_is(yard: Call) -> None:
    """A ref that the repo does not have is not found, and names one that it has."""
    code, _, error = yard("show", "team/base@mian")

    assert code == 5
    assert "main" in error["hint"]


def test_a_folder_that_is_no_model_says_what_is_missing(yard: Call, desk: Path) -> None:
    """A folder without a configuration or weights is refused as a base, by name."""
    (desk / "notes").mkdir()
    (desk / "notes" / "todo.txt").write_text("buy milk", "utf-8")
    code, _, error = yard("import", "./notes", "--to", "team/base")

    assert code == 1
    assert "config.json" in error["message"] + error.get("hint", "")


def test_truncated_weights_are_refused(yard: Call, desk: Path) -> None:
    """A weight file that lost its end is refused before anything is stored."""
    weights = desk / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    code, _, error = yard("commit", "./model", "--to", "team/base")

    assert code == 1
    assert "model.safetensors" in error["message"]


def test_a_hostile_header_is_refused_by_our_own_reader(yard: Call, desk: Path) -> None:
    """A header that claims to be longer than the file is refused before any library reads it."""
    (desk / "model" / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    code, _, error = yard("commit", "./model", "--to", "team/base")

    assert code == 1
    assert "model.safetensors" in error["message"]


def test_pickles_are_refused_until_converted(yard: Call, desk: Path) -> None:
    """Pickled weights are refused with the command that converts them, and that command makes them acceptable."""
    import torch
    from safetensors.torch import load_file

    weights = desk / "model" / "model.safetensors"
    torch.save(load_file(weights), desk / "model" / "pytorch_model.bin")
    weights.unlink()
    code, _, error = yard("commit", "./model", "--to", "team/pickled")
    assert (code, error["code"]) == (1, "pickle_refused")
    assert "yard convert" in error["hint"]

    assert yard("convert", "./model", "--to", "./converted")[0] == 0
    assert yard("commit", "./converted", "--to", "team/pickled", "--kind", "base")[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.csv", b"text,label\na,b\n", "category"),
        ("train.csv", b"", "train.csv"),
        ("train.csv", b"text,category\nfine,ok\n\xff\xfe,bad\n", "3"),
    ],
    ids=["missing-column", "empty-file", "invalid-utf-8"],
)
def test_unusable_data_is_named_before_any_compute(
    yard: Call, desk: Path, name: str, content: bytes, said: str
) -> None:
    """A missing column, an empty file and invalid UTF-8 are errors that name file and row, and nothing was trained."""
    (desk / name).write_bytes(content)
    code, _, error = yard("run", "recipe.yaml")

    assert code == 1
    assert name in error["message"]
    assert said in error["message"]
    assert [repo["name"] for repo in yard("ls")[1]["repos"]] == ["team/base"]


def test_rows_without_a_trainable_token_are_refused(yard: Call, desk: Path) -> None:
    """Rows whose answers were all cut off by max_length are refused in the preflight."""
    (desk / "train.csv").write_text("text,category\n" + "one two three " * 20 + ",x\n", "utf-8")
    code, _, error = yard("run", "recipe.yaml", "--set", "train.max_length=8")

    assert code == 1
    assert "no row has a token to train" in error["message"]


def test_an_unknown_recipe_key_gets_its_near_match(yard: Call) -> None:
    """A mistyped option is named with its path and the near match."""
    code, _, error = yard("run", "recipe.yaml", "--set", "train.lerning_rate=1e-4")

    assert code == 2
    assert "lerning_rate" in str(error)
    assert "learning_rate" in str(error)


def test_lora_targets_that_match_nothing_are_refused(yard: Call) -> None:
    """A LoRA target that names no module is refused before training, by name."""
    code, _, error = yard("run", "recipe.yaml", "--set", "train.targets=[q_prj]")

    assert code == 2
    assert "q_prj" in error["message"]
    assert "q_proj" in str(error)


def test_a_second_run_of_the_same_recipe_is_told_who_runs(yard: Call, desk: Path) -> None:
    """While one process runs a recipe, another gets a busy error that names it."""
    from modelyard.recipes import load_recipe, run
    from modelyard.recipes.events import Event

    opened = modelyard.open()
    outcomes: list[Outcome] = []

    def interrupt(event: Event) -> None:
        if not outcomes:
            outcomes.append(yard("run", "recipe.yaml"))

    runs = Settings.from_environment().home / "runs"
    run(load_recipe(desk / "recipe.yaml"), opened, workspace=desk, runs=runs, progress=interrupt, until="data")

    code, _, error = outcomes[0]
    assert code == 9
    assert str(os.getpid()) in str(error)


def test_a_full_disk_is_a_typed_error_and_reads_go_on(
    yard: Call, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that does not fit ends with exit code 10; what was committed before is still there and readable."""
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("MODELYARD_HOME", str(disk / "yard"))
            assert yard("commit", "./model", "--to", "team/small", "--kind", "base")[0] == 0
            (desk / "model" / "more.bin.txt").write_bytes(os.urandom(4 << 20))
            code, _, error = yard("commit", "./model", "--to", "team/small")
            assert (code, error["code"]) == (10, "no_space")
            assert [version["number"] for version in yard("ls", "team/small")[1]["versions"]] == [1]
            assert yard("checkout", "team/small@v1", str(tmp_path / "out"))[0] == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
