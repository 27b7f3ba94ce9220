"""A model is saved whole or not at all, and what is saved loads to the same bits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from modelyard.errors import ConflictError, ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.saving import save
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama with a tokenizer and a generation config that says something."""
    model = make_llama(tie_word_embeddings=True)
    model.generation_config.max_new_tokens = 7
    return save_model(tmp_path_factory.mktemp("model"), model)


def test_a_saved_model_is_what_transformers_saves(folder: Path, tmp_path: Path) -> None:
    """The weight file has the same bytes as `save_pretrained` writes, ties stay ties, and the generation config comes along."""
    saved = load(folder).save(tmp_path / "ours")
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    assert (saved / "model.safetensors").read_bytes() == (tmp_path / "theirs" / "model.safetensors").read_bytes()
    assert json.loads((saved / "generation_config.json").read_text())["max_new_tokens"] == 7
    again = load(saved)
    assert again.model.lm_head.weight.data_ptr() == again.model.model.embed_tokens.weight.data_ptr()
    assert again.processor.chat_template == load(folder).processor.chat_template


def test_a_folder_that_holds_something_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    """An existing model stays as it is, and nothing is left behind beside it."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    with pytest.raises(ConflictError, match="exists already"):
        load(folder).save(tmp_path / "kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "mine.txt"]


def test_a_save_that_fails_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error half way leaves neither a target nor a hidden folder."""
    model = load(folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(model.processor, "save_pretrained", fail)
    with pytest.raises(ModelError, match="the disk went away"):
        save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_saved_as_an_adapter(folder: Path, tmp_path: Path) -> None:
    """Its own tensors and configuration, and the tokenizer; not a byte of its base."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    saved = load(adapter).save(tmp_path / "saved")
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in (saved, adapter))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (saved / "model.safetensors").exists()
    assert load(saved, base=folder).base == folder


def test_one_of_several_adapters_is_named(folder: Path, tmp_path: Path) -> None:
    """With several, `adapter` says which; a wrong name has the near match."""
    folders = {name: save_adapter(tmp_path / name, folder, seed=seed) for seed, name in enumerate(("french", "german"))}
    model = load(folder, adapters=folders)
    with pytest.raises(RequestError, match="has 2 adapters"):
        save(model, tmp_path / "out")
    with pytest.raises(RequestError, match="no adapter `germn`") as caught:
        save(model, tmp_path / "out", adapter="germn")
    assert caught.value.hint == "did you mean `german`?"
    saved = save(model, tmp_path / "out", adapter="german")
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in (saved, folders["german"]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(RequestError, match="no adapter `x`"):
        save(load(folder), tmp_path / "none", adapter="x")


def test_a_wrapped_model_is_saved_by_its_own_names(folder: Path, tmp_path: Path) -> None:
    """What `torch.compile` wrapped is saved without `_orig_mod` in any name."""
    model = load(folder)
    model.model.model = torch.compile(model.model.model, backend="eager")
    saved = model.save(tmp_path / "out")
    assert load_file(saved / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_a_quantization_without_a_form_on_disk_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """What transformers cannot write is an error with the way out, and leaves nothing."""
    model = load(folder, quantization="int8-dynamic")
    with pytest.raises(ModelError, match="cannot be saved") as caught:
        model.save(tmp_path / "out")
    assert (caught.value.code, "without `quantization`" in str(caught.value.hint)) == ("not_saved", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit", "torchao-int8"])
def test_what_was_stored_quantized_is_saved_again(folder: Path, tmp_path: Path, quantization: str) -> None:
    """A model that is loaded from quantized weights is written tensor for tensor, by the same names, and loads again."""
    first = load(folder, quantization=quantization).save(tmp_path / "first")
    again = load(first).save(tmp_path / "again")
    ours, stored = (load_file(each / "model.safetensors") for each in (again, first))
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[name], stored[name]) for name in stored)
    answers = [load(each).generate("the cat", max_new_tokens=4) for each in (again, first)]
    assert answers[0] == answers[1]


def test_stored_weights_that_cannot_be_written_name_the_cause(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library refuses to write what it read, the error names the method, the cause, and the copy that is the same."""
    stored = load(folder, quantization="bnb-8bit").save(tmp_path / "stored")
    model = load(stored)

    def fail(*_given: object, **_options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(model.model, "save_pretrained", fail)
    with pytest.raises(ModelError, match=r"bitsandbytes weights.*cannot write: NotImplementedError") as caught:
        model.save(tmp_path / "out")
    assert caught.value.hint == f"what would be written is that folder as it is: cp -rL {stored} COPY"
