"""The single steps as functions: they give typed results and share their outcomes with recipes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from modelyard.errors import DataError, InputError, ModelError, NotFoundError, PickleError, RecipeError, RefError
from modelyard.recipes import DataSection, load_recipe
from modelyard.recipes.cards import card
from modelyard.recipes.operations import evaluate_reference, import_model, train_only
from modelyard.training.config import TrainConfig

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.recipes import RunResult
    from modelyard.registry import Yard

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

TASK = {"name": "exact-match", "max_new_tokens": 4, "batch_size": 4}


def test_a_merge_by_hand_is_the_recipe_s(finished: RunResult, yard: Yard) -> None:
    """Merging the recipe's adapter again gives the version that is there; into another repo, the same weights."""
    merged = yard.resolve(finished.versions["merged"]["name"])
    again = yard.merge("team/tiny@adapter", check=False)
    assert again.version is not None
    assert again.version.id == merged.id
    assert again.sources == (finished.versions["adapter"]["name"], "team/base@v1")
    other = yard.merge("team/tiny@adapter", "team/other", threads=2, check=False)
    assert other.version is not None
    assert other.version.file("model.safetensors") == merged.file("model.safetensors")
    assert other.to_dict()["certificate"]["operation"] == "merge"


def test_the_recipe_keeps_the_merge_s_certificate(finished: RunResult, yard: Yard) -> None:
    """What the merge did and how far the merged model is from base and adapter is beside the version; no gate sees it."""
    (certificate,) = yard.certificates(finished.versions["merged"]["name"])
    assert certificate["exactness"] == "everywhere"
    assert certificate["checks"]
    assert all(check["holds"] for check in certificate["checks"])


def test_only_an_adapter_is_merged(finished: RunResult, yard: Yard) -> None:
    """A base or merged version is refused, with what would do."""
    with pytest.raises(ModelError, match="is no adapter"):
        yard.merge("team/base")


def test_an_evaluation_is_not_done_twice(finished: RunResult, yard: Yard) -> None:
    """What the recipe evaluated is found, with the dataset's own columns; another task is evaluated and then found too."""
    first = evaluate_reference(yard, "team/tiny", data="datasets/team/tiny-data", task=TASK)
    assert first.cached
    assert first.report == finished.reports["result"]["report"]
    assert first.dataset == "datasets/team/tiny-data@v1"
    other: dict[str, Any] = {"data": "datasets/team/tiny-data@v1:train.csv", "task": "label"}
    assert not evaluate_reference(yard, "team/tiny@adapter", **other).cached
    found = evaluate_reference(yard, "team/tiny@adapter", **other)
    assert found.cached
    assert found.n == 12
    assert found.to_dict()["interval"] == list(found.interval)


def test_an_evaluation_of_a_plain_file_is_kept_without_a_dataset(
    finished: RunResult, yard: Yard, workspace: Path
) -> None:
    """A file that is in no yard makes a report, which names no dataset version."""
    result = evaluate_reference(
        yard,
        "team/tiny",
        data="test.csv",
        task=TASK,
        options={"columns": {"prompt": "text", "completion": "category"}, "limit": {"test": 2}},
        workspace=workspace,
    )
    assert result.dataset is None
    assert result.n == 2
    assert yard.report(result.report)["dataset"] == ""


@pytest.mark.parametrize(
    ("data", "options", "task", "error", "message"),
    [
        ("./none.csv", {}, TASK, NotFoundError, "none.csv"),
        ("datasets/team/tiny-data:tets.csv", {}, TASK, NotFoundError, "tets.csv"),
        ("datasets/team/none", {}, TASK, NotFoundError, "team/none"),
        ("datasets/team/tiny-data", {"colums": {}}, TASK, RecipeError, "colums"),
        ("datasets/team/tiny-data", {"columns": {"prompt": "txt"}}, TASK, DataError, "txt"),
        ("datasets/team/tiny-data", {}, "exact_mach", RecipeError, "exact_mach"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    finished: RunResult,
    yard: Yard,
    workspace: Path,
    data: str,
    options: Any,
    task: Any,
    error: type[Exception],
    message: str,
) -> None:
    """A missing file or dataset, an unknown option, column or task is a typed error that names it."""
    with pytest.raises(error, match=message):
        evaluate_reference(yard, "team/tiny", data=data, task=task, options=options, workspace=workspace)


def test_training_alone_commits_an_adapter(yard: Yard, workspace: Path, home: Path) -> None:
    """`train_only` ends with the adapter, without test rows, merge or evaluation."""
    result = train_only(
        yard,
        base="./base",
        data=DataSection(train="./train.csv", columns={"prompt": "text", "completion": "category"}),
        to="team/alone",
        config=TrainConfig(rank=2, max_steps=1, batch_size=2, dtype="float32", threads=1),
        workspace=workspace,
        runs=home / "runs",
    )
    assert list(result.versions) == ["base", "dataset", "adapter"]
    assert yard.resolve("team/alone@adapter").id == result.versions["adapter"]["id"]


def test_a_folder_is_imported_with_its_kind(yard: Yard, workspace: Path) -> None:
    """A model folder becomes a base, and says where it came from; a folder that is none is refused."""
    version = import_model(yard, str(workspace / "base"), to="team/imported")
    assert version.kind == "base"
    assert version.metadata["source"] == str(workspace / "base")
    with pytest.raises(NotFoundError, match="no folder"):
        import_model(yard, str(workspace / "none"), to="team/x")
    (workspace / "empty").mkdir()
    (workspace / "empty" / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="no model"):
        import_model(yard, str(workspace / "empty"), to="team/x")
    (workspace / "empty" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(PickleError):
        import_model(yard, str(workspace / "empty"), to="team/x")
    with pytest.raises(NotFoundError, match="hf://org/none"):
        import_model(yard, "hf://org/none", to="team/x", offline=True)
    with pytest.raises((InputError, RefError)):
        import_model(yard, "hf:org/none", to="team/x")
    assert [repo.name for repo in yard.repos()] == ["team/imported"]


def test_a_card_says_what_the_yard_knows(finished: RunResult, yard: Yard) -> None:
    """The card of a merged version has its base, its dataset, its results and the training options."""
    text = card(yard, "team/tiny", license="mit")
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "team/base"
    assert finished.versions["merged"]["id"][:40] in text
    assert "learning_rate" in text
    assert "datasets/team/tiny-data@v1" in text
    assert card(yard, "team/base")


def test_the_recipe_that_made_a_dataset_need_not_be_known(finished: RunResult, yard: Yard, workspace: Path) -> None:
    """A dataset version says how it is read: the same columns and limits as in the recipe."""
    shutil.rmtree(workspace)
    result = evaluate_reference(yard, "team/base", data="datasets/team/tiny-data", task=TASK, again=True)
    assert not result.cached
    assert result.report == finished.reports["base"]["report"]


def test_every_option_that_changes_weights_is_in_the_key(workspace: Path) -> None:
    """The options that a training key leaves out are exactly those that `TrainConfig.key` leaves out."""
    from modelyard.recipes.steps.train import deciding

    config = load_recipe(workspace / "recipe.yaml").train
    changed = {"save_every": 7, "threads": 3, "dropout": 0.5, "seed": 9, "rank": 3, "max_length": 64}
    for name, value in changed.items():
        other = config.model_copy(update={name: value})
        assert (deciding(other) == deciding(config)) == (other.key == config.key), name
