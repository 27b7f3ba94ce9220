"""`mend`: a copy without what is mechanical to mend, which transformers loads to the original's own logits."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelyard.errors import ConflictError, ModelError
from modelyard.weights.doctor import diagnose, mend
from modelyard.weights.doctor.mending import MENDED
from modelyard.weights.files import FolderFiles
from tiny_models import TEMPLATE, make_llama, make_tokenizer, save_model


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound model in one file, in shards, and tied."""
    folder = tmp_path_factory.mktemp("mend")
    llama = make_llama()
    save_model(folder / "llama", llama)
    llama.save_pretrained(folder / "shards", max_shard_size="40KB")
    make_tokenizer().save_pretrained(folder / "shards")
    save_model(folder / "tied", make_llama(tie_word_embeddings=True))
    return folder


def logits(folder: Path) -> Any:
    """What plain transformers computes with a folder; every tensor must have come from it."""
    import torch
    import transformers

    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(folder, output_loading_info=True, dtype="float32")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(torch.arange(1, 20)[None]).logits.numpy()


def rename(folder: Path, change: Any) -> None:
    """Rename the tensors of every shard and of the index."""
    for path in folder.glob("*.safetensors"):
        save_file({change(name): value for name, value in load_file(path).items()}, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        held = json.loads(index.read_text())
        held["weight_map"] = {change(name): shard for name, shard in held["weight_map"].items()}
        index.write_text(json.dumps(held))


def edit(folder: Path, name: str, **values: Any) -> None:
    """Set keys of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def swap(folder: Path) -> None:
    """Say of a tensor that it is in another shard."""
    path = folder / "model.safetensors.index.json"
    held = json.loads(path.read_text())
    held["weight_map"]["lm_head.weight"] = held["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(held))


def stop_elsewhere(folder: Path) -> None:
    """Say in both configurations that another token ends an answer."""
    for name in ("config.json", "generation_config.json"):
        edit(folder, name, eos_token_id=4)


def copy_in(name: str) -> Any:
    """Break a folder by a second file of weights."""
    return lambda folder: shutil.copy(next(folder.glob("*.safetensors")), folder / name)


BREAKS: dict[str, tuple[str, Any]] = {
    "wrapped_names": ("shards", lambda folder: rename(folder, lambda name: f"module.{name}")),
    "wrapped_names twice": ("llama", lambda folder: rename(folder, lambda name: f"_orig_mod.module.{name}")),
    "wrapped_names of nobody": ("llama", lambda folder: rename(folder, lambda name: f"student.{name}")),
    "base_layer_names": ("llama", lambda folder: rename(folder, lambda n: n.replace("q_proj.", "q_proj.base_layer."))),
    "index_mismatch": ("shards", swap),
    "missing_index": ("shards", lambda folder: (folder / "model.safetensors.index.json").unlink()),
    "bad_index": ("shards", lambda folder: (folder / "model.safetensors.index.json").write_text("{}")),
    "total_size": ("shards", lambda folder: edit(folder, "model.safetensors.index.json", metadata={"total_size": 1})),
    "stray_weights": ("shards", copy_in("model-00007-of-00009.safetensors")),
    "two_weight_sets": ("llama", copy_in("model.fp16.safetensors")),
    "misnamed_weights": ("llama", lambda folder: (folder / "model.safetensors").rename(folder / "w.safetensors")),
    "wrong_name": ("llama", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")),
    "foreign_weights": ("llama", lambda folder: (folder / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(9))),
    "avoidable_pickle": ("llama", lambda folder: (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))),
    "tied_mismatch": ("llama", lambda folder: edit(folder, "config.json", tie_word_embeddings=True)),
    "no_output_layer": ("tied", lambda folder: edit(folder, "config.json", tie_word_embeddings=False)),
    "dtype_mismatch": ("llama", lambda folder: edit(folder, "config.json", dtype="bfloat16")),
    "no_generation_config": ("llama", lambda folder: (folder / "generation_config.json").unlink()),
    "eos_mismatch": ("llama", stop_elsewhere),
    "eos_not_in_template": (
        "llama",
        lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|end|>", "<|system|>")),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_mended_copy_is_sound_and_computes_the_same(name: str, originals: Path, tmp_path: Path) -> None:
    """Each fault is found, mended in the copy, and plain transformers gets the original's logits from that, bit for bit."""
    kind, break_it = BREAKS[name]
    folder = Path(shutil.copytree(originals / kind, tmp_path / "broken"))
    break_it(folder)
    digests = {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*")}

    done = mend(FolderFiles(folder), tmp_path / "mended")

    assert name.split(maxsplit=1)[0] in {finding.code for finding in done.before}
    assert done.applied
    assert [finding.message for finding in done.after] == []
    assert diagnose(FolderFiles(tmp_path / "mended")) == []
    assert np.array_equal(logits(tmp_path / "mended"), logits(originals / kind))
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*")} == digests


@pytest.mark.parametrize("template", [None, "{{ lipsum.__globals__ }}", "{% for", TEMPLATE + "x"])
def test_the_base_gives_its_template(template: str | None, originals: Path, tmp_path: Path) -> None:
    """A template that is missing, unsafe, broken or another is replaced by the base's, and without a base left alone."""
    folder = Path(shutil.copytree(originals / "llama", tmp_path / "broken"))
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="nothing that is mechanical to mend"):
        mend(FolderFiles(folder), tmp_path / "alone")

    done = mend(FolderFiles(folder), tmp_path / "mended", base=FolderFiles(originals / "llama"))

    assert done.after == []
    assert (tmp_path / "mended" / "chat_template.jinja").read_text() == TEMPLATE


def test_the_ending_token_is_what_the_template_writes(originals: Path, tmp_path: Path) -> None:
    """Generation then also stops at what the template ends an answer with."""
    folder = Path(shutil.copytree(originals / "llama", tmp_path / "broken"))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|end|>", "<|system|>"))
    mend(FolderFiles(folder), tmp_path / "mended")
    assert json.loads((tmp_path / "mended" / "generation_config.json").read_text())["eos_token_id"] == [1, 2]


def test_a_sound_folder_is_not_copied(originals: Path, tmp_path: Path) -> None:
    """Nothing to mend is `nothing_to_mend`, and nothing is written."""
    with pytest.raises(ModelError) as caught:
        mend(FolderFiles(originals / "llama"), tmp_path / "mended")
    assert caught.value.code == "nothing_to_mend"
    assert list(tmp_path.iterdir()) == []


def test_names_with_and_without_a_prefix_are_not_mixed(originals: Path, tmp_path: Path) -> None:
    """Where a name is there with its prefix and without, nobody knows which counts: refused, and nothing is left behind."""
    folder = Path(shutil.copytree(originals / "llama", tmp_path / "broken"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {f"module.{name}": value for name, value in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        mend(FolderFiles(folder), tmp_path / "mended")
    assert caught.value.code == "ambiguous_names"
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


def test_an_existing_folder_is_not_written_over(originals: Path, tmp_path: Path) -> None:
    """The copy is a new folder or an error."""
    folder = Path(shutil.copytree(originals / "llama", tmp_path / "broken"))
    (folder / "generation_config.json").unlink()
    with pytest.raises(ConflictError):
        mend(FolderFiles(folder), folder)


def test_the_mark_of_untrained_weights_stays_true(originals: Path, tmp_path: Path) -> None:
    """Renaming tensors does not make random weights pass for trained ones."""
    from modelyard.weights.untrained import Untrained, find_untrained, mark

    folder = Path(shutil.copytree(originals / "llama", tmp_path / "broken"))
    rename(folder, lambda name: f"module.{name}")
    mark(folder, Untrained("random", 9, None))
    done = mend(FolderFiles(folder), tmp_path / "mended")
    assert [finding.code for finding in done.after] == ["random_weights"]
    assert find_untrained(FolderFiles(tmp_path / "mended")) == Untrained("random", 9, None)


def test_every_code_that_is_mended_has_a_case_here() -> None:
    """`MENDED` is what these tests show, and the templates."""
    templates = {"no_chat_template", "template_broken", "template_changed", "template_unsafe"}
    assert {name.split()[0] for name in BREAKS} | templates == MENDED
