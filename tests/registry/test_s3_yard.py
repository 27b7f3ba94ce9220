"""A yard whose bytes are on S3: made, opened again from its folder, used, and seen from another machine."""

from __future__ import annotations

import json
import stat
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import s3_case
from modelyard.app import open_yard
from modelyard.errors import AuthError, ConflictError, InputError, IntegrityError, NotFoundError
from modelyard.settings import Places, Settings
from modelyard.store.s3_location import S3Location
from services import fresh_postgres


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """What the surroundings say of a yard that is still to be made."""
    keys = s3_case.endpoint().credentials
    found = Settings(
        home=tmp_path / "home",
        author="ana",
        store_url=str(s3_case.location()),
        access_key=keys.access_key,
        secret_key=keys.secret_key,
    )
    if request.param == "sqlite":
        yield found
        return
    with fresh_postgres() as url:
        yield replace(found, catalog_url=url)


def bare(settings: Settings) -> Settings:
    """The same surroundings later: only the folder and the key are given."""
    return replace(settings, store_url=None, catalog_url=None)


def model_folder(folder: Path, value: float = 1.0) -> Path:
    path = folder / uuid.uuid4().hex
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"weight": np.full((3, 4), value, np.float32)}, path / "model.safetensors")
    return path


def test_a_yard_on_s3_is_opened_from_its_folder(settings: Settings, tmp_path: Path) -> None:
    """The folder records where store and catalog are, for its owner alone; what was committed is resolved and read after that."""
    version = open_yard(settings, create=True).commit(model_folder(tmp_path), "team/model")
    recorded = settings.home / "yard.json"
    assert stat.S_IMODE(recorded.stat().st_mode) == 0o600
    assert Places.read(settings.home) == Places(settings.store_url, settings.catalog_url)
    assert (settings.secret_key or "") not in recorded.read_text()
    again = open_yard(bare(settings))
    assert again.resolve("team/model@main").id == version.id
    assert json.loads(again.files(version).read("config.json")) == {"model_type": "llama"}
    assert not (settings.home / "files").exists()


def test_a_version_on_s3_becomes_a_folder(settings: Settings, tmp_path: Path) -> None:
    """Its folder holds hard links into the cache, and a checkout holds copies, with the bytes that were committed."""
    source = model_folder(tmp_path, 2.5)
    yard = open_yard(settings, create=True)
    yard.commit(source, "team/model")
    folder = yard.folder("team/model")
    assert load_file(folder / "model.safetensors")["weight"][0, 0] == 2.5
    assert (folder / "model.safetensors").stat().st_nlink == 2
    yard.checkout("team/model", tmp_path / "out")
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_another_machine_sees_the_same_yard(settings: Settings, tmp_path: Path) -> None:
    """A second home, with a cache of its own, over the same store and catalog reads what the first wrote."""
    first = open_yard(settings, create=True)
    url = settings.catalog_url or f"sqlite:///{settings.home / 'catalog.db'}"
    other = open_yard(replace(settings, home=tmp_path / "other", catalog_url=url), create=True)
    version = first.commit(model_folder(tmp_path), "team/model")
    assert other.resolve("team/model").id == version.id
    assert load_file(other.folder("team/model") / "model.safetensors")["weight"].shape == (3, 4)
    second = other.commit(model_folder(tmp_path, 3.0), "team/model")
    assert first.resolve("team/model").number == second.number == 2


def test_damage_on_s3_is_found_before_it_is_used(settings: Settings, tmp_path: Path) -> None:
    """A file that was changed in the bucket is an error for whoever loads the version, and for nobody else."""
    yard = open_yard(settings, create=True)
    damaged = yard.commit(model_folder(tmp_path), "team/model")
    yard.commit(model_folder(tmp_path, 2.0), "team/other")
    entry = next(entry for entry in damaged.files if entry.path == "model.safetensors")
    store = s3_case.make_store(tmp_path, S3Location.parse(settings.store_url or "").prefix.rstrip("/"))
    s3_case.overwrite(store, "files", entry.blake3, bytes(entry.size))
    with pytest.raises(IntegrityError, match=entry.blake3[:12]):
        yard.folder(damaged)
    yard.folder("team/other")


def test_a_key_is_needed_and_never_recorded(settings: Settings) -> None:
    """Without a key nothing is made, and the hint names the variables."""
    with pytest.raises(AuthError) as caught:
        open_yard(replace(settings, secret_key=None), create=True)
    assert caught.value.hint == "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert not settings.home.exists()


def test_a_yard_is_not_pointed_elsewhere(settings: Settings, tmp_path: Path) -> None:
    """Other bytes than those that the catalog knows are refused, whether the yard is on S3 or in its folder."""
    open_yard(settings, create=True)
    for create in (False, True):
        with pytest.raises(ConflictError, match="keeps its bytes at"):
            open_yard(replace(settings, store_url=str(s3_case.location())), create=create)
    local = replace(bare(settings), home=tmp_path / "local")
    open_yard(local, create=True)
    with pytest.raises(ConflictError, match="in that folder"):
        open_yard(replace(local, store_url=settings.store_url), create=True)


def test_a_wrong_place_is_not_recorded(settings: Settings) -> None:
    """A bucket that is not there, or a URL that is none, leaves no record behind."""
    nowhere = (settings.store_url or "").replace("s3://yards", "s3://no-such-bucket")
    with pytest.raises(NotFoundError, match="no-such-bucket"):
        open_yard(replace(settings, store_url=nowhere), create=True)
    with pytest.raises(InputError):
        open_yard(replace(settings, store_url="http://bucket/yard"), create=True)
    assert Places.read(settings.home) == Places()


def test_a_region_of_the_surroundings_does_not_move_a_yard(settings: Settings) -> None:
    """What is recorded is complete: another default endpoint or region in the environment changes nothing."""
    open_yard(settings, create=True)
    open_yard(replace(bare(settings), region="eu-west-1", endpoint="http://127.0.0.1:1"))


def test_settings_read_the_standard_names(tmp_path: Path) -> None:
    """Keys, region and endpoint come from the usual variables; the secret is not shown."""
    found = Settings.from_environment(
        {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_SESSION_TOKEN": "token",
            "AWS_DEFAULT_REGION": "r",
            "AWS_ENDPOINT_URL": "http://host:1",
            "MODELYARD_STORE": "s3://bucket",
            "MODELYARD_CACHE": "20GB",
        },
        home=tmp_path,
    )
    assert (found.access_key, found.secret_key, found.session_token) == ("key", "hush", "token")
    assert (found.region, found.endpoint, found.store_url) == ("r", "http://host:1", "s3://bucket")
    assert found.cache_bytes == 20 * 10**9
    assert "hush" not in repr(found)
    assert "token" not in repr(found).replace("session_token", "")
    with pytest.raises(InputError, match="MODELYARD_CACHE"):
        Settings.from_environment({"MODELYARD_CACHE": "much"}, home=tmp_path)
