"""A hub's model: what is fetched, to which commit, and one error for each reason why it cannot be had.

The hub is `hub_stub`, which answers with the real one's headers; the client is huggingface_hub itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from modelyard.errors import AuthError, InputError, ModelError, NotFoundError, RefError, YardError
from modelyard.weights import hub
from modelyard.weights.files import FolderFiles
from modelyard.weights.hub.cache import choose_preprocessors, choose_weights
from weights.hub_stub import COMMIT, OTHER, HubStub, Repo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

READER, STRANGER = "hf_reader-token", "hf_stranger-token"
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b"{}",
    "chat_template.jinja": b"x",
    "additional_chat_templates/rag.jinja": b"y",
    "model-1.safetensors": b"1",
    "model-2.safetensors": b"2",
    "model.fp16.safetensors": b"3",
    "model.safetensors.index.json": INDEX,
    "pytorch_model.bin": b"p",
    "pytorch_model.bin.index.json": b"{}",
    "modeling_own.py": b"print()",
    "onnx/model.onnx": b"o",
    "small-q4.gguf": b"GGUF",
}
WANTED = [
    "additional_chat_templates/rag.jinja",
    "chat_template.jinja",
    "config.json",
    "model-1.safetensors",
    "model-2.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "tokenizer.json",
]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    """A hub with a model of each kind; this process may ask it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    repos = {
        "org/open": Repo(FILES, branches={"main": COMMIT, "release": COMMIT, "refs/pr/1": COMMIT}),
        "org/gated": Repo(FILES, "gated", ("reader",)),
        "org/private": Repo(FILES, "private", ("reader",)),
        "org/disabled": Repo(FILES, "disabled"),
        "org/pickled": Repo({"config.json": b"{}", "pytorch_model.bin": b"p"}),
        "org/quantized": Repo({"config.json": b"{}", "q4.gguf": b"GGUF"}),
        "org/torn": Repo({"config.json": b"{}", "model.safetensors.index.json": INDEX, "model-1.safetensors": b"1"}),
    }
    with HubStub(repos) as running:
        yield running


@pytest.fixture
def access(stub: HubStub, tmp_path: Path) -> dict[str, Any]:
    """How this test asks: nobody in particular, into a cache of its own."""
    return {"endpoint": stub.url, "cache_dir": tmp_path / "hub", "token": False}


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("hf://org/name", "org/name", None, None),
        ("hf://name", "name", None, None),
        ("hf://org/na.me_x-1@v1.0", "org/na.me_x-1", "v1.0", None),
        ("hf://org/name@refs/pr/1", "org/name", "refs/pr/1", None),
        ("hf://org/name/a-q4.gguf@main", "org/name", "main", "a-q4.gguf"),
    ],
)
def test_an_id_is_read_and_written_again(text: str, repo: str, revision: str | None, file: str | None) -> None:
    """An id has a repo, perhaps a GGUF file, perhaps a revision; written again it is the same text."""
    found = hub.parse(text)
    assert (found.repo, found.revision, found.file) == (repo, revision, file)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf:org/name", "hf://", "hf://org/", "hf:///name", "hf://org/name@", "hf://org/name/model.bin", "hf://../name",
        "hf://org/na..me", "hf://org/name@a..b", "hf://org/name@/x", "hf://org/name@x/", "hf://-org/name", "hf://org/name@a b",
        "hf://org/name\n", "https://hub/org/name", "hf://org/name/x/y.gguf", "hf://org/name@a@b", "hf://org/name.",
    ],
)  # fmt: skip
def test_what_is_no_id_is_refused_before_anything_is_asked(text: str) -> None:
    """Anything but the three written forms is an error that shows them."""
    with pytest.raises(RefError) as caught:
        hub.fetch(text)
    assert "hf://org/name" in str(caught.value.hint)


def test_config_preprocessors_and_safetensors_are_fetched(access: dict[str, Any]) -> None:
    """What is loaded is fetched, of every modality; pickles, code, other formats and second copies of the weights are not."""
    folder = hub.fetch("hf://org/open", **access)
    assert folder.name == COMMIT
    assert FolderFiles(folder).names() == WANTED


def test_without_weights_the_small_files_come_alone(access: dict[str, Any]) -> None:
    """`weights=False` fetches what a configuration or a preprocessor needs."""
    folder = hub.fetch("hf://org/open", weights=False, **access)
    assert FolderFiles(folder).names() == [name for name in WANTED if not name.endswith(".safetensors")]


def test_a_named_gguf_file_is_fetched_alone(stub: HubStub, access: dict[str, Any]) -> None:
    """`hf://org/name/file.gguf` is that file and no other; a name that is not there gets the near match."""
    path = hub.fetch("hf://org/open/small-q4.gguf", **access)
    assert path.read_bytes() == b"GGUF"
    assert [entry.name for entry in path.parent.iterdir()] == ["small-q4.gguf"]
    with pytest.raises(NotFoundError, match="no such file") as caught:
        hub.fetch("hf://org/open/smal-q4.gguf", **access)
    assert caught.value.code == "hub_file"
    assert "hf://org/open/small-q4.gguf" in str(caught.value.hint)


def test_what_is_in_the_cache_is_not_fetched_again(stub: HubStub, access: dict[str, Any]) -> None:
    """With everything there, only the revision is asked for; a whole commit id asks nobody at all."""
    hub.fetch("hf://org/open", **access)
    stub.asked.clear()
    folder = hub.fetch("hf://org/open", **access)
    assert stub.asked == ["GET /api/models/org/open"]
    stub.asked.clear()
    assert hub.fetch("hf://org/open", revision=COMMIT, **access) == folder
    assert stub.asked == []


def test_the_cache_is_the_one_of_every_tool(access: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub finds what was fetched, offline, by branch and by commit."""
    from huggingface_hub import hf_hub_download

    folder = hub.fetch("hf://org/open@release", **access)
    for revision in ("release", COMMIT):
        found = hf_hub_download(
            "org/open", "config.json", revision=revision, cache_dir=access["cache_dir"], local_files_only=True
        )
        assert found == str(folder / "config.json")


@pytest.mark.parametrize(
    ("source", "token", "error", "code", "hint"),
    [
        ("hf://org/none", False, AuthError, "hub_private", "yard login"),
        ("hf://org/none", READER, NotFoundError, "hub_absent", "check the id"),
        ("hf://org/private", False, AuthError, "hub_private", "yard login"),
        ("hf://org/private", STRANGER, NotFoundError, "hub_absent", "yard login"),
        ("hf://org/gated", False, AuthError, "hub_gated", "yard login"),
        ("hf://org/gated", STRANGER, AuthError, "hub_gated", "accept its terms at {url}/org/gated"),
        ("hf://org/open", "hf_nobody-token", AuthError, "hub_token", "yard login"),
        ("hf://org/open@releese", False, NotFoundError, "hub_revision", "hf://org/open@release"),
        ("hf://org/open@" + OTHER, False, NotFoundError, "hub_revision", "main"),
        ("hf://org/disabled", False, NotFoundError, "hub_disabled", "another model"),
        ("hf://org/pickled", False, ModelError, "hub_no_safetensors", "yard convert"),
        ("hf://org/quantized", False, ModelError, "hub_no_safetensors", "hf://org/quantized/q4.gguf"),
        ("hf://org/torn", False, NotFoundError, "hub_file", "owner"),
    ],
)
def test_each_reason_is_an_error_of_its_own(
    stub: HubStub, access: dict[str, Any], source: str, token: Any, error: type[YardError], code: str, hint: str
) -> None:
    """Absent, private, gated, a bad token, a wrong revision, disabled, without usable weights: a code and a next step each."""
    with pytest.raises(error) as caught:
        hub.fetch(source, **{**access, "token": token})
    assert caught.value.code == code
    assert source.partition("@")[0] in caught.value.message
    assert hint.format(url=stub.url) in str(caught.value.hint)
    assert "token" not in json.dumps(caught.value.details)


@pytest.mark.parametrize("source", ["hf://org/gated", "hf://org/private"])
def test_who_may_read_it_gets_it(access: dict[str, Any], source: str) -> None:
    """With the token of an account that was let in, a gated and a private model are fetched."""
    assert FolderFiles(hub.fetch(source, **{**access, "token": READER})).names() == WANTED


def test_offline_the_cache_is_all_there_is(stub: HubStub, access: dict[str, Any]) -> None:
    """Offline: what is cached whole is given, and nobody is asked; what is not is an error that says what is there."""
    folder = hub.fetch("hf://org/open", **access)
    stub.asked.clear()
    assert hub.fetch("hf://org/open", offline=True, **access) == folder
    for source, words in (
        ("hf://org/gated", "is not in the hub cache"),
        ("hf://org/open@release", f"`hf://org/open` is there, at {COMMIT[:12]}"),
    ):
        with pytest.raises(NotFoundError, match=words) as caught:
            hub.fetch(source, offline=True, **access)
        assert caught.value.code == "hub_not_cached"
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"without model-2\.safetensors") as caught:
        hub.fetch("hf://org/open", offline=True, **access)
    assert caught.value.details["missing"] == ["model-2.safetensors"]
    assert stub.asked == []


def test_offline_small_files_are_no_model(access: dict[str, Any]) -> None:
    """What was fetched without weights is enough for a configuration offline, and not for a model."""
    folder = hub.fetch("hf://org/open", weights=False, **access)
    assert hub.fetch("hf://org/open", offline=True, weights=False, **access) == folder
    with pytest.raises(NotFoundError, match=r"model-1\.safetensors"):
        hub.fetch("hf://org/open", offline=True, **access)


def test_an_endpoint_that_nobody_answers_is_named(stub: HubStub, access: dict[str, Any]) -> None:
    """A hub that cannot be reached is told apart from one that says no: the endpoint is named, and what to check."""
    with pytest.raises(InputError) as caught:
        hub.fetch("hf://org/open", **{**access, "endpoint": "http://127.0.0.1:9"})
    assert caught.value.code == "hub_unreachable"
    assert "http://127.0.0.1:9" in caught.value.message
    assert "HF_ENDPOINT" in str(caught.value.hint)
    with pytest.raises(InputError) as caught:
        hub.fetch("hf://org/open", **{**access, "endpoint": f"{stub.url}/elsewhere"})
    assert caught.value.code == "hub_failed"
    assert "HF_ENDPOINT" in str(caught.value.hint)


def test_a_revision_is_said_once(access: dict[str, Any]) -> None:
    """`revision=` beside another one in the id is refused; the same one, or one alone, is taken."""
    with pytest.raises(RefError, match="names a revision"):
        hub.fetch("hf://org/open@main", revision="release", **access)
    assert hub.fetch("hf://org/open@release", revision="release", **access).name == COMMIT


def test_the_real_client_judges_the_stub(stub: HubStub, tmp_path: Path) -> None:
    """The stub's answers are what huggingface_hub raises its own errors for."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(endpoint=stub.url, token=False)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/private")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/open", revision="none")
    with pytest.raises(GatedRepoError):
        snapshot_download("org/gated", endpoint=stub.url, token=STRANGER, cache_dir=tmp_path)
    assert HfApi(endpoint=stub.url, token=READER).whoami()["name"] == "reader"


def test_an_index_chooses_its_shards() -> None:
    """Shards are those of the index, missing ones included; without an index, the one file that is loaded."""
    assert choose_weights(["model-1.safetensors"], json.loads(INDEX)) == ["model-1.safetensors", "model-2.safetensors"]
    assert choose_weights(["adapter_model.safetensors", "x/model.safetensors"], None) == ["adapter_model.safetensors"]
    assert choose_weights(["consolidated.safetensors"], None) == ["consolidated.safetensors"]


def test_preprocessors_of_every_modality_are_small_files_of_the_repo() -> None:
    """Tokenizers, image, audio and video preprocessors, and the folders that transformers keeps some of them in."""
    names = [
        "added_tokens.json", "merges.txt", "source.spm", "spiece.model", "qwen.tiktoken", "video_preprocessor_config.json",
        "qformer_tokenizer/tokenizer.json", "LICENSE.txt", "README.md", "processor_config.json",
    ]  # fmt: skip
    others = [
        "flax_model.msgpack",
        "tf_model.h5",
        "flax_model.msgpack.index.json",
        "img/x.json",
        "run.sh",
        "data.parquet",
    ]
    assert choose_preprocessors(names + others) == sorted(names)
