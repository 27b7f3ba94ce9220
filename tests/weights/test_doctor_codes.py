"""Each code of the doctor: a sound tiny checkpoint is broken in exactly one way, and exactly that is found."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import modelyard.weights.doctor as doctor_package
from modelyard.weights.doctor import CODES, SingleFile, diagnose
from modelyard.weights.files import FolderFiles
from modelyard.weights.gguf import GGUF_CODES
from modelyard.weights.headers import CODES as HEADER_CODES
from task_models import audio, multimodal, text, vision
from tiny_models import make_tokenizer
from weights.doctor_cases import edit, find, index_of, only, rewrite
from weights.gguf_files import gguf

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "diagnosing.md"
REFUSALS = {"not_a_folder", "incomplete_version", "bad_model", "damaged"}
"""Codes of errors that other modules raise about a checkpoint, which an examination passes on."""


# What is sound


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        (text, "text-generation"),
        (text, "text-classification"),
        (text, "fill-mask"),
        (text, "text2text-generation"),
        (text, "question-answering"),
        (vision, "image-classification"),
        (vision, "object-detection"),
        (vision, "normal-estimation"),
        (audio, "ctc"),
        (audio, "automatic-speech-recognition"),
        (audio, "text-to-spectrogram"),
        (multimodal, "image-text-to-text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sound_model_of_every_kind_has_no_findings(tasks: Any, name: str, tmp_path: Path) -> None:
    """Models as transformers saves them, of text, images and sound, have nothing wrong."""
    assert [found.message for found in find(tasks.MODELS[name](tmp_path / "model"))] == []


def test_sound_shards_and_adapters_have_no_findings(originals: Path) -> None:
    """Neither has a model in shards, nor an adapter with its base."""
    assert find(originals / "shards") == []
    assert find(originals / "adapter", base=FolderFiles(originals / "llama")) == []


def test_a_sound_gguf_file_has_no_findings(tmp_path: Path) -> None:
    """A GGUF file by itself, and as the one file of a folder, has nothing wrong."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"w": (0, (8,))}))
    assert diagnose(SingleFile(path)) == []
    assert find(tmp_path) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_sound_quantized_weights_have_no_findings(originals: Path, tmp_path: Path, bits: int) -> None:
    """Weights that bitsandbytes packed, as transformers saves them, have nothing wrong; without a module's parts, it is missing."""
    import transformers

    configure: Any = transformers.BitsAndBytesConfig
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    asked = configure(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    folder = tmp_path / "packed"
    load(originals / "llama", quantization_config=asked).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    assert [found.message for found in find(folder)] == []
    rewrite(folder, lambda held: {name: value for name, value in held.items() if "layers.1.mlp.up_proj" not in name})
    assert "model.layers.1.mlp.up_proj.weight" in only(folder, "missing_tensors").message


def test_a_snapshot_of_the_hub_cache_has_no_findings(originals: Path, tmp_path: Path) -> None:
    """A folder of links into the cache's own blobs, as every tool of the hub keeps it, is examined like any other."""
    repo = tmp_path / "models--org--name"
    shutil.copytree(originals / "llama", repo / "blobs")
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in (repo / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    assert find(snapshot) == []
    (snapshot / "notes.json").symlink_to("/etc/passwd")
    only(snapshot, "not_a_regular_file")


def test_a_single_safetensors_file_is_examined(llama: Path) -> None:
    """One file is examined by itself: its header and its values, and not what a folder should hold."""
    path = llama / "model.safetensors"
    assert diagnose(SingleFile(path)) == []
    rewrite(llama, lambda tensors: tensors | {"model.norm.weight": np.full(32, np.nan, np.float32)})
    assert [found.code for found in diagnose(SingleFile(path))] == ["nonfinite"]


# Files


def test_avoidable_pickle(llama: Path) -> None:
    """`avoidable_pickle`: pickled weights, a warning beside safetensors; `yard convert` leaves or converts them."""
    (llama / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    beside = only(llama, "avoidable_pickle", "warning")
    assert "beside `model.safetensors`" in beside.message
    (llama / "model.safetensors").unlink()
    assert "the weights are pickles" in only(llama, "avoidable_pickle").message
    assert str(beside.hint).startswith(f"yard convert {llama}")


@pytest.mark.parametrize("name", ["vocab.txt", "training_args.bin", "model.safetensors"])
def test_pickle(llama: Path, name: str) -> None:
    """`pickle`: a pickle under any name, and what training left."""
    (llama / name).write_bytes(pickle.dumps({"lr": 1}))
    assert name in only(llama, "pickle").message


def test_archive(llama: Path) -> None:
    """`archive`: a compressed file under the weights' name."""
    (llama / "model.safetensors").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    only(llama, "archive")


def test_empty_file(llama: Path) -> None:
    """`empty_file`: a tokenizer file without a byte."""
    (llama / "tokenizer.model").touch()
    only(llama, "empty_file")


def test_wrong_name(llama: Path) -> None:
    """`wrong_name`: safetensors under a name that no loader looks for."""
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert "pytorch_model.safetensors" in only(llama, "wrong_name").message


def test_unknown_format(llama: Path) -> None:
    """`unknown_format`: named like weights, and nothing that anyone reads."""
    (llama / "pytorch_model.bin").write_bytes(b"\x01\x02\x03 nothing")
    only(llama, "unknown_format")


@pytest.mark.parametrize(
    ("name", "head", "library"),
    [
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "TensorFlow"),
        ("flax_model.msgpack", b"\x81\xa6params\x80", "Flax"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch:", "ONNX"),
        ("weights", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ],
)
def test_foreign_weights(llama: Path, name: str, head: bytes, library: str) -> None:
    """`foreign_weights`: another library's, told by content; a warning beside safetensors, an error in their place."""
    (llama / name).write_bytes(head + bytes(64))
    assert library in only(llama, "foreign_weights", "warning").message
    (llama / "model.safetensors").unlink()
    assert library in only(llama, "foreign_weights", "error").message


def test_not_a_regular_file(llama: Path) -> None:
    """`not_a_regular_file`: a link out of the folder."""
    (llama / "notes").symlink_to("/etc/passwd")
    only(llama, "not_a_regular_file")


def test_unsafe_path(shards: Path) -> None:
    """`unsafe_path`: an index that names a file outside the folder."""
    path, index = index_of(shards)
    index["weight_map"]["lm_head.weight"] = "../outside.safetensors"
    path.write_text(json.dumps(index))
    assert "unsafe_path" in {found.code for found in find(shards)}


def test_bad_json(llama: Path) -> None:
    """`bad_json`: a configuration that was cut off."""
    (llama / "generation_config.json").write_text('{"eos_token_id": ')
    assert "generation_config.json" in only(llama, "bad_json").message


def test_file_too_large(llama: Path) -> None:
    """`file_too_large`: a configuration of gigabytes is not read."""
    with (llama / "special_tokens_map.json").open("wb") as stream:
        stream.truncate(65 << 20)
    assert "file_too_large" in {found.code for found in find(llama)}


def test_remote_code(llama: Path) -> None:
    """`remote_code`: a configuration that asks for code of its own."""
    edit(llama, auto_map={"AutoModel": "modeling.Model"})
    assert "auto_map" in only(llama, "remote_code").message


# The set of weights


def test_misnamed_weights(llama: Path) -> None:
    """`misnamed_weights`: the only weights have a name that loaders do not look for."""
    (llama / "model.safetensors").rename(llama / "weights.safetensors")
    assert "weights.safetensors" in only(llama, "misnamed_weights").message


def test_missing_index(shards: Path) -> None:
    """`missing_index`: all shards, and nothing that names them."""
    index_of(shards)[0].unlink()
    only(shards, "missing_index")


def test_bad_index(shards: Path) -> None:
    """`bad_index`: an index without its map."""
    index_of(shards)[0].write_text('{"metadata": {}}')
    only(shards, "bad_index")


@pytest.mark.parametrize("indexed", [True, False])
def test_missing_shard(shards: Path, indexed: bool) -> None:
    """`missing_shard`: a shard that the index, or the others' names, say should be there; its tensors are no second finding."""
    next(shards.glob("model-00002-*")).unlink()
    if not indexed:
        index_of(shards)[0].unlink()
    only(shards, "missing_shard")


@pytest.mark.row(17)
@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.norm.weight"])
def test_index_mismatch(shards: Path, tensor: str) -> None:
    """`index_mismatch`: a tensor in another shard than the index says, named with both; also one that was alone in its shard."""
    path, index = index_of(shards)
    wrong = min(set(index["weight_map"].values()) - {index["weight_map"][tensor]})
    right, index["weight_map"][tensor] = index["weight_map"][tensor], wrong
    path.write_text(json.dumps(index))
    found = only(shards, "index_mismatch")
    assert right in found.message
    assert wrong in found.message


def test_index_without_a_tensor(shards: Path) -> None:
    """`index_mismatch` too: a tensor of a shard that the index does not name."""
    path, index = index_of(shards)
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    assert "lm_head.weight" in only(shards, "index_mismatch").message


def test_duplicate_tensor(shards: Path) -> None:
    """`duplicate_tensor`: one name in two shards."""
    weight_map = index_of(shards)[1]["weight_map"]
    home, other = (
        weight_map["lm_head.weight"],
        next(s for s in weight_map.values() if s != weight_map["lm_head.weight"]),
    )
    head = load_file(shards / home)["lm_head.weight"]
    rewrite(shards, lambda tensors: tensors | {"lm_head.weight": head}, other)
    path, index = index_of(shards)
    index["metadata"]["total_size"] += head.nbytes
    path.write_text(json.dumps(index))
    only(shards, "duplicate_tensor")


def test_stray_shard(shards: Path) -> None:
    """`stray_weights`: a shard that an older index named."""
    shutil.copy(next(shards.glob("model-00001-*")), shards / "model-00009-of-00009.safetensors")
    assert "model-00009-of-00009" in only(shards, "stray_weights").message


@pytest.mark.parametrize("other", ["model.fp16.safetensors", "consolidated.safetensors"])
def test_two_weight_sets(llama: Path, other: str) -> None:
    """`two_weight_sets`: a variant of the weights beside them."""
    shutil.copy(llama / "model.safetensors", llama / other)
    assert other in only(llama, "two_weight_sets").message


def test_a_single_file_beside_shards(shards: Path, originals: Path) -> None:
    """`two_weight_sets` too: one file and an index with its shards."""
    shutil.copy(originals / "llama" / "model.safetensors", shards)
    only(shards, "two_weight_sets")


def test_total_size(shards: Path) -> None:
    """`total_size`: an index whose sum is wrong; good to know, since no loader reads it."""
    path, index = index_of(shards)
    index["metadata"]["total_size"] = 7
    path.write_text(json.dumps(index))
    only(shards, "total_size", "info")


# The table and the page


def named_codes() -> set[str]:
    """Every code that the doctor's own source gives to a finding."""
    folder = Path(str(doctor_package.__file__)).parent
    found: set[str] = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "make":
                first = node.args[0]
                found |= {str(first.value)} if isinstance(first, ast.Constant) else set()
    return found


def test_every_code_of_the_source_is_in_the_table() -> None:
    """No finding has a code that `CODES` lacks."""
    assert named_codes() <= set(CODES)


def test_every_code_has_a_test_here() -> None:
    """Each code of the table is broken on purpose in the doctor's tests."""
    here = Path(__file__).parent
    said = "".join(path.read_text("utf-8") for path in here.glob("test_doctor*.py"))
    assert {code for code in CODES if f'"{code}"' not in said} == set()


def test_the_guide_explains_every_code() -> None:
    """docs/guides/diagnosing.md has a row for each code, of the table and of the refused headers, and for no other."""
    rows = set(re.findall(r"^\| `(\w+)` \|", GUIDE.read_text("utf-8"), re.MULTILINE))
    assert rows == set(CODES) | set(HEADER_CODES) | set(GGUF_CODES) | REFUSALS
