"""A model made from a configuration is what transformers makes of it, seeded, in eval mode, and marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from modelyard.errors import ModelError, RequestError
from modelyard.weights.create import create
from modelyard.weights.files import FolderFiles
from modelyard.weights.load import load
from modelyard.weights.untrained import find_untrained
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from pathlib import Path

BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
}


def test_the_same_seed_gives_the_same_bits_as_transformers(tmp_path: Path) -> None:
    """Same class, same numbers as `from_config` after the same seed; another seed gives others."""
    torch.manual_seed(4)
    auto: Any = transformers.AutoModelForMaskedLM
    theirs = auto.from_config(transformers.BertConfig(**BERT))
    ours = create("bert", seed=4, **BERT).model
    other = create("bert", seed=5, **BERT).model
    assert type(ours) is type(theirs)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert not torch.equal(ours.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight)


def test_the_callers_random_numbers_go_on_undisturbed() -> None:
    """Making a model draws from its own seed and leaves torch's generator as it was."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    create("bert", **BERT)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_way_of_making_one_ends_in_eval_mode() -> None:
    """From a type, from a configuration object and from a folder's configuration: dropout is off."""
    config = transformers.BertConfig(**BERT)
    for source, values in (("bert", BERT), (config, {})):
        assert not create(source, **values).model.training
    assert config.num_hidden_layers == 2


def test_it_is_marked_random_saved_and_loaded_again(tmp_path: Path) -> None:
    """The mark is in the model, in the folder, and in what is loaded from it, with the same bits."""
    made = create("bert", seed=3, dtype="bfloat16", **BERT)
    assert (made.untrained.kind, made.untrained.seed, made.untrained.tensors) == ("random", 3, None)
    assert made.model.dtype == torch.bfloat16
    folder = made.save(tmp_path / "made")
    found = find_untrained(FolderFiles(folder))
    assert found is not None
    assert (found.kind, found.seed, found.tensors) == ("random", 3, None)
    again = load(folder, dtype="bfloat16")
    assert again.untrained.kind == "random"
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize(
    ("model_type", "task", "name"),
    [
        ("bert", "fill-mask", "BertForMaskedLM"),
        ("llama", "text-generation", "LlamaForCausalLM"),
        ("t5", "text2text-generation", "T5ForConditionalGeneration"),
        ("whisper", "automatic-speech-recognition", "WhisperForConditionalGeneration"),
        ("vit", "image-classification", "ViTForImageClassification"),
    ],
)
def test_a_type_without_a_task_gets_what_it_is_mostly_for(model_type: str, task: str, name: str) -> None:
    """The default is what users of the type mean, not the first class in some table."""
    from modelyard.weights.create import default_task
    from modelyard.weights.loading.configs import make_config
    from modelyard.weights.tasks import TASKS

    assert default_task(make_config(model_type)) == task
    assert TASKS[task].model_types()[model_type] == name


def test_a_task_or_a_class_may_be_named() -> None:
    """`task` picks the class of this type; `model_class` is exact."""
    assert type(create("bert", task="token-classification", **BERT).model).__name__ == "BertForTokenClassification"
    assert type(create("bert", model_class="BertModel", **BERT).model).__name__ == "BertModel"
    assert create("bert", task="text-classification", num_labels=5, **BERT).model.classifier.out_features == 5


def test_from_a_folder_comes_its_configuration_and_tokenizer_but_no_weight(tmp_path: Path) -> None:
    """The same architecture, other numbers, and it can be trained at once."""
    folder = save_model(tmp_path / "model")
    made = create(folder, seed=11, num_hidden_layers=1)
    assert (made.task, made.config.num_hidden_layers, made.folder) == ("text-generation", 1, folder)
    assert made.processor is not None
    assert not torch.equal(made.model.lm_head.weight, make_llama().lm_head.weight)
    assert made.untrained.kind == "random"


def test_a_load_may_be_random_too(tmp_path: Path) -> None:
    """`load(folder, random=True)` draws every weight, in the dtype that is asked for, and marks it."""
    folder = save_model(tmp_path / "model")
    model = load(folder, random=True, seed=2)
    same = load(folder, random=True, seed=2)
    assert model.untrained.kind == "random"
    assert torch.equal(model.model.lm_head.weight, same.model.lm_head.weight)
    assert not torch.equal(model.model.lm_head.weight, make_llama().lm_head.weight)
    assert not model.model.training


def test_a_configuration_alone_is_enough_for_a_random_load(tmp_path: Path) -> None:
    """A folder with nothing but config.json gives a model of random weights, marked; without `random` it is no model."""
    make_llama().config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"architectures": null', '"x": 1')
    )
    made = load(tmp_path, random=True, task="text-generation")
    assert (made.untrained.kind, made.processor, made.task) == ("random", None, "text-generation")
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load(tmp_path, task="text-generation")


def test_keys_of_a_configuration_inside_another_are_set_by_their_path() -> None:
    """`text_config.hidden_size` reaches inside, and leaves what is beside it."""
    values: dict[str, Any] = {
        "text_config.hidden_size": 16,
        "text_config.num_hidden_layers": 1,
        "text_config.num_attention_heads": 2,
        "text_config.intermediate_size": 16,
        "text_config.vocab_size": 60,
        "vision_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 16,
            "patch_size": 8,
        },
        "projection_dim": 8,
    }
    made = create("clip", task="zero-shot-image-classification", **values)
    text, vision = made.config.text_config, made.config.vision_config
    assert (text.hidden_size, text.vocab_size, vision.patch_size, made.config.projection_dim) == (16, 60, 8, 8)


def test_another_name_of_a_key_is_taken() -> None:
    """GPT-2 calls its layers `n_layer`, and transformers knows `num_hidden_layers` for it: both work."""
    small: dict[str, Any] = {"n_embd": 16, "n_head": 2, "vocab_size": 40, "n_positions": 32}
    assert create("gpt2", num_hidden_layers=1, **small).config.n_layer == 1
    assert create("gpt2", n_layer=3, **small).config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("source", "values", "words", "hint"),
    [
        ("brt", {}, "no model type `brt`", "did you mean `bert`?"),
        ("bert", {"num_hiden_layers": 2}, "no key `num_hiden_layers`", "did you mean `num_hidden_layers`?"),
        ("bert", {"num_hidden_layers": "two"}, "does not take `num_hidden_layers`.*expected int", "look at the keys"),
        ("bert", {"dtype": "float61"}, "`dtype` is 'float61'", "did you mean `float16`?"),
        ("clip", {"text_config.hiden_size": 2}, "no key `hiden_size`", "did you mean `hidden_size`?"),
        (42, {}, "`source` is a int", "a model type"),
    ],
)
def test_what_cannot_be_made_says_why(source: Any, values: dict[str, Any], words: str, hint: str) -> None:
    """Unknown types, keys and values are errors with the near match; nothing is kept and ignored."""
    with pytest.raises(RequestError, match=words) as caught:
        create(source, **values)
    assert hint in str(caught.value.hint)


def test_a_shape_that_does_not_divide_is_an_error_of_the_configuration() -> None:
    """What transformers refuses while it builds is named, not a traceback."""
    with pytest.raises(ModelError, match="`bert` cannot be built"):
        create("bert", hidden_size=15, num_attention_heads=2, num_hidden_layers=1, vocab_size=10)
