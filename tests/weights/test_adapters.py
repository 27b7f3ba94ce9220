"""Adapters on models of any task: attached whole, switched per call, and never quietly left out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading import adapters
from tiny_models import make_tokenizer, save_adapter, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# PEFT 0.21 reads an attribute that transformers 5.23 renamed, when these tests make adapters.
pytestmark = [pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    """Two adapters of it, of different rank and modules."""
    where = tmp_path_factory.mktemp("adapters")
    return {
        "fr": save_adapter(where / "fr", base, seed=1),
        "de": save_adapter(where / "de", base, seed=2, r=2, target_modules=["up_proj", "o_proj"]),
    }


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    """What a model says of `IDS`, or of other inputs."""
    with torch.inference_mode():
        found: torch.Tensor = model(**(inputs or {"input_ids": IDS})).logits
    return found


def theirs(base: Path, folders: dict[str, Path]) -> Any:
    """The same with PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names = list(folders)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(folders[names[0]]), adapter_name=names[0]
    )
    for name in names[1:]:
        model.load_adapter(str(folders[name]), adapter_name=name)
    return model.eval()


def test_switching_gives_what_peft_gives(base: Path, folders: dict[str, Path]) -> None:
    """Each adapter by name and none of them: the bits of PEFT's `set_adapter` and `disable_adapter`."""
    model, other = load(base, adapters=folders), theirs(base, folders)
    assert set(model.adapters) == {"fr", "de"}
    for name in ("de", "fr", "de"):
        other.set_adapter(name)
        with adapters.using(model.model, name) as used:
            assert torch.equal(logits(used), logits(other))
    with adapters.using(model.model, None) as used, other.disable_adapter():
        assert torch.equal(logits(used), logits(other))
        assert torch.equal(logits(used), logits(load(base).model))


def test_the_first_is_active_and_comes_back(base: Path, folders: dict[str, Path]) -> None:
    """After a call, also one that fails, the adapter from before is the one in use; calls may be nested."""
    model = load(base, adapters=folders).model
    first = logits(model)
    assert adapters.active(model) == "fr"
    with adapters.using(model, "de"):
        assert adapters.active(model) == "de"
        with adapters.using(model, None):
            assert adapters.active(model) is None
        assert adapters.active(model) == "de"
    assert adapters.active(model) == "fr"
    with pytest.raises(ZeroDivisionError), adapters.using(model, None):
        _ = 1 / 0
    assert adapters.active(model) == "fr"
    assert torch.equal(logits(model), first)


def test_switching_touches_no_weight(base: Path, folders: dict[str, Path]) -> None:
    """No file is read and no parameter changes: the same tensors are there before and after, and none asks for gradients."""
    model = load(base, adapters=folders).model
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.named_parameters()}
    for folder in folders.values():
        for path in folder.iterdir():
            path.rename(path.with_suffix(".away"))
    try:
        for name in ("de", None, "fr"):
            with adapters.using(model, name):
                logits(model)
    finally:
        for folder in folders.values():
            for path in list(folder.glob("*.away")):
                kind = ".safetensors" if "model" in path.stem else ".json"
                path.rename(path.with_suffix(kind if path.stem != "README" else ".md"))
    for name, tensor in model.named_parameters():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
        assert not tensor.requires_grad


def test_threads_that_share_a_model_get_their_own_adapter(base: Path, folders: dict[str, Path]) -> None:
    """Three threads that ask for different adapters at once each get the logits of theirs, every time."""
    model = load(base, adapters=folders).model
    expected = {}
    for name in ("fr", "de", None):
        with adapters.using(model, name):
            expected[name] = logits(model)
    wrong: list[str | None] = []

    def work(name: str | None) -> None:
        for _ in range(15):
            with adapters.using(model, name):
                if not torch.equal(logits(model), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert adapters.active(model) == "fr"


def test_an_unknown_name_is_refused(base: Path, folders: dict[str, Path]) -> None:
    """With the near match, and on a model without adapters with that reason."""
    model = load(base, adapters=folders).model
    with pytest.raises(RequestError, match="no adapter `dee`") as caught, adapters.using(model, "dee"):
        pass
    assert caught.value.hint == "did you mean `de`?"
    plain = load(base).model
    with pytest.raises(RequestError, match="no adapter `fr`") as caught, adapters.using(plain, "fr"):
        pass
    assert caught.value.hint == "it was loaded with none"
    with adapters.using(plain, None) as used:
        assert used is plain


def test_names_that_peft_cannot_keep_are_refused(base: Path, folders: dict[str, Path]) -> None:
    """PEFT finds tensors by the adapter's name in theirs: a dot, a part of `lora_` or of a module's name would mislead it."""
    for name in ("a.b", "", "lora-fr", "fr fr", "a", "lora", "layers", "weight"):
        with pytest.raises(RequestError, match="is no name for an adapter"):
            load(base, adapters={name: folders["fr"]})


def make_bert(kind: str, **config: Any) -> Any:
    """A tiny BERT with a head."""
    import transformers

    torch.manual_seed(0)
    settings: Any = transformers.BertConfig
    return getattr(transformers, kind)(
        settings(
            vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64, **config,
        )
    ).eval()  # fmt: skip


def make_vit(**config: Any) -> Any:
    """A tiny ViT classifier."""
    import transformers

    torch.manual_seed(0)
    settings: Any = transformers.ViTConfig
    make: Any = transformers.ViTForImageClassification
    return make(
        settings(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16,
                 patch_size=8, **config)
    ).eval()  # fmt: skip


def train(base: Any, folder: Path, **config: Any) -> tuple[Path, Any]:
    """An adapter of `base` as PEFT saves one, every trained tensor random; the folder and PEFT's model."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **config))
    torch.manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    return folder, adapted.eval()


@pytest.mark.parametrize(
    ("kind", "task", "task_type"),
    [
        ("BertForSequenceClassification", "text-classification", "SEQ_CLS"),
        ("BertForTokenClassification", "token-classification", "TOKEN_CLS"),
        ("BertForQuestionAnswering", "question-answering", "QUESTION_ANS"),
        ("BertForMaskedLM", "fill-mask", None),
        ("BertModel", "feature-extraction", "FEATURE_EXTRACTION"),
    ],
)
def test_encoders_of_every_task_take_adapters(tmp_path: Path, kind: str, task: str, task_type: str | None) -> None:
    """The adapter's factors and the head that it trained (`classifier`, `qa_outputs`) are both what answers."""
    save_model(tmp_path / "base", make_bert(kind), make_tokenizer())
    folder, trained = train(
        make_bert(kind), tmp_path / "adapter", target_modules=["query", "value"], task_type=task_type
    )
    model = load(tmp_path / "base", adapters={"fr": folder}, task=task)

    def say(found: Any) -> torch.Tensor:
        with torch.inference_mode():
            answer: torch.Tensor = found(input_ids=IDS)[0]
        return answer

    assert model.task == task
    torch.testing.assert_close(say(model.model), say(trained), atol=1e-6, rtol=1e-6)
    with adapters.using(model.model, None) as used:
        torch.testing.assert_close(say(used), say(load(tmp_path / "base").model), atol=1e-6, rtol=1e-6)


def test_an_image_classifier_takes_an_adapter_with_its_head(tmp_path: Path) -> None:
    """`modules_to_save` is the head that was trained: switched on and off with the adapter."""
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    make_vit().save_pretrained(tmp_path / "base")
    folder, trained = train(
        make_vit(), tmp_path / "adapter", target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
    )
    model = load(tmp_path / "base", adapters={"fr": folder}, allow=("preprocessor",)).model
    assert torch.equal(logits(model, pixel_values=pixels), logits(trained, pixel_values=pixels))
    with adapters.using(model, None):
        assert torch.equal(logits(model, pixel_values=pixels), logits(make_vit(), pixel_values=pixels))


def edit(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of an adapter with its tensors changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = change(load_file(folder / "adapter_model.safetensors"))
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: {key: value for key, value in held.items() if key != FIRST}, "1 missing .*q_proj.lora_A"),
        (lambda held: {**held, "base_model.model.extra.lora_A.weight": torch.ones(2, 2)}, "1 unexpected"),
        (lambda held: {key.replace("self_attn", "attention"): value for key, value in held.items()}, "8 missing"),
    ],
    ids=["missing", "unexpected", "renamed"],
)
def test_every_tensor_is_accounted_for_in_the_second_adapter_too(
    tmp_path: Path, base: Path, folders: dict[str, Path], change: Any, words: str
) -> None:
    """A tensor that an adapter lacks, or that changes nothing, is an error also when another adapter was there first."""
    broken = edit(folders["fr"], tmp_path / "broken", change)
    with pytest.raises(ModelError, match=words):
        load(base, adapters={"good": folders["de"], "broken": broken})


def test_a_trained_head_that_the_file_lacks_is_missed(tmp_path: Path) -> None:
    """`modules_to_save` promises the head: without it PEFT would answer with the base's."""
    make_vit().save_pretrained(tmp_path / "base")
    folder, _ = train(make_vit(), tmp_path / "whole", target_modules=["q_proj"], modules_to_save=["classifier"])
    lacking = edit(
        folder, tmp_path / "lacking", lambda held: {key: held[key] for key in held if "classifier" not in key}
    )
    with pytest.raises(ModelError, match=r"2 missing .*classifier"):
        load(tmp_path / "base", adapters={"fr": lacking}, allow=("preprocessor",))


def test_prompt_learning_is_refused_by_name(tmp_path: Path, base: Path) -> None:
    """An adapter that adds virtual tokens changes no weight, so it is none that can be switched here."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    model.save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ModelError, match=r"prompt-learning adapter \(PROMPT_TUNING\)"):
        load(base, adapters={"p": tmp_path / "prompt"})


def test_adapters_stay_trainable_when_asked(base: Path, folders: dict[str, Path]) -> None:
    """`training=True` leaves the factors of the first adapter with gradients, and nothing of the base."""
    model = load(base, adapters={"fr": folders["fr"]}, training=True).model
    asked = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert asked
    assert all("lora_" in name and ".fr." in name for name in asked)
    assert model.training
