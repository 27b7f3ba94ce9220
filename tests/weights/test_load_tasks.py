"""Every task's model is loaded as transformers' own class would load it, with what makes its inputs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading.classes import choose
from modelyard.weights.loading.configs import load_config
from modelyard.weights.tasks import TASKS
from task_models import audio, multimodal, text, timeseries, vision
from tiny_models import make_llama, make_tokenizer, save_model

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS: dict[str, Callable[[Path], Path]] = {
    **text.MODELS,
    **vision.MODELS,
    **audio.MODELS,
    **multimodal.MODELS,
    **timeseries.MODELS,
}


def test_every_task_has_a_model_or_a_reason() -> None:
    """No task of the table is forgotten here."""
    reasons = {**text.REASONS, **vision.REASONS, **audio.REASONS, **multimodal.REASONS, **timeseries.REASONS}
    assert set(TASKS) - set(MODELS) - set(reasons) == set()


@pytest.mark.parametrize("task", sorted(MODELS))
def test_a_task_loads_as_transformers_loads_it_and_saves_the_same(task: str, tmp_path: Path) -> None:
    """By its task's name: the class and every bit are `from_pretrained`'s, nothing is added; saved it comes back the same."""
    folder = MODELS[task](tmp_path / "model")
    model = load(folder, task=task, dtype="float32")
    theirs = type(model.model).from_pretrained(folder, dtype=torch.float32)
    assert model.task == task
    assert type(model.model).__name__ in TASKS[task].architectures()
    assert (model.processor is None) == (TASKS[task].preprocessor == "none")
    assert (model.model.training, model.untrained) == (False, None)
    assert model.load_report.added == model.load_report.dropped == ()
    assert (model.plan.added, model.plan.dropped) == ((), ())
    assert_same(model.model.state_dict(), theirs.state_dict())
    again = load(model.save(tmp_path / "saved"), task=task)
    assert_same(again.model.state_dict(), model.model.state_dict())
    assert type(again.processor) is type(model.processor)
    assert again.model.config.architectures == [type(model.model).__name__]


def test_the_task_is_that_of_the_class_that_the_config_names(tmp_path: Path) -> None:
    """Without a task the model is what it was saved as, whatever else its model type could be."""
    for task in ("token-classification", "multiple-choice", "image-classification", "ctc"):
        folder = MODELS[task](tmp_path / task)
        assert load(folder).task == task


def test_an_alias_and_a_shared_tag_find_the_task(tmp_path: Path) -> None:
    """`ner` is token classification; speech recognition finds a CTC model though its table is another."""
    assert load(MODELS["token-classification"](tmp_path / "ner"), task="ner").task == "token-classification"
    assert load(MODELS["ctc"](tmp_path / "ctc"), task="automatic-speech-recognition").task == "ctc"


def test_an_exact_class_is_built_whatever_the_task(tmp_path: Path) -> None:
    """`model_class` names a class of transformers, or an Auto class; what it leaves of the files is reported."""
    folder = MODELS["fill-mask"](tmp_path / "mlm")
    bare = load(folder, model_class="BertModel")
    assert (type(bare.model).__name__, bare.task) == ("BertModel", "feature-extraction")
    assert any(name.startswith("cls.predictions") for name in bare.load_report.dropped)
    auto = load(folder, model_class="AutoModelForMaskedLM")
    assert (type(auto.model).__name__, auto.task) == ("BertForMaskedLM", "fill-mask")
    with pytest.raises(RequestError, match="no model class `BertModle`") as caught:
        load(folder, model_class="BertModle")
    assert caught.value.hint == "did you mean `BertModel`?"
    with pytest.raises(RequestError, match="built with a `ViTConfig`"):
        load(folder, model_class="ViTModel")
    with pytest.raises(RequestError, match="no class for fill-mask"):
        load(folder, model_class="BertForTokenClassification", task="fill-mask")
    with pytest.raises(RequestError, match="no Auto class `AutoModelForMaskdLM`"):
        load(folder, model_class="AutoModelForMaskdLM")


def test_a_task_that_the_type_cannot_do_says_what_it_can(tmp_path: Path) -> None:
    """There is no Llama for images; the error lists the tasks that there are."""
    folder = save_model(tmp_path / "llama")
    with pytest.raises(ModelError, match="no class of `llama` for image-classification") as caught:
        load(folder, task="image-classification")
    assert caught.value.code == "no_task_class"
    assert "text-generation" in caught.value.details["tasks"]
    with pytest.raises(RequestError, match="no task `token-clasification`") as wrong:
        load(folder, task="token-clasification")
    assert wrong.value.hint == "did you mean `token-classification`?"


def test_the_text_part_of_a_composite_model_stands_alone() -> None:
    """A class of the text part is built with the text part's configuration, as transformers' Auto classes do."""
    config: Any = transformers.Gemma3Config()
    config.architectures = ["Gemma3ForConditionalGeneration"]
    choice = choose(config, "gemma", model_class="Gemma3ForCausalLM")
    assert isinstance(choice.config, transformers.Gemma3TextConfig)
    assert choice.task == "text-generation"


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_an_image_processor_for_torchvision_only_is_named(tmp_path: Path) -> None:
    """What cannot make inputs on this machine is an error with the package to install, not a wrong processor."""
    from modelyard.weights.loading import preprocessors

    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "DINOv3ViTImageProcessor"}')
    transformers.DINOv3ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="for torchvision only") as caught:
        preprocessors.load_preprocessor(tmp_path, "image-feature-extraction")
    assert (caught.value.code, caught.value.hint) == ("needs_torchvision", "pip install torchvision")


def test_a_preprocessor_loads_and_saves_alone(tmp_path: Path) -> None:
    """No model is needed: a folder of a preprocessor's files is enough, for each kind, and what is saved loads again."""
    from modelyard.weights.loading.preprocessors import load_preprocessor, save_preprocessor

    for task in ("fill-mask", "image-classification", "audio-classification", "ctc", "zero-shot-image-classification"):
        folder = MODELS[task](tmp_path / task)
        for path in (*folder.glob("*.safetensors"), folder / "config.json"):
            if task != "fill-mask" or path.suffix == ".safetensors":
                path.unlink()
        found = load_preprocessor(folder)
        save_preprocessor(found, tmp_path / f"{task}-saved")
        again = load_preprocessor(tmp_path / f"{task}-saved")
        assert type(again) is type(found)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        load_preprocessor(tmp_path / "empty")
    assert caught.value.code == "no_preprocessor"


def test_a_configuration_loads_and_saves_alone(tmp_path: Path) -> None:
    """A folder with nothing but config.json is enough; an override changes its key, and the copy says so."""
    from modelyard.weights.loading.configs import save_config

    make_llama().config.save_pretrained(tmp_path / "in")
    config = load_config(tmp_path / "in", num_hidden_layers=1)
    assert (config.num_hidden_layers, config.hidden_size) == (1, 32)
    save_config(config, tmp_path / "out")
    again = load_config(tmp_path / "out").to_dict()
    assert again | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_a_folder_without_a_preprocessor_loads_when_that_is_allowed(tmp_path: Path) -> None:
    """Its absence is an error, unless the caller allows it by name: then there is none."""
    make_llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(tmp_path)
    assert load(tmp_path, allow=("preprocessor",)).processor is None
    make_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).processor is not None


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Two states have the same names and the same bits."""
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
