"""Each fault of a checkpoint is found and named, and a sound one has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelyard.weights import FolderFiles, diagnose
from tiny_models import make_llama, save_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer and chat template, as transformers saves it."""
    return save_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound model, to be broken."""
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def codes(folder: Path, level: str | None = None) -> list[str]:
    """The codes of what is found, at one level or all."""
    return [found.code for found in diagnose(FolderFiles(folder)) if level in {None, found.level}]


def change(folder: Path, **config: Any) -> None:
    """Set keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def rewrite(folder: Path, edit: Any) -> None:
    """Replace the weights by what `edit` makes of them."""
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, {"format": "pt"})


def test_sound_model_has_no_findings(sound: Path) -> None:
    """A model as transformers saves it has nothing wrong."""
    assert diagnose(FolderFiles(sound)) == []


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapper_prefix(folder: Path, prefix: str) -> None:
    """Names with a training wrapper's prefix are an error that names the prefix, and only that one."""
    rewrite(folder, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    found = diagnose(FolderFiles(folder))
    assert [finding.code for finding in found] == ["wrapped_names"]
    assert prefix in found[0].message


def test_adapter_leftovers(folder: Path) -> None:
    """Names of an adapter that was never merged are an error."""
    rewrite(
        folder,
        lambda tensors: {name.replace("q_proj.", "q_proj.base_layer."): value for name, value in tensors.items()},
    )
    assert codes(folder) == ["base_layer_names"]


def test_missing_tensors(folder: Path) -> None:
    """A tensor that the architecture needs and the file lacks is named."""
    rewrite(folder, lambda tensors: {name: value for name, value in tensors.items() if "layers.1.mlp.up" not in name})
    found = diagnose(FolderFiles(folder))
    assert [finding.code for finding in found] == ["missing_tensors"]
    assert "model.layers.1.mlp.up_proj.weight" in found[0].message


def test_one_layer_too_many_in_the_config(folder: Path) -> None:
    """A configuration with another layer than the weights is an error that says both numbers."""
    change(folder, num_hidden_layers=3)
    (found,) = diagnose(FolderFiles(folder))
    assert (found.level, found.code) == ("error", "layer_count")
    assert "makes 3 layers" in found.message
    assert "the weights hold 2" in found.message


def test_one_layer_too_few_in_the_config(folder: Path) -> None:
    """Whole layers that the configuration does not count are a warning."""
    change(folder, num_hidden_layers=1)
    assert codes(folder) == codes(folder, "warning") == ["layer_count"]


def test_tensor_without_a_place(folder: Path) -> None:
    """A tensor that the architecture does not have is a warning that names it."""
    rewrite(folder, lambda tensors: tensors | {"model.extra.weight": np.zeros(3, np.float32)})
    (found,) = diagnose(FolderFiles(folder))
    assert (found.level, found.code) == ("warning", "unexpected_tensors")
    assert "model.extra.weight" in found.message


def test_wrong_shape(folder: Path) -> None:
    """Weights of another size than the configuration's are an error that names both shapes."""
    change(folder, vocab_size=512)
    found = diagnose(FolderFiles(folder))
    assert {finding.code for finding in found} == {"mismatched_shape"}
    assert "512" in found[0].message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values(folder: Path, value: float) -> None:
    """A NaN or an infinity anywhere is an error that names the tensor and the count."""

    def edit(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["model.norm.weight"][3] = value
        return tensors

    rewrite(folder, edit)
    found = diagnose(FolderFiles(folder))
    assert [finding.code for finding in found] == ["nonfinite"]
    assert "model.norm.weight (1 of 32)" in found[0].message


def test_tied_tensors_that_differ(folder: Path) -> None:
    """Tied by the configuration, different on disk: an error."""
    change(folder, tie_word_embeddings=True)
    assert codes(folder) == ["tied_mismatch"]


def test_tied_model_without_its_head_is_sound(tmp_path: Path) -> None:
    """A tied model's missing output layer is not missing."""
    assert diagnose(FolderFiles(save_model(tmp_path / "tied", make_llama(tie_word_embeddings=True)))) == []


def test_no_tokenizer(folder: Path) -> None:
    """A model without a tokenizer is a warning, one without a chat template is worth a note."""
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        if name == "tokenizer.json":
            assert codes(folder, "info") == ["no_chat_template"]
        (folder / name).unlink(missing_ok=True)
    assert codes(folder) == ["no_tokenizer"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "lfs_pointer"),
        (b"<!DOCTYPE html><html>", "html_page"),
        (b"", "header_too_small"),
        (b"\x80\x04\x95" + bytes(30), "pickle"),
    ],
)
def test_not_weights_at_all(folder: Path, data: bytes, code: str) -> None:
    """What stands in the weights' place is named."""
    (folder / "model.safetensors").write_bytes(data)
    assert codes(folder) == [code]


def test_truncated(folder: Path) -> None:
    """A file that ends early is `truncated`."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert codes(folder) == ["truncated"]


def test_stray_weights(folder: Path) -> None:
    """A weights file that nothing loads is a warning."""
    (folder / "old.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert codes(folder) == ["stray_weights"]


def test_unknown_architecture(folder: Path) -> None:
    """An architecture that transformers has not is a warning, since only names could not be checked."""
    change(folder, architectures=["NoSuchForCausalLM"])
    assert codes(folder) == ["unknown_architecture"]


def test_several_broken_files_are_all_named(folder: Path) -> None:
    """One broken file does not hide another."""
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{")
    assert codes(folder) == ["header_too_small", "bad_json"]


def test_not_a_model(tmp_path: Path) -> None:
    """A folder that holds no model is one error, not a crash."""
    (tmp_path / "notes.md").write_text("x")
    assert codes(tmp_path) == ["not_a_model"]


def test_link_in_the_folder(folder: Path) -> None:
    """A symbolic link is a finding, not an exception."""
    (folder / "x").symlink_to("/etc/passwd")
    assert codes(folder) == ["not_a_regular_file"]


def test_untrained_adapter(tmp_path: Path) -> None:
    """An adapter whose B factors are all zero was never trained: a warning."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    tensors = {"m.lora_A.weight": np.ones((2, 2), np.float32), "m.lora_B.weight": np.zeros((2, 2), np.float32)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert codes(tmp_path) == ["untrained"]
