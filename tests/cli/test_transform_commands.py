"""`yard convert`, `merge`, `combine` and `extract`, as typed: on folders, on versions, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from adapter_kinds import KINDS
from modelyard.cli.main import run

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

Outcome = tuple[int, Any, dict[str, Any]]
Yard = Callable[..., Outcome]


@pytest.fixture
def pair(yard: Yard) -> Path:
    """A base and its adapter as folders, and as `team/small` and `team/lora`."""
    folder = Path("kind")
    KINDS["linear-float32-float32"](folder)
    assert yard("commit", "./kind/base", "--to", "team/small", "--kind", "base")[0] == 0
    assert yard("commit", "./kind/adapter", "--to", "team/lora", "--kind", "adapter", "--from", "team/small")[0] == 0
    return folder


def test_a_plan_writes_nothing(yard: Yard) -> None:
    """`convert --plan` says what would become of each tensor, needs no target and leaves the folder as it was."""
    before = sorted(Path().iterdir())
    code, plan, _ = yard("convert", "./model", "--plan", "--dtype", "bfloat16", "--dtype-of", "*norm*=float32")
    assert code == 0
    kinds = {("norm" in each["name"], each["after"]) for each in plan["tensors"]}
    assert kinds == {(True, "F32"), (False, "BF16")}
    assert sorted(Path().iterdir()) == before


def test_a_version_becomes_a_version(yard: Yard) -> None:
    """A cast version has the lineage edge, the source's kind, and its certificate in `yard show`."""
    code, made, _ = yard("convert", "team/base", "--to", "team/half", "--dtype", "bfloat16")
    assert (code, made["kind"], made["sources"]) == (0, "base", ["team/base@v1"])
    code, shown, _ = yard("show", "team/half")
    (certificate,) = shown["certificates"]
    assert (code, certificate["method"], certificate["exactness"]) == (0, "cast/1", "everywhere")
    assert [edge["type"] for edge in shown["lineage"]] == ["converted"]


def test_pickles_go_to_folders_only(yard: Yard) -> None:
    """`--to-format bin` into a repo is refused with the way out; into a folder it comes back bit for bit."""
    code, _, error = yard("convert", "team/base", "--to", "team/pickled", "--to-format", "bin")
    assert (code, error["code"], error["hint"]) == (1, "pickle_in_yard", "write it to a folder: --to ./FOLDER")
    assert yard("convert", "team/base", "--to", "./bin", "--to-format", "bin")[0] == 0
    assert yard("convert", "./bin", "--to", "./back")[0] == 0
    old, new = load_file("model/model.safetensors"), load_file("back/model.safetensors")
    assert {name: tensor.tobytes() for name, tensor in old.items()} == {k: t.tobytes() for k, t in new.items()}


def test_folders_need_no_yard(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where everything is a folder, no yard is opened and none is made."""
    monkeypatch.setenv("MODELYARD_HOME", str(desk / "nowhere"))
    assert run(["convert", "./model", "--to", "./shards", "--shard-size", "40KB"]) == 0
    assert len(list(Path("shards").glob("model-*.safetensors"))) > 1
    assert not (desk / "nowhere").exists()
    assert capsys.readouterr().out == "shards\n"


def test_an_adapter_is_merged_and_measured(yard: Yard, pair: Path) -> None:
    """`yard merge` finds the base by lineage; the certificate holds what was measured, and says so to a person."""
    code, made, _ = yard("merge", "team/lora", "--to", "team/merged")
    assert (code, made["kind"], made["sources"]) == (0, "merged", ["team/lora@v1", "team/small@v1"])
    checks = made["certificate"]["checks"]
    assert {each["holds"] for each in checks} == {True}
    assert max(each["max_difference"] for each in checks) < 1e-4
    assert any(each["tokens"] and each["equal_tokens"] == each["tokens"] for each in checks)
    assert any(each.get("kl") is not None for each in checks)


def test_a_folder_is_merged_as_peft_does(yard: Yard, pair: Path) -> None:
    """An adapter folder needs `--base`, and mode peft says that its bits are this machine's."""
    code, _, error = yard("merge", "./kind/adapter", "--to", "./merged")
    assert (code, error["hint"]) == (1, "--base REFERENCE")
    code, made, _ = yard(
        "merge", "./kind/adapter", "--base", "team/small", "--to", "./merged", "--mode", "peft", "--no-check"
    )
    assert (code, made["to"], made["certificate"]["exactness"]) == (0, "merged", "this machine")
    assert json.loads(Path("merged/certificate.json").read_text())["operation"] == "merge"


def test_the_same_merge_again_is_the_same_version(yard: Yard, pair: Path) -> None:
    """Nothing is numbered twice."""
    first = yard("merge", "team/lora", "--to", "team/merged", "--no-check")[1]
    again = yard("merge", "team/lora", "--to", "team/merged", "--no-check", "--threads", "1")[1]
    assert again["id"] == first["id"]
    assert again["number"] == 1


def test_adapters_are_combined(yard: Yard, pair: Path) -> None:
    """Two halves of one adapter are the adapter; the result is an adapter of the same base."""
    code, made, _ = yard("combine", "team/lora", "team/lora", "--weights", "0.5,0.5", "--to", "team/both")
    assert (code, made["kind"]) == (0, "adapter")
    edges = {edge["type"] for edge in yard("show", "team/both")[1]["lineage"]}
    assert edges == {"merged", "finetuned"}
    whole = yard("merge", "team/lora", "--to", "./whole", "--no-check")[0]
    halves = yard("merge", "team/both", "--to", "./halves", "--no-check")[0]
    assert (whole, halves) == (0, 0)
    old, new = load_file("whole/model.safetensors"), load_file("halves/model.safetensors")
    assert max(abs(tensor - new[name]).max() for name, tensor in old.items()) < 1e-6


def test_an_adapter_is_extracted(yard: Yard, pair: Path) -> None:
    """What a merge added is found again as an adapter of its rank."""
    assert yard("merge", "team/lora", "--to", "team/merged", "--no-check")[0] == 0
    code, made, _ = yard("extract", "team/small", "team/merged", "--rank", "3", "--to", "team/found")
    assert (code, made["kind"]) == (0, "adapter")
    assert yard("merge", "team/found", "--to", "./again", "--no-check")[0] == 0
    assert yard("path", "team/merged")[0] == 0
    old, new = (
        load_file(yard("path", "team/merged")[1]["path"] + "/model.safetensors"),
        load_file("again/model.safetensors"),
    )
    assert max(abs(tensor - new[name]).max() for name, tensor in old.items()) < 1e-5


def test_whole_models_are_merged_by_a_mergekit_file(yard: Yard, pair: Path) -> None:
    """Models in the file are versions or folders; each is an edge of the result."""
    Path("merge.yml").write_text(
        "merge_method: linear\nmodels:\n"
        "  - {model: team/small, parameters: {weight: 0.5}}\n  - {model: ./kind/base, parameters: {weight: 0.5}}\n"
    )
    code, made, _ = yard("merge", "--config", "merge.yml", "--to", "team/soup")
    assert (code, made["kind"], made["sources"]) == (0, "merged", ["team/small@v1", "kind/base"])
    old, new = (
        load_file("kind/base/model.safetensors"),
        load_file(yard("path", "team/soup")[1]["path"] + "/model.safetensors"),
    )
    assert all((tensor == new[name]).all() for name, tensor in old.items())


def test_an_export_is_a_version(yard: Yard) -> None:
    """What another engine reads is committed as `exported`, with its edge and what was measured of it."""
    code, made, _ = yard("export", "team/base", "--format", "gguf", "--type", "F32", "--to", "team/gguf")
    assert (code, made["kind"], made["certificate"]["operation"]) == (0, "exported", "export")
    assert [entry["path"] for entry in yard("show", "team/gguf")[1]["files"]] == ["model.gguf"]
    assert [edge["type"] for edge in yard("show", "team/gguf")[1]["lineage"]] == ["exported"]
    assert made["certificate"]["checks"]


def test_what_is_not_offered_says_why(yard: Yard) -> None:
    """A way of quantizing that is slower, larger and worse than another is refused with that reason."""
    code, _, error = yard("quantize", "team/base", "--method", "torchao-int4", "--to", "team/int4")
    assert code == 2
    assert "slower and larger" in error["message"]
    assert yard("ls", "team/int4")[0] == 5


def test_a_folder_shows_its_certificate(yard: Yard, capsys: pytest.CaptureFixture[str]) -> None:
    """`yard show ./FOLDER` prints how the folder was made and which files are other ones now; without a certificate, what to type."""
    assert yard("convert", "./model", "--to", "./half", "--dtype", "bfloat16")[0] == 0
    code, shown, _ = yard("show", "./half")
    assert (code, shown["certificates"][0]["method"]) == (0, "cast/1")
    assert run(["show", "./half"]) == 0
    assert "convert by cast/1: the same bits everywhere" in capsys.readouterr().out
    with Path("half/model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert yard("show", "./half")[1]["changed"] == ["model.safetensors"]
    code, _, error = yard("show", "./model")
    assert (code, "certificate.json" in error["message"]) == (5, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("merge",), 2, "give an adapter"),
        (("merge", "--config", "m.yml"), 2, "--to TARGET"),
        (("convert", "./model"), 2, "say where to"),
        (("convert", "./model", "--to", "./out"), 1, "nothing else was asked for"),
        (("convert", "./nowhere", "--to", "./out", "--dtype", "bfloat16"), 5, "no folder or file"),
        (("convert", "team/base", "--to", "hf://org/name", "--dtype", "bfloat16"), 1, "a hub's model"),
        (("combine", "team/base", "--weights", "one", "--to", "team/x"), 1, "no list of numbers"),
        (("merge", "team/base"), 1, "is no adapter"),
    ],
)
def test_what_cannot_be_done_is_said(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Wrong use has the exit code of its kind, names what is wrong, and leaves nothing behind."""
    before = sorted(desk.iterdir())
    assert run(list(arguments)) == code
    assert said in capsys.readouterr().err
    assert sorted(desk.iterdir()) == before
