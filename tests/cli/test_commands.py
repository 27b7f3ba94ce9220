"""Every command on the path of a model's life, with --json, on a tiny model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Outcome
from modelyard.cli.main import run
from processes import YARD

Call = Callable[..., Outcome]


@pytest.fixture
def trained(yard: Call, desk: Path) -> Call:
    """A yard in which the recipe has run: `team/tiny` holds an adapter (v1) and a merged version (v2)."""
    code, result, error = yard("run", "recipe.yaml")
    assert code == 0, error
    assert {word: version["name"] for word, version in result["versions"].items()} == {
        "base": "team/base@v1",
        "dataset": "datasets/team/tiny-data@v1",
        "adapter": "team/tiny@v1",
        "merged": "team/tiny@v2",
    }
    return yard


def test_init_is_safe_to_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`yard init` makes a yard once and finds it the second time."""
    assert run(["init", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["created"] is True
    assert run(["init", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["created"] is False


def test_committing_the_same_folder_again_is_the_same_version(yard: Call) -> None:
    """A commit of bytes that are the branch's head returns that version."""
    first = yard("commit", "./model", "--to", "team/twice", "--kind", "base", "--metadata", "note=mine")[1]
    second = yard("commit", "./model", "--to", "team/twice", "--kind", "base")[1]

    assert (first["id"], first["number"]) == (second["id"], second["number"])
    assert yard("show", "team/twice")[1]["metadata"] == {"note": "mine"}


def test_a_recipe_runs_once(trained: Call) -> None:
    """The second run of a recipe does nothing; a changed value reruns what depends on it and nothing else."""
    assert trained("run", "recipe.yaml")[1]["did_nothing"] is True

    plan = trained("run", "recipe.yaml", "--dry-run", "--set", "evaluate.max_new_tokens=3")[1]
    states = {step["step"]: step["state"] for step in plan["steps"]}
    assert states["train"] == states["merge"] == "cached"
    assert states["evaluate"] == "runs"


def test_looking_at_what_a_run_made(trained: Call) -> None:
    """show, ls, log, lineage and diff agree on what the recipe made."""
    shown = trained("show", "team/tiny@v2")[1]
    assert shown["kind"] == "merged"
    assert {edge["type"] for edge in shown["lineage"]} == {"merged"}
    assert shown["reports"][0]["n"] == 3
    assert [version["number"] for version in trained("ls", "team/tiny")[1]["versions"]] == [2, 1]
    assert {repo["name"] for repo in trained("ls")[1]["repos"]} == {"team/base", "team/tiny", "team/tiny-data"}
    assert {entry["action"] for entry in trained("log", "team/tiny")[1]["log"]} >= {"commit"}
    assert len(trained("lineage", "team/tiny@v2")[1]["nodes"]) == 4
    changed = trained("diff", "team/base", "team/tiny@v2", "--norms")[1]["tensors"]["changed"]
    assert changed
    assert all(tensor["relative_norm"] > 0 for tensor in changed)


def test_promotion_rollback_and_gate(trained: Call) -> None:
    """An alias moves and goes back; a gate without evidence refuses with exit code 7 and the alias stays."""
    assert trained("promote", "team/tiny@v2", "--to", "production")[1]["moved"] is True
    trained("commit", "./model", "--to", "team/tiny", "--kind", "merged")
    assert trained("promote", "team/tiny@v3", "--to", "production")[1]["previous"]["number"] == 2
    assert trained("rollback", "team/tiny", "production")[1]["version"]["number"] == 2

    assert trained("gate", "team/tiny", "production", "--min", "0.5")[1]["gate"]["min"] == 0.5
    code, _, error = trained("promote", "team/tiny@v3", "--to", "production")
    assert (code, error["code"]) == (7, "gate_refused")
    assert trained("show", "team/tiny@production")[1]["number"] == 2
    assert trained("promote", "team/tiny@v2", "--to", "production", "--expect", "team/tiny@v3")[0] == 6


def test_tags_and_deletion(trained: Call) -> None:
    """A tag names a version for good; a version in use is not deleted; a deleted one comes back."""
    assert trained("tag", "team/tiny@v1", "first")[1]["tag"] == "first"
    assert trained("tag", "team/tiny@v2", "first")[0] == 6
    assert trained("delete", "team/base@v1")[0] == 6
    assert trained("delete", "team/tiny@v2", "--force")[0] == 0
    assert trained("show", "team/tiny@v2")[0] == 5
    assert trained("undelete", "team/tiny@v2")[1]["number"] == 2
    assert trained("show", "team/tiny@v2")[0] == 0


def test_the_single_steps_as_commands(trained: Call, desk: Path) -> None:
    """train, merge and eval do a recipe's steps one by one, and the merge gives the recipe's very bytes."""
    columns = ("--column", "prompt=text", "--column", "completion=category")
    options = [f"--set={pair}" for pair in ("max_steps=2", "rank=2", "batch_size=2", "dtype=float32", "threads=1")]
    code, trained_alone, error = trained(
        "train", "--base", "team/base", "--data", "./train.csv", "--to", "team/alone", *columns, *options
    )
    assert code == 0, error
    assert trained_alone["versions"]["adapter"]["name"] == "team/alone@v1"

    merged = trained("merge", "team/tiny@v1", "--to", "team/merged")[1]
    recipes = {entry["path"]: entry["blake3"] for entry in trained("show", "team/tiny@v2")[1]["files"]}
    alone = {entry["path"]: entry["blake3"] for entry in trained("show", merged["name"])[1]["files"]}
    assert merged["certificate"]["method"] == "lora/1"
    assert alone["model.safetensors"] == recipes["model.safetensors"]

    report = trained("eval", merged["name"], "--data", "./test.csv", "--task", "exact-match", *columns)[1]
    assert (report["n"], report["version"]) == (3, merged["name"])


def test_generating_and_talking(
    trained: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generate answers, repeatably with a seed; chat keeps the conversation; both name the version."""
    import io

    options = ("--max-new-tokens", "4", "--temperature", "1", "--seed", "7")
    first = trained("generate", "team/tiny@v2", "where is my card", *options)[1]
    again = trained("generate", "team/tiny@v2", "where is my card", *options)[1]
    assert first["answer"] == again["answer"]
    assert first["version"] == trained("show", "team/tiny@v2")[1]["id"]

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\n"))
    talk = trained("chat", "team/tiny@v2", "--max-new-tokens", "3")[1]
    assert [message["role"] for message in talk["messages"]] == ["user", "assistant"] * 2


def test_checkout_convert_and_doctor(trained: Call, desk: Path) -> None:
    """A version is checked out as a folder, converted to another precision, and examined."""
    assert trained("checkout", "team/tiny@v2", "./out")[0] == 0
    assert (desk / "out" / "config.json").is_file()
    assert trained("checkout", "team/tiny@v2", "./out")[0] == 6

    converted = trained("convert", "team/tiny@v2", "--to", "team/half", "--dtype", "bfloat16")[1]
    assert converted["kind"] == "merged"
    assert trained("show", converted["name"])[1]["lineage"][0]["type"] == "converted"

    assert trained("doctor", "team/tiny@v2")[0] in {0, 3}
    code, found, _ = trained("doctor")
    assert code in {0, 3}
    assert {"packages", "sqlite", "free_space", "yard"} <= {finding["code"] for finding in found["findings"]}


def test_serving_shows_in_ps(trained: Call, desk: Path) -> None:
    """`yard serve` answers and shows in `yard ps` with its version; Ctrl-C ends both."""
    import os
    import signal

    import httpx

    with subprocess.Popen(
        [*YARD, "serve", "team/tiny@main", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        ready = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        asked = {"model": "team/tiny@main", "messages": [{"role": "user", "content": "one"}], "max_tokens": 3}
        answer = httpx.post(f"{ready['url']}/v1/chat/completions", json=asked, timeout=60)
        shown = trained("ps")[1]["deployments"]
        process.send_signal(signal.SIGINT)
        process.wait(60)

    version = trained("show", "team/tiny@v2")[1]["id"]
    assert answer.headers["x-modelyard-version"] == version
    assert [(row["reference"], row["version"], row["state"]) for row in shown] == [("team/tiny@main", version, "ready")]
    assert process.returncode == 0
    assert trained("ps")[1]["deployments"] == []
