"""`yard commit -`, `path`, `log REF`, `--where` and `checkout --no-base`, as typed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tiny_models import save_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    Outcome = tuple[int, Any, dict[str, Any]]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_pipe_is_committed(yard: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """`commit - --name FILE` reads standard input; one without the other is a usage error, and nothing is committed."""
    pipe(monkeypatch, b"one\ntwo\n")
    code, made, _ = yard("commit", "-", "--name", "rows.txt", "--to", "datasets/team/rows")
    assert code == 0
    code, found, _ = yard("path", f"{made['name']}:rows.txt")
    assert (code, Path(found["path"]).read_bytes()) == (0, b"one\ntwo\n")
    assert yard("commit", "-", "--to", "datasets/team/none")[0] == 2
    assert yard("commit", "./train.csv", "--name", "x", "--to", "datasets/team/none")[0] == 2
    assert yard("ls", "datasets/team/none")[0] == 5


def test_a_path_is_printed(yard: Callable[..., Outcome]) -> None:
    """A file's path, or a folder that any library loads; a file that is not there is not found."""
    code, found, _ = yard("path", "team/base")
    assert code == 0
    assert (Path(found["path"]) / "config.json").is_file()
    assert yard("path", "team/base:model.safetensors")[0] == 0
    assert yard("path", "team/base:nothing")[0] == 5


def test_versions_are_filtered_by_metadata(yard: Callable[..., Outcome]) -> None:
    """`ls REPO --where` and `log REPO --where` keep what has the value; without a repo `--where` is a usage error."""
    for seed in ("1", "2"):
        Path("data.txt").write_text(seed)
        assert yard("commit", "./data.txt", "--to", "datasets/team/rows", "--metadata", f"seed={seed}")[0] == 0
    _, found, _ = yard("ls", "datasets/team/rows", "--where", "seed=2")
    assert [version["number"] for version in found["versions"]] == [2]
    _, found, _ = yard("log", "datasets/team/rows", "--where", "seed=1")
    assert [entry["version"] for entry in found["log"]] == ["datasets/team/rows@v1"]
    _, found, _ = yard("log", "datasets/team/rows@main", "--limit", "1")
    assert [entry["version"] for entry in found["log"]] == ["datasets/team/rows@v2"]
    assert yard("ls", "--where", "seed=2")[0] == 2
    assert yard("ls", "datasets/team/rows", "--where", "seed")[0] == 2


def test_an_adapter_checks_out_with_or_without_its_base(yard: Callable[..., Outcome], desk: Path) -> None:
    """By default with its base, whose folder the configuration names; `--no-base` leaves every byte as committed."""
    save_adapter(desk / "adapter", desk / "model")
    committed = (desk / "adapter" / "adapter_config.json").read_bytes()
    assert yard("commit", "./adapter", "--to", "team/adapter", "--from", "finetuned=team/base")[0] == 0
    assert yard("checkout", "team/adapter", "./out")[0] == 0
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (Path(config["base_model_name_or_path"]) / "model.safetensors").is_file()
    assert yard("checkout", "team/adapter", "./plain", "--no-base")[0] == 0
    assert Path("plain/adapter_config.json").read_bytes() == committed
    assert not Path("plain/base").exists()
