"""The `data` and `base` steps: what a recipe names becomes versions, or an error that names it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import DataError, ModelError, NotFoundError, PickleError, YardError
from modelyard.recipes.hubs import fetch, open_folder
from modelyard.recipes.sources import HubSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.recipes import RunResult
    from modelyard.registry import Yard

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def test_files_become_a_dataset_version(run_recipe: Callable[..., RunResult], yard: Yard, workspace: Path) -> None:
    """The files are committed byte for byte under the names of their splits, and the version says how to read them."""
    result = run_recipe(until="data")
    version = yard.resolve(result.versions["dataset"]["name"])
    assert version.name == "datasets/team/tiny-data@v1"
    assert yard.path(version, "train.csv").read_bytes() == (workspace / "train.csv").read_bytes()
    assert [entry.path for entry in version.files] == ["test.csv", "train.csv"]
    assert "columns" in version.metadata["modelyard.data"]
    assert result.outputs("data")["train_rows"] == 12


def test_a_folder_becomes_a_base_version(run_recipe: Callable[..., RunResult], yard: Yard) -> None:
    """A model folder is committed once as kind `base`, and found again by a second run."""
    first, second = run_recipe(until="base"), run_recipe(until="base")
    assert first.versions["base"]["name"] == "team/base@v1"
    assert yard.resolve("team/base@v1").kind == "base"
    assert second.versions == first.versions
    assert second.did_nothing
    assert not first.did_nothing


def test_a_version_of_the_yard_is_used_as_it_is(run_recipe: Callable[..., RunResult], yard: Yard) -> None:
    """A reference as base, and files of one dataset version as data, commit nothing new."""
    first = run_recipe(until="base")
    result = run_recipe(
        "base=team/base@v1",
        "data.train=datasets/team/tiny-data@v1:train.csv",
        "data.test=datasets/team/tiny-data@v1:test.csv",
        until="base",
    )
    assert result.versions == first.versions
    assert len(yard.versions("team/base")) == len(yard.versions("team/tiny-data", "dataset")) == 1


def test_files_of_two_datasets_become_one_with_lineage(
    run_recipe: Callable[..., RunResult], yard: Yard, workspace: Path
) -> None:
    """A file of a version beside a path is committed with an edge to where it came from."""
    source = yard.resolve(run_recipe(until="data").versions["dataset"]["name"])
    result = run_recipe("data.train=datasets/team/tiny-data@v1:test.csv", "data.repo=team/mixed", until="data")
    mixed = yard.resolve(result.versions["dataset"]["name"])
    assert [(edge.type, edge.version) for edge in mixed.lineage] == [("imported", source.id)]
    assert yard.path(mixed, "train.csv").read_bytes() == (workspace / "test.csv").read_bytes()


def test_a_limit_draws_rows_from_the_whole_file(run_recipe: Callable[..., RunResult], workspace: Path) -> None:
    """A limited view holds rows from everywhere in the file, in their order, and the same ones each time."""
    from modelyard.recipes import load_recipe, rows

    recipe = load_recipe(workspace / "recipe.yaml", overrides=["data.limit.train=6"])
    drawn = [row.source for row in rows.read(workspace / "train.csv", recipe.data, "train")]
    again = [row.source for row in rows.read(workspace / "train.csv", recipe.data, "train")]
    numbers = [int(source.rpartition(":")[2]) for source in drawn]
    assert drawn == again
    assert numbers == sorted(numbers)
    assert len(numbers) == 6
    assert max(numbers) > 7
    assert run_recipe("data.limit.train=6", until="data").outputs("data")["train_rows"] == 6


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.train=./trian.csv", NotFoundError, r"`data.train`: there is no file .*trian.csv"),
        ("data.train=./base", NotFoundError, "is a folder"),
        ("data.train=datasets/team/none:a.csv", NotFoundError, "no dataset `team/none`"),
        ("data.columns.prompt=txt", DataError, "txt"),
        ("base=./bse", NotFoundError, r"`base`: there is no folder .*bse"),
        ("base=team/none", NotFoundError, "no model `team/none`"),
        ("base=package:base", NotFoundError, "package:base"),
        ("data.train=package:support/train", NotFoundError, "package:support/train"),
        ("base=~/model", YardError, "home directory"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_committed(
    run_recipe: Callable[..., RunResult], yard: Yard, override: str, error: type[YardError], message: str
) -> None:
    """A missing file, folder, version, column or package is a typed error that names it; the yard stays empty of models."""
    with pytest.raises(error, match=message):
        run_recipe(override)
    assert yard.repos("model") == []


def test_a_near_match_of_a_file_is_offered(run_recipe: Callable[..., RunResult], workspace: Path) -> None:
    """A mistyped path gets the file beside it that was probably meant."""
    with pytest.raises(NotFoundError) as caught:
        run_recipe("data.train=./tran.csv")
    assert str(workspace / "train.csv") in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.csv is empty"),
        (b"text,category\n", "empty"),
        (b"text,category\nhello,\xff\n", "train.csv"),
        (b"text,category\nhello\n", "train.csv:"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_committed(
    run_recipe: Callable[..., RunResult], yard: Yard, workspace: Path, content: bytes, message: str
) -> None:
    """An empty file, invalid UTF-8 and a short row name the file and the row, and no dataset version is made."""
    (workspace / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        run_recipe()
    assert yard.repos() == []


def _drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def _drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_drop_weights, ModelError),
        (_cut_weights, ModelError),
        (_pickle_weights, PickleError),
        (_drop_config, ModelError),
    ],
)
def test_a_folder_that_is_no_sound_model_is_refused(
    run_recipe: Callable[..., RunResult],
    yard: Yard,
    workspace: Path,
    damage: Callable[[Path], None],
    error: type[YardError],
) -> None:
    """Missing, truncated or pickled weights and a missing config stop the recipe before a base is committed."""
    damage(workspace / "base")
    with pytest.raises(error):
        run_recipe(until="base")
    assert yard.repos("model") == []


def test_an_adapter_is_no_base(run_recipe: Callable[..., RunResult], workspace: Path) -> None:
    """An adapter's folder as the base is refused, with what to do."""
    folder = workspace / "base"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with pytest.raises(ModelError):
        run_recipe(until="base")


def test_a_hub_id_offline_is_a_typed_error() -> None:
    """Offline and not in the cache: the error names the id and HF_HUB_OFFLINE, and says what else would do."""
    for offline in (True, False):
        with pytest.raises(NotFoundError, match=r"hf://org/never-fetched.*HF_HUB_OFFLINE") as caught:
            fetch(HubSource("org/never-fetched", None), offline=offline)
        assert "./folder" in str(caught.value.hint)


def test_a_hub_model_in_the_cache_is_committed_offline(
    run_recipe: Callable[..., RunResult], yard: Yard, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot in the hub's cache, whose files are links, is committed by its commit id; the second run finds it."""
    _fake_cache(tmp_path / "hub", workspace / "base", "org/small", "a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    first = run_recipe("base=hf://org/small", until="base")
    version = yard.resolve(first.versions["base"]["name"])
    assert version.name == "org/small@v1"
    assert version.metadata["source"] == f"hf://org/small@{'a' * 40}"
    assert run_recipe("base=hf://org/small", until="base").did_nothing
    snapshot = tmp_path / "hub" / "models--org--small" / "snapshots" / ("a" * 40)
    assert "model.safetensors" in open_folder(snapshot).names()


def _fake_cache(cache: Path, model: Path, repo: str, commit: str) -> None:
    """Lay a model out as huggingface_hub keeps it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, root / "blobs" / str(number))
        (snapshot / path.name).symlink_to(root / "blobs" / str(number))


def test_a_package_resource_is_found_by_the_resolver(workspace: Path, home: Path, yard: Yard) -> None:
    """`package:NAME` is whatever the `Resources` value says: a folder for the base, a file for the data."""
    from modelyard.recipes import load_recipe, run

    class Shipped:
        def folder(self, name: str) -> Path:
            return workspace / name

        def data(self, name: str) -> Path:
            return workspace / f"{name.partition('?')[0]}.csv"

        def corpora(self, name: str) -> list[str]:
            return []

    recipe = load_recipe(workspace / "recipe.yaml", overrides=["base=package:base", "data.train=package:train?rows=3"])
    result = run(recipe, yard, workspace=workspace, runs=home / "runs", resources=Shipped(), until="base")
    names: dict[str, Any] = {word: found["name"] for word, found in result.versions.items()}
    assert names == {"dataset": "datasets/team/tiny-data@v1", "base": "team/base@v1"}
