"""Options of a load, old names of them, and overrides of the configuration: taken, or refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading.legacy import (
    ENVIRONMENT,
    DeprecatedNameWarning,
    accept,
    accept_environment,
    modern_class,
    modern_names,
)
from tiny_models import save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

KNOWN = {"source", "dtype", "quantization", "attention", "token", "offline", "allow", "num_labels"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("old", "value", "modern"),
    [
        ("torch_dtype", torch.bfloat16, {"dtype": "bfloat16"}),
        ("torch_dtype", "float16", {"dtype": "float16"}),
        ("load_in_8bit", True, {"quantization": "bnb-8bit"}),
        ("load_in_4bit", True, {"quantization": "bnb-4bit"}),
        ("load_in_8bit", False, {}),
        ("attn_implementation", "eager", {"attention": "eager"}),
        ("use_auth_token", "hf_x", {"token": "hf_x"}),
        ("low_cpu_mem_usage", True, {}),
        ("safe_serialization", True, {}),
        ("trust_remote_code", False, {}),
        ("local_files_only", True, {"offline": True}),
        ("ignore_mismatched_sizes", True, {"allow": ("mismatched",)}),
        ("pretrained_model_name_or_path", "./bert", {"source": "./bert"}),
    ],
)
def test_a_name_of_yesterday_is_taken_with_the_modern_one_shown(old: str, value: Any, modern: dict[str, Any]) -> None:
    """Each old keyword becomes today's option, and the warning names it; what is always so needs no option."""
    with pytest.warns(DeprecatedNameWarning, match=f"`{old}` is") as said:
        assert accept({old: value}, known=KNOWN) == modern
    for option in modern:
        assert f"`{option}`" in str(said[0].message)


def test_a_token_is_not_shown_in_a_warning() -> None:
    """The modern name is, the secret is not."""
    with pytest.warns(DeprecatedNameWarning) as said:
        accept({"use_auth_token": "hf_secret"}, known=KNOWN)
    assert "hf_secret" not in str(said[0].message)


@pytest.mark.parametrize(
    ("old", "value"),
    [("safe_serialization", False), ("trust_remote_code", True), ("from_tf", True), ("low_cpu_mem_usage", False)],
)
def test_what_is_no_longer_possible_is_refused_by_name(old: str, value: bool) -> None:
    """A value that cannot be honoured is an error that says why, never dropped silently."""
    with pytest.raises(RequestError, match=f"`{old}={value}` is not possible") as caught:
        accept({old: value}, known=KNOWN)
    assert caught.value.hint == f"leave `{old}` out"


def test_an_unknown_option_has_a_near_match(folder: Path) -> None:
    """A mistyped option is an error before anything is read."""
    with pytest.raises(RequestError, match="no option `num_lables`") as caught:
        load(folder, num_lables=3)
    assert caught.value.hint == "did you mean `num_labels`?"


def test_old_names_work_in_a_load(folder: Path) -> None:
    """The keywords of a program written for transformers 4 load what they mean."""
    with pytest.warns(DeprecatedNameWarning):
        model = load(pretrained_model_name_or_path=folder, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True)
    assert model.model.dtype == torch.bfloat16


def test_an_option_given_by_both_names_is_refused(folder: Path) -> None:
    """Two values for one option are an error; so is no model at all."""
    with pytest.warns(DeprecatedNameWarning), pytest.raises(RequestError, match="`dtype` is given twice"):
        load(folder, dtype="float32", torch_dtype="bfloat16")
    with pytest.warns(DeprecatedNameWarning), pytest.raises(RequestError, match="model is given twice"):
        load(folder, pretrained_model_name_or_path=folder)
    with pytest.raises(RequestError, match="no model is given"):
        load()


def test_vision2seq_is_image_text_to_text() -> None:
    """The class that transformers dropped is named with the one that took its place."""
    with pytest.warns(DeprecatedNameWarning, match="AutoModelForImageTextToText"):
        assert modern_class("AutoModelForVision2Seq") == "AutoModelForImageTextToText"
    assert modern_class("BertModel") == "BertModel"


def test_old_variables_of_the_environment_become_the_modern_ones() -> None:
    """`TRANSFORMERS_CACHE` and the like are read where the modern variable is not set, and say which that is."""
    with pytest.warns(DeprecatedNameWarning, match="TRANSFORMERS_CACHE is now HF_HUB_CACHE"):
        assert accept_environment({"TRANSFORMERS_CACHE": "/c"}) == {"HF_HUB_CACHE": "/c"}
    assert accept_environment({"TRANSFORMERS_CACHE": "/c", "HF_HUB_CACHE": "/d"}) == {}
    assert accept_environment({"PATH": "/bin"}) == {}
    assert set(ENVIRONMENT.values()) == {"HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"}


def test_a_token_in_the_environment_is_not_shown_in_a_warning() -> None:
    """The variable's new name is shown, its value is not."""
    with pytest.warns(DeprecatedNameWarning, match="HUGGING_FACE_HUB_TOKEN is now HF_TOKEN") as said:
        assert accept_environment({"HUGGING_FACE_HUB_TOKEN": "hf_secret"}) == {"HF_TOKEN": "hf_secret"}
    assert "hf_secret" not in str(said[0].message)


def test_the_configuration_may_be_overridden_key_by_key(folder: Path) -> None:
    """A key that changes no shape changes the model; one that changes shapes is caught by the audit; an unknown one is named."""
    assert load(folder, config={"rms_norm_eps": 0.5}).model.model.norm.variance_epsilon == 0.5
    with pytest.raises(ModelError, match="9 missing"):
        load(folder, config={"num_hidden_layers": 3})
    with pytest.raises(ModelError, match="9 unexpected"):
        load(folder, config={"num_hidden_layers": 1})
    fewer = load(folder, config={"num_hidden_layers": 1}, allow="unexpected")
    assert len(fewer.model.model.layers) == 1
    with pytest.raises(RequestError, match="no key `rms_norm_epz`") as caught:
        load(folder, config={"rms_norm_epz": 0.5})
    assert caught.value.hint == "did you mean `rms_norm_eps`?"


def test_training_is_the_only_way_out_of_eval_mode(folder: Path, tmp_path: Path) -> None:
    """Whatever is built is in eval mode, with `training=True` in training mode; an adapter's weights then train."""
    adapter = save_adapter(tmp_path, folder)
    assert not load(folder).model.training
    assert load(folder, training=True).model.training
    assert not load(adapter).model.training
    assert [name for name, each in load(adapter).model.named_parameters() if each.requires_grad] == []
    trained = load(adapter, training=True).model
    assert trained.training
    assert {"lora_A", "lora_B"} == {
        name.split(".")[-3] for name, each in trained.named_parameters() if each.requires_grad
    }


def test_a_hub_id_without_its_scheme_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`org/name` is a folder that is not here; the hint shows how a hub's repo is written. A path has no revision."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no folder `org/name`") as caught:
        load("org/name")
    assert caught.value.hint == "a hub's repo is written hf://org/name"
    with pytest.raises(RequestError, match="which has no revisions"):
        load(save_model(tmp_path / "model"), revision="main")


def test_the_stages_of_a_load_are_reported(folder: Path) -> None:
    """`observe` is told each stage once, in order; reading has the bytes of the weight files."""
    from modelyard.weights.times import STAGES

    seen: list[tuple[str, float, int]] = []
    load(folder, observe=lambda *stage: seen.append(stage))
    names = [name for name, _, _ in seen]
    assert names == ["read", "place", "preprocessor", "audit"]
    assert [STAGES.index(name) for name in names] == sorted(STAGES.index(name) for name in names)
    assert seen[0][2] == (folder / "model.safetensors").stat().st_size
    again: list[str] = []
    load(folder, dtype="bfloat16", observe=lambda name, *_: again.append(name))
    assert again == ["read", "cast", "preprocessor", "audit"]


def test_the_plan_of_a_load_is_in_the_model(folder: Path) -> None:
    """`Model.plan` says what was done: class, task, dtype, casts, bytes."""
    model = load(folder, dtype="bfloat16")
    assert (model.plan.model_class, model.plan.task, model.plan.dtype) == (
        "LlamaForCausalLM",
        "text-generation",
        "bfloat16",
    )
    assert model.load_report.casts == {"float32 -> bfloat16": 21}
    assert model.load_report.seconds > 0


def test_old_names_of_some_options_are_replaced() -> None:
    """Who reads some options before `load` does sees these by their modern names; the rest is left to `load`, twice is an error."""
    given = {"dtype": "float32", "ignore_mismatched_sizes": True, "use_auth_token": "hf_x"}
    with pytest.warns(DeprecatedNameWarning, match="`use_auth_token` is now `token`"):
        found = modern_names(given, of={"token"})
    assert found == {"dtype": "float32", "ignore_mismatched_sizes": True, "token": "hf_x"}
    with pytest.warns(DeprecatedNameWarning), pytest.raises(RequestError, match="`token` is given twice"):
        modern_names({"token": "a", "use_auth_token": "b"}, of={"token"})
