"""Values of load's options that are of another type than they should be: taken for what they mean, or refused by name."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import RefError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading.plan import plan_load
from tiny_models import save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without a head."""
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model: Any = BertModel(BertConfig(vocab_size=400, max_position_embeddings=32, **size))  # type: ignore[arg-type]
    return save_model(tmp_path_factory.mktemp("encoder"), model.eval())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threads", "2"),
        ("threads", True),
        ("allow", 5),
        ("base", 5),
        ("adapters", "./fr"),
        ("adapters", {"fr": 5}),
        ("offload_folder", 5),
        ("cache_dir", 5),
        ("random", "yes"),
        ("training", "no"),
        ("compile", 1),
        ("offline", "x"),
        ("token", 5),
        ("task", 5),
        ("id2label", {"a": "b"}),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_option(folder: Path, option: str, value: Any) -> None:
    """No option ends in a TypeError from inside, or is taken for true because it is not empty."""
    for call in (load, plan_load):
        with pytest.raises(RequestError) as caught:
            call(folder, **{option: value})
        assert caught.value.details["field"] == option


@pytest.mark.parametrize("source", [5, b"model", "", None])
def test_a_source_that_is_none_is_refused(source: Any) -> None:
    """Neither a number nor an empty text is taken for the folder that we are in."""
    with pytest.raises(RequestError) as caught:
        load(source)
    assert caught.value.details["field"] == "source"


def test_what_users_of_torch_have_at_hand_is_taken_for_its_name(folder: Path) -> None:
    """`torch.bfloat16`, a torch.device and a class of transformers are what their names are."""
    from transformers import LlamaModel

    model = load(folder, dtype=torch.bfloat16, device=torch.device("cpu"), model_class=LlamaModel)  # type: ignore[arg-type]
    assert (model.plan.dtype, type(model.model)) == ("bfloat16", LlamaModel)
    assert model.to(torch.device("cpu")) is model  # type: ignore[arg-type]


def test_an_old_name_with_nothing_is_not_given(folder: Path) -> None:
    """`torch_dtype=None` and `quantization_config=None`, as wrappers pass them on, mean what the option's absence means."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(folder, torch_dtype=None, quantization_config=None, use_auth_token=None)
    assert (model.plan.dtype, model.plan.quantization) == ("float32", None)


@pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}])
def test_labels_for_a_model_that_does_not_label_are_refused(
    folder: Path, encoder: Path, labels: dict[str, Any]
) -> None:
    """Nothing in a Llama that generates, or in an encoder without a task, would become of them; with a task it does."""
    for source in (folder, encoder):
        for call in (load, plan_load):
            with pytest.raises(RequestError, match="has none") as caught:
                call(source, **labels)
            assert "task=" in str(caught.value.hint)
        model = load(source, task="text-classification", **labels)
        assert model.model.config.num_labels == 3
        assert model.untrained is not None


def test_a_model_type_is_no_key_to_change(folder: Path) -> None:
    """It would be kept in config.json, and the class would stay what it was."""
    with pytest.raises(RequestError, match="model_type"):
        load(folder, config={"model_type": "bert"})


def test_a_base_and_adapters_may_be_a_hubs(folder: Path, tmp_path: Path) -> None:
    """Their ids are read as ids, not as paths: a wrong one is a wrong id."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    for options in ({"base": "hf://a/../b"}, {"adapters": {"fr": "hf://a/../b"}}):
        for call in (load, plan_load):
            with pytest.raises(RefError, match="not a hub id"):
                call(adapter, **options)
    with pytest.raises(RefError):
        load("hf:org/name")


def test_adapters_leave_the_callers_generators_alone(folder: Path, tmp_path: Path) -> None:
    """PEFT draws an adapter's factors before it reads them; the caller's next random number is the same."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(folder, adapters={"fr": adapter})
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_on_weights_that_are_on_the_disk_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PEFT would move what is not in memory; the modules are named. Without an adapter the same map loads, and says nothing."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    capfd.readouterr()
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    for call in (load, plan_load):
        with pytest.raises(RequestError, match=r"model\.layers on the disk"):
            call(adapter, base=folder, device_map=places)
    assert load(folder, device_map=places).plan.bytes["disk"] > 0
    assert capfd.readouterr() == ("", "")
