"""What `Yard.load` and `modelyard.load` take: references, folders and hubs, with adapters and bases from any of them."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import modelyard
from modelyard.errors import IntegrityError, ModelError, NotFoundError, RefError, RequestError
from tiny_models import make_llama, save_adapter, save_model
from weights.hub_stub import COMMIT, HubStub, Repo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.registry import Version
    from registry.registry_helpers import Bench

# PEFT 0.21 reads an attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPT = "where is my card"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters of it, another base and an adapter of that one."""
    root = tmp_path_factory.mktemp("sources")
    base = save_model(root / "base")
    other = save_model(root / "other", make_llama(seed=7))
    return {
        "base": base,
        "other": other,
        "fr": save_adapter(root / "fr", base, seed=1),
        "de": save_adapter(root / "de", base, seed=2),
        "far": save_adapter(root / "far", other, seed=3),
    }


@pytest.fixture
def kept(bench: Bench, folders: dict[str, Path]) -> dict[str, Version]:
    """All of them as versions, adapters with lineage to their bases."""
    made = {name: bench.yard.commit(folders[name], f"team/{name}") for name in ("base", "other")}
    for name, base in (("fr", "base"), ("de", "base"), ("far", "other")):
        made[name] = bench.yard.commit(folders[name], f"team/{name}", from_=[made[base]])
    return made


@pytest.fixture
def stub(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub with the base and an adapter that names it by its id."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    base, adapter = ({path.name: path.read_bytes() for path in folders[name].iterdir()} for name in ("base", "fr"))
    config = json.loads(adapter["adapter_config.json"])
    adapter["adapter_config.json"] = json.dumps({**config, "base_model_name_or_path": "org/base"}).encode()
    with HubStub({"org/base": Repo(base, "private", ("reader",)), "org/fr": Repo(adapter)}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_reader-token")
        yield running


def said(model: Any, **options: Any) -> str:
    return str(model.generate(PROMPT, max_new_tokens=8, temperature=0, **options))


def test_a_folder_and_a_version_are_one_model(bench: Bench, kept: dict[str, Version], folders: dict[str, Path]) -> None:
    """A path, as text or `Path`, loads through a yard or without one; it answers as the version does, and is none."""
    expected = said(bench.yard.load("team/base"))
    for model in (
        bench.yard.load(folders["base"]),
        bench.yard.load(str(folders["base"])),
        modelyard.load(folders["base"]),
        modelyard.load(str(folders["base"])),
    ):
        assert said(model) == expected
        assert model.version is None


def test_a_hub_s_model_loads_with_what_the_settings_say(stub: HubStub, folders: dict[str, Path], bench: Bench) -> None:
    """`hf://` goes to HF_ENDPOINT with HF_TOKEN into HF_HOME, through `modelyard.load` and through a yard alike."""
    from modelyard.app import hub_access
    from modelyard.settings import Settings

    expected = said(modelyard.load(folders["base"]))
    model = modelyard.load("hf://org/base@main")
    assert said(model) == expected
    assert model.folder.name == COMMIT
    yard = bench.open(hub=partial(hub_access, Settings.from_environment()))
    stub.asked.clear()
    assert said(yard.load("hf://org/base")) == expected
    assert stub.asked == ["GET /api/models/org/base"]
    assert said(modelyard.load("hf://org/base", offline=True)) == expected
    with pytest.raises(NotFoundError) as caught:
        modelyard.load("hf://org/base", token="hf_stranger-token")
    assert caught.value.code == "hub_absent"


def test_names_of_yesterday_reach_the_hub(stub: HubStub, bench: Bench) -> None:
    """`use_auth_token` and `local_files_only` are taken with the names of today, and mean the hub's token and cache."""
    with pytest.warns(FutureWarning, match="`use_auth_token` is now `token`"), pytest.raises(NotFoundError) as caught:
        modelyard.load("hf://org/base", use_auth_token="hf_stranger-token")
    assert caught.value.code == "hub_absent"
    stub.asked.clear()
    for load in (modelyard.load, bench.yard.load):
        with pytest.warns(FutureWarning, match="`offline`"), pytest.raises(NotFoundError) as caught:
            load("hf://org/none", local_files_only=True)
        assert caught.value.code == "hub_not_cached"
    assert stub.asked == []


def test_an_adapter_of_a_hub_brings_the_base_that_it_names(
    stub: HubStub, folders: dict[str, Path], bench: Bench
) -> None:
    """Its adapter_config.json names a hub's id, which is fetched from the same hub, through a yard too; one given counts."""
    from modelyard.app import hub_access
    from modelyard.settings import Settings

    expected = said(modelyard.load(folders["fr"], base=folders["base"]))
    yard = bench.open(hub=partial(hub_access, Settings.from_environment()))
    assert said(modelyard.load("hf://org/fr")) == expected
    assert said(yard.load("hf://org/fr", revision="main")) == expected
    stub.asked.clear()
    assert said(yard.load("hf://org/fr", base=folders["base"])) == expected
    assert stub.asked == ["GET /api/models/org/fr"]


def test_a_reference_needs_a_yard(kept: dict[str, Version]) -> None:
    """`modelyard.load` resolves no references: the error says what would."""
    with pytest.raises(RefError, match="team/base@v1") as caught:
        modelyard.load("team/base@v1")
    assert "modelyard.open().load('team/base@v1')" in str(caught.value.hint)


def test_adapters_are_sources_too(bench: Bench, kept: dict[str, Version], folders: dict[str, Path]) -> None:
    """Adapters come from references and folders; each call chooses one, or none, and none is the base."""
    model = bench.yard.load("team/base", adapters={"fr": "team/fr@v1", "de": folders["de"]})
    assert sorted(model.adapters) == ["de", "fr"]
    assert model.version == kept["base"]
    assert said(model, adapter="fr") == said(bench.yard.load("team/fr"))
    assert said(model, adapter="de") == said(bench.yard.load("team/de"))
    assert said(model, adapter=None) == said(bench.yard.load("team/base"))


def test_an_adapter_of_another_base_is_refused(bench: Bench, kept: dict[str, Version]) -> None:
    """By its lineage it was made on other weights: it would answer, and wrongly. A base is no adapter at all."""
    with pytest.raises(ModelError, match="was made on `team/other@v1`") as caught:
        bench.yard.load("team/base", adapters={"far": "team/far"})
    assert caught.value.code == "other_base"
    with pytest.raises(ModelError, match="no adapter"):
        bench.yard.load("team/base", adapters={"other": "team/other"})
    wrong: Any
    for wrong in ({}, ["team/fr"]):
        with pytest.raises(RequestError, match="adapters"):
            bench.yard.load("team/base", adapters=wrong)


def test_a_home_directory_is_no_business_of_a_yard(bench: Bench) -> None:
    """`~` is refused by `Yard.load`, which knows no home; `modelyard.load` puts it in."""
    with pytest.raises(RequestError, match="home directory"):
        bench.yard.load("~/model")
    with pytest.raises(ModelError, match=os.environ["HOME"]):
        modelyard.load("~/model")


def test_stages_are_told_as_they_end(bench: Bench, kept: dict[str, Version]) -> None:
    """`observe` hears `resolve` and `verify` from the yard, with the bytes that were hashed, and the rest from the loader."""
    heard: dict[str, tuple[float, int]] = {}

    def observe(stage: str, seconds: float, size: int) -> None:
        heard[stage] = (seconds, size)

    bench.yard.load("team/base", observe=observe)
    assert {"resolve", "verify", "read"} <= heard.keys()
    assert heard["verify"][1] == sum(entry.size for entry in kept["base"].files)
    assert all(seconds >= 0 for seconds, _ in heard.values())


def hashed(bench: Bench, reference: str, **options: Any) -> int:
    """How many bytes a load hashed."""
    sizes = {}
    bench.yard.load(reference, observe=lambda stage, _seconds, size: sizes.update({stage: size}), **options)
    return int(sizes["verify"])


def test_what_this_boot_verified_is_believed_when_asked(bench: Bench, kept: dict[str, Version]) -> None:
    """`trust_verified` hashes nothing the second time, and again what was touched; without it every byte is hashed."""
    version = kept["base"]
    everything = sum(entry.size for entry in version.files)
    assert hashed(bench, "team/base", trust_verified=True) == everything
    assert hashed(bench, "team/base", trust_verified=True) == 0
    assert hashed(bench, "team/base") == everything
    config = version.file("config.json")
    assert config is not None
    os.utime(bench.store.file_path(config.blake3))
    assert hashed(bench, "team/base", trust_verified=True) == config.size
    assert hashed(bench, "team/base", trust_verified=True) == 0


@pytest.mark.parametrize("at", [20, -1])
def test_a_change_is_found_though_verified_files_are_trusted(bench: Bench, kept: dict[str, Version], at: int) -> None:
    """A byte that was changed, in the header or the weights, with the file's times put back, is damage, not a bad model."""
    assert hashed(bench, "team/base", trust_verified=True)
    entry = kept["base"].file("model.safetensors")
    assert entry is not None
    path = bench.store.file_path(entry.blake3)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(data)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino
    with pytest.raises(IntegrityError, match="damaged"):
        bench.yard.load("team/base", trust_verified=True)


def test_what_was_read_from_a_damaged_file_is_thrown_away(bench: Bench) -> None:
    """A damaged file whose segments are held elsewhere is made anew, and the model that is handed out is the sound one."""
    import torch

    model = make_llama(hidden_size=128, intermediate_size=256)
    bench.yard.commit(save_model(bench.folder / "one", model), "team/model")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    version = bench.yard.commit(save_model(bench.folder / "two", model), "team/model")
    sound = bench.yard.load(version).model.state_dict()
    entry = version.file("model.safetensors")
    assert entry is not None
    path = bench.store.file_path(entry.blake3)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    held = bench.yard.load(version).model.state_dict()
    assert held.keys() == model.state_dict().keys()
    assert all(held[name].equal(tensor) for name, tensor in model.state_dict().items())
    # What was mapped before the damage still sees it: the file that was read now is another one.
    assert not all(held[name].equal(tensor) for name, tensor in sound.items())


def test_a_file_of_a_link_that_somebody_put_in_its_place_is_not_loaded(bench: Bench, kept: dict[str, Version]) -> None:
    """A foreign file in the folder of links is noticed by its inode before anything is read, and the folder made anew."""
    bench.yard.load("team/base")
    linked = bench.root / "links" / kept["base"].id / "config.json"
    text = linked.read_text()
    linked.unlink()
    linked.write_text(text.replace('"hidden_size": 32', '"hidden_size": 64'))
    assert bench.yard.load("team/base").config.hidden_size == 32


def test_a_folder_of_links_is_trusted_when_asked(bench: Bench, kept: dict[str, Version]) -> None:
    """`folder(trust_verified=True)`, which a server uses, finds damage that came after a file was verified; so does a first use."""
    entry = kept["base"].file("config.json")
    assert entry is not None
    folder = bench.yard.folder("team/base", trust_verified=True)
    assert bench.yard.folder("team/base", trust_verified=True) == folder
    path = bench.store.file_path(entry.blake3)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"[")
    with pytest.raises(IntegrityError):
        bench.yard.folder("team/base", trust_verified=True)
    other = kept["other"].file("model.safetensors")
    assert other is not None
    path = bench.store.file_path(other.blake3)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"[")
    with pytest.raises(IntegrityError):
        bench.yard.folder("team/other", trust_verified=True)
