"""Unmodified Hub clients, in a process of their own, against the Hub app on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

import modelyard
from modelyard import Yard, hub
from modelyard.cli.main import run
from modelyard.weights.inspect import inspect
from processes import YARD
from tiny_models import save_model

CLIENT = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
api = HfApi()
def refused(call, error):
    try:
        call()
    except error:
        return True
    return False
folder = snapshot_download("team/notes", revision="main")
print(json.dumps({
    "files": sorted(api.list_repo_files("team/notes")),
    "sha": api.model_info("team/notes").sha,
    "pinned": api.model_info("team/notes", revision="v1").sha,
    "text": open(folder + "/nested/a.txt").read(),
    "big": __import__("hashlib").sha256(open(hf_hub_download("team/notes", "big.bin"), "rb").read()).hexdigest(),
    "branches": [ref.name for ref in api.list_repo_refs("team/notes").branches],
    "tags": [ref.name for ref in api.list_repo_refs("team/notes").tags],
    "info": [item.path for item in api.get_paths_info("team/notes", ["big.bin", "none"])],
    "no_file": refused(lambda: hf_hub_download("team/notes", "none.txt"), EntryNotFoundError),
    "no_repo": refused(lambda: api.model_info("team/none"), RepositoryNotFoundError),
    "no_revision": refused(lambda: api.model_info("team/notes", revision="gone"), RevisionNotFoundError),
    "models": [model.id for model in api.list_models()],
}))
"""


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    """A yard with one small model repo of two versions."""
    folder = tmp_path / "notes"
    (folder / "nested").mkdir(parents=True)
    (folder / "nested" / "a.txt").write_text("first", "utf-8")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 50_000)
    opened = modelyard.open(tmp_path / "yard", create=True)
    first = opened.commit(folder, to="team/notes")
    opened.tag(first, "one")
    (folder / "nested" / "a.txt").write_text("second", "utf-8")
    opened.commit(folder, to="team/notes")
    return opened


@pytest.fixture
def endpoint(yard: Yard) -> Iterator[str]:
    """The Hub app on a free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(hub.create(yard), http="h11", log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def test_a_model_is_imported_from_a_hub(endpoint: str, yard: Yard, tmp_path: Path) -> None:
    """`yard import hf://org/name` fetches a model over the Hub's protocol; its weights are the very bytes of the source."""
    source = yard.commit(save_model(tmp_path / "model"), to="team/base", kind="base")
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [*YARD, "import", "hf://team/base@v1", "--to", "mine/base", "--yard", str(tmp_path / "mine"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    imported = modelyard.open(tmp_path / "mine").resolve("mine/base@v1")
    assert imported.kind == "base"
    assert imported.file("model.safetensors") == source.file("model.safetensors")
    assert imported.metadata["source"] == f"hf://team/base@{source.id.short}"


def test_an_unmodified_client_reads_a_repo(endpoint: str, yard: Yard, tmp_path: Path) -> None:
    """huggingface_hub lists, resolves and downloads a version byte for byte, and gets its own errors for what is missing."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr

    assert json.loads(done.stdout.splitlines()[-1]) == {
        "files": ["big.bin", "nested/a.txt"],
        "sha": yard.resolve("team/notes").id.short,
        "pinned": yard.resolve("team/notes@v1").id.short,
        "text": "second",
        "big": hashlib.sha256(bytes(range(256)) * 50_000).hexdigest(),
        "branches": ["main"],
        "tags": ["one"],
        "info": ["big.bin"],
        "no_file": True,
        "no_repo": True,
        "no_revision": True,
        "models": ["team/notes"],
    }


LOAD = """
import sys, modelyard
model = modelyard.load("hf://team/base@v1")
print(model.folder.name, repr(model.generate("where is my card", max_new_tokens=6, temperature=0)))
try:
    modelyard.load("hf://team/base@v9")
except modelyard.YardError as error:
    print(error.code, error.hint)
try:
    modelyard.load("hf://team/bas")
except modelyard.YardError as error:
    print(error.code)
"""


def test_a_model_loads_from_a_hub_of_ours(endpoint: str, yard: Yard, tmp_path: Path) -> None:
    """`modelyard.load("hf://...")` with HF_ENDPOINT at a yard's own hub answers as the version does; what is missing is told apart."""
    source = yard.commit(save_model(tmp_path / "model"), to="team/base", kind="base")
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answer, revision, repo = done.stdout.splitlines()[-3:]
    expected = yard.load(source).generate("where is my card", max_new_tokens=6, temperature=0)
    assert answer == f"{source.id.short} {expected!r}"
    assert revision.startswith("hub_revision ")
    assert repo == "hub_absent"


def test_a_model_on_a_hub_is_inspected_by_its_headers(
    endpoint: str, yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`weights.hub.open_remote` gives a hub's model as files of which only what is asked for is fetched."""
    from modelyard.weights import hub as hubs

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    source = yard.commit(save_model(tmp_path / "model"), to="team/base", kind="base")
    with hubs.open_remote("hf://team/base", endpoint=endpoint, token=False) as files:
        assert files.label == f"hf://team/base@{source.id.short}"
        assert set(files.names()) >= {"config.json", "model.safetensors", "tokenizer.json"}
        assert inspect(files).parameters == inspect(yard.files(source)).parameters
        assert files.fetched < sum(entry.size for entry in source.files)
    with pytest.raises(modelyard.YardError) as caught:
        hubs.open_remote("hf://team/base@v9", endpoint=endpoint, token=False)
    assert caught.value.code == "hub_revision"


def test_yard_inspect_asks_a_hub_as_every_command_does(
    endpoint: str, yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`yard inspect hf://...` finds the hub by HF_ENDPOINT and the commit by its revision, and names what is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    source = yard.commit(save_model(tmp_path / "model"), to="team/base", kind="base")
    assert run(["inspect", "hf://team/base@v1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == inspect(yard.files(source)).parameters
    assert run(["inspect", "hf://team/base@v9", "--json"]) == 5
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "hub_revision"
