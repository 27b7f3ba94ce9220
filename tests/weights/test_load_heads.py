"""A head that the requested task adds is reported, seeded and marked; everything else that lacks is an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelyard.errors import ModelError, RequestError
from modelyard.weights.files import FolderFiles
from modelyard.weights.load import load
from modelyard.weights.loading.options import LoadOptions
from modelyard.weights.untrained import find_untrained
from task_models.text import MODELS
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertForMaskedLM, which has no pooler and no classifier."""
    return MODELS["fill-mask"](tmp_path_factory.mktemp("mlm") / "model")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain BertModel."""
    return MODELS["feature-extraction"](tmp_path_factory.mktemp("plain") / "model")


def edit(source: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a folder with other weights."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_classifier_on_a_plain_encoder_is_added(encoder: Path) -> None:
    """`num_labels=3` on an encoder: the head is listed and marked, the body has the file's bits."""
    model = load(encoder, task="text-classification", num_labels=3)
    assert model.load_report.added == ("classifier.bias", "classifier.weight")
    assert (model.untrained.kind, model.untrained.tensors) == ("head", ("classifier.bias", "classifier.weight"))
    assert model.model.classifier.weight.shape[0] == model.config.num_labels == 3
    held = load_file(encoder / "model.safetensors")
    for name, parameter in model.model.bert.named_parameters():
        assert torch.equal(parameter, held[name])
    assert not model.model.training


def test_what_the_old_head_had_is_dropped_and_what_the_new_needs_is_added(masked: Path) -> None:
    """From a masked language model to a classifier: the pooler counts as the head's, since the old model has none."""
    model = load(masked, task="text-classification")
    assert set(model.load_report.added) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert all(name.startswith("cls.predictions") for name in model.load_report.dropped)
    assert model.load_report.dropped != ()


def test_the_head_is_drawn_from_the_seed_alone(encoder: Path) -> None:
    """The same seed gives the same bits whatever was drawn before, another seed others, and the caller's generator stays."""
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = load(encoder, task="text-classification", seed=7).model.classifier.weight
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = load(encoder, task="text-classification", seed=7).model.classifier.weight
    other = load(encoder, task="text-classification", seed=8).model.classifier.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_head_is_drawn_as_transformers_draws_it(encoder: Path) -> None:
    """With the same seed the added head is the one that `from_pretrained` makes."""
    torch.manual_seed(3)
    theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=4)
    ours = load(encoder, task="text-classification", num_labels=4, seed=3)
    assert torch.equal(ours.model.classifier.weight, theirs.classifier.weight)


def test_labels_have_the_names_that_are_given(encoder: Path) -> None:
    """`id2label` names them, and their number follows."""
    model = load(encoder, task="text-classification", id2label={0: "no", 1: "maybe", 2: "yes"})
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert model.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert model.model.classifier.out_features == 3


def test_a_head_of_another_size_is_drawn_anew_when_labels_are_asked_for(tmp_path: Path) -> None:
    """A trained classifier with other labels loses its head, and says so; its body stays."""
    folder = MODELS["text-classification"](tmp_path / "model")
    kept = load(folder)
    count = kept.config.num_labels
    assert kept.load_report.added == ()
    model = load(folder, num_labels=count + 2)
    assert model.load_report.added == ("classifier.bias", "classifier.weight")
    assert model.untrained.kind == "head"
    held = load_file(folder / "model.safetensors")
    assert torch.equal(model.model.bert.pooler.dense.weight, held["bert.pooler.dense.weight"])
    same = load(folder, num_labels=count)
    assert (same.load_report.added, same.untrained) == ((), None)


def test_a_body_that_lacks_a_tensor_is_refused_also_with_a_new_head(tmp_path: Path, encoder: Path) -> None:
    """A head that is added excuses nothing of the body."""
    name = "encoder.layer.0.attention.self.query.weight"
    folder = edit(encoder, tmp_path / "cut", lambda held: {key: held[key] for key in held if key != name})
    with pytest.raises(ModelError, match=f"1 missing .bert.{name}.") as caught:
        load(folder, task="text-classification")
    assert caught.value.details["missing"] == [f"bert.{name}"]


def test_names_with_a_prefix_are_no_other_head(tmp_path: Path, encoder: Path) -> None:
    """`module.` on every name: every tensor of the body is missing, and the cause is named."""
    folder = edit(encoder, tmp_path / "wrapped", lambda held: {f"module.{key}": held[key] for key in held})
    with pytest.raises(ModelError, match="missing") as caught:
        load(folder, task="text-classification")
    assert "`module.`" in str(caught.value.hint)


def test_a_model_of_its_own_class_has_no_head_to_add(tmp_path: Path) -> None:
    """A classifier that lacks its classifier is broken: its own class promises it."""
    folder = edit(
        MODELS["text-classification"](tmp_path / "model"),
        tmp_path / "cut",
        lambda held: {key: held[key] for key in held if not key.startswith("classifier")},
    )
    with pytest.raises(ModelError, match=r"2 missing \(classifier.bias, classifier.weight\)"):
        load(folder)


@pytest.mark.parametrize(
    ("kind", "change", "names"),
    [
        (
            "missing",
            lambda held: {key: held[key] for key in held if key != "model.norm.weight"},
            ("model.norm.weight",),
        ),
        ("unexpected", lambda held: {**held, "extra.weight": torch.ones(2)}, ("extra.weight",)),
        (
            "mismatched",
            lambda held: {**held, "model.norm.weight": torch.ones(7)},
            ("model.norm.weight: [7] on disk, [32] by config.json",),
        ),
        ("nonfinite", lambda held: {**held, "model.norm.weight": torch.full((32,), torch.inf)}, ("model.norm.weight",)),
    ],
)
def test_a_fault_passes_only_when_it_is_allowed_by_name(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors], names: tuple[str, ...]
) -> None:
    """Each kind has a name; the report keeps what was allowed, and any other name does not help."""
    folder = edit(save_model(tmp_path / "model"), tmp_path / "broken", change)
    others = [each for each in ("missing", "unexpected", "mismatched", "nonfinite") if each != kind]
    with pytest.raises(ModelError):
        load(folder, allow=others)
    assert load(folder, allow=kind).load_report.allowed == {kind: names}


def test_what_was_missing_and_allowed_is_marked(tmp_path: Path) -> None:
    """A tensor that was drawn because its absence was allowed is untrained, like an added head."""
    folder = edit(
        save_model(tmp_path / "model"),
        tmp_path / "cut",
        lambda held: {key: held[key] for key in held if key != "lm_head.weight"},
    )
    model = load(folder, allow="missing")
    assert model.untrained.tensors == ("lm_head.weight",)
    found = find_untrained(FolderFiles(model.save(tmp_path / "saved")))
    assert found is not None
    assert found.tensors == ("lm_head.weight",)


def test_options_that_contradict_themselves_are_refused() -> None:
    """Labels, allowed kinds and seeds are checked before anything is read, with the near match."""
    for values, words, hint in (
        ({"allow": ("mising",)}, "`allow` is 'mising'", "did you mean `missing`?"),
        ({"num_labels": 0}, "`num_labels` is 0", "a positive whole number"),
        ({"num_labels": 2, "id2label": {0: "a"}}, "has 1 entries", "leave `num_labels` out"),
        ({"id2label": {1: "a"}}, "0 to n-1", 'e.g. {0: "no", 1: "yes"}'),
        ({"seed": -1}, "`seed` is -1", "a whole number from 0"),
        ({"random": True, "device_map": "auto"}, "drawn on one device", "give `device` instead"),
        ({"random": True, "quantization": "bnb-8bit"}, "not quantized while", "save the model, and load that with"),
        ({"offload_folder": "x"}, "is for what a device map puts on disk", 'device_map="auto"'),
        ({"task": "fil-mask"}, "no task `fil-mask`", "did you mean `fill-mask`?"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            LoadOptions(**values)
        assert str(caught.value.hint).startswith(hint)


def test_renamed_tensors_are_told_by_their_names_in_the_model(tmp_path: Path) -> None:
    """ViT's names on disk are not its modules': the added head is still found, and nothing of the body is."""
    from task_models import vision

    folder = vision.MODELS["masked-image-modeling"](tmp_path / "vit")
    model = load(folder, task="image-classification", num_labels=4)
    assert model.load_report.added == ("classifier.bias", "classifier.weight")
    saved = model.save(tmp_path / "saved")
    mark = json.loads((saved / "config.json").read_text())["modelyard_untrained"]
    assert mark["tensors"] == ["classifier.bias", "classifier.weight"]


def test_a_llama_becomes_a_classifier(tmp_path: Path) -> None:
    """A decoder's output layer is dropped for a score layer; tied or not, the embeddings stay."""
    for tied in (True, False):
        folder = save_model(tmp_path / f"tied-{tied}", make_llama(tie_word_embeddings=tied))
        model = load(folder, task="text-classification", num_labels=2)
        assert model.load_report.added == ("score.weight",)
        assert model.load_report.dropped == (() if tied else ("lm_head.weight",))
        held = load_file(folder / "model.safetensors")
        assert torch.equal(model.model.model.embed_tokens.weight, held["model.embed_tokens.weight"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_brings_its_own_head(tmp_path: Path, encoder: Path) -> None:
    """An adapter for sequence classification on a plain encoder: task and labels are read from it, and its head is trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base: Any = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=4)
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    model = load(tmp_path / "adapter", base=encoder)
    assert (model.task, model.config.num_labels, model.untrained) == ("text-classification", 4, None)
    assert model.load_report.added == ("classifier.bias", "classifier.weight")
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        assert torch.equal(model.model(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_heads_of_composite_models_are_known_by_their_names_on_disk(tmp_path: Path) -> None:
    """LLaVA's output layer is called otherwise on disk than in the model; CLIP's text model leaves what is the images'."""
    from task_models import multimodal

    llava = multimodal.MODELS["image-text-to-text"](tmp_path / "llava")
    assert load(llava, task="feature-extraction").load_report.dropped == ("language_model.lm_head.weight",)
    with pytest.raises(ModelError, match="no class of `llava` for text-generation"):
        load(llava, task="text-generation")
    clip = multimodal.MODELS["zero-shot-image-classification"](tmp_path / "clip")
    model = load(clip, task="text-encoding")
    assert type(model.model).__name__ == "CLIPTextModel"
    assert model.load_report.added == ()
    assert "logit_scale" in model.load_report.dropped
