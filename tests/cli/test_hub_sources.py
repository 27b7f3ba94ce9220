"""`yard plan`, `tokenize`, `detokenize`, `compare` and `generate` of a model on a hub: the answers are those of its folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tiny_models import make_llama, save_adapter, save_model
from weights.hub_stub import HubStub, Repo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cli.conftest import Outcome

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def hub(desk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub with the model that lies in `./model`, another one, and an adapter that names the first by its id."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folders = {
        "base": desk / "model",
        "other": save_model(desk / "other", make_llama(seed=9)),
        "fr": save_adapter(desk / "fr", desk / "model", seed=1),
    }
    repos = {
        f"org/{name}": {path.name: path.read_bytes() for path in folder.iterdir()} for name, folder in folders.items()
    }
    config = json.loads(repos["org/fr"]["adapter_config.json"]) | {"base_model_name_or_path": "org/base"}
    repos["org/fr"]["adapter_config.json"] = json.dumps(config).encode()
    with HubStub({name: Repo(files) for name, files in repos.items()}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def said(found: dict[str, Any]) -> dict[str, Any]:
    """What a command said of a model, without what it was called."""
    return {key: value for key, value in found.items() if key not in {"model", "source", "version"}}


def test_the_plan_of_a_hub_s_model_is_the_folder_s(hub: HubStub, yard: Callable[..., Outcome]) -> None:
    """What is fetched is planned as the folder is, at a revision too; a wrong one is `hub_revision`."""
    code, found, error = yard("plan", "hf://org/base@main", "--dtype", "bfloat16")
    assert code == 0, error
    assert said(found) == said(yard("plan", "./model", "--dtype", "bfloat16")[1])
    code, _, error = yard("plan", "hf://org/base@none")
    assert (code, error["code"]) == (5, "hub_revision")


def test_tokens_of_a_hub_s_model(hub: HubStub, yard: Callable[..., Outcome]) -> None:
    """Tokenizing and back give what the folder's tokenizer gives."""
    code, found, error = yard("tokenize", "hf://org/base", "where is my card")
    assert code == 0, error
    assert found["tokens"] == yard("tokenize", "./model", "where is my card")[1]["tokens"]
    ids = [str(token["id"]) for token in found["tokens"]]
    assert said(yard("detokenize", "hf://org/base", *ids)[1]) == said(yard("detokenize", "./model", *ids)[1])


def test_models_of_a_hub_are_compared(hub: HubStub, yard: Callable[..., Outcome], desk: Path) -> None:
    """Two models of a hub answer as the folders do, prompt by prompt."""
    (desk / "prompts.txt").write_text("where is my card\none two three\n", "utf-8")
    asked = ["--prompts", "prompts.txt", "--max-new-tokens", "5", "--temperature", "0"]
    code, found, error = yard("compare", "hf://org/base", "hf://org/other", *asked)
    assert code == 0, error
    folders = yard("compare", "./model", "./other", *asked)[1]
    assert [(row["a"], row["b"]) for row in found["rows"]] == [(row["a"], row["b"]) for row in folders["rows"]]


def test_an_adapter_of_a_hub_brings_its_base(hub: HubStub, yard: Callable[..., Outcome]) -> None:
    """`yard generate hf://ADAPTER` fetches the base that the adapter names from the same hub."""
    asked = ["where is my card", "--max-new-tokens", "5", "--temperature", "0"]
    code, found, error = yard("generate", "hf://org/fr", *asked)
    assert code == 0, error
    expected = yard("generate", "./model", *asked, "--adapter", "./fr")[1]
    assert found["answer"] == expected["answer"]
