"""What every model folder must pass before a library reads it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.errors import ModelError, PickleError
from modelyard.weights import FolderFiles, check_model, check_weights
from modelyard.weights.content import identify, identify_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model in two shards."""
    made = tmp_path / "model"
    made.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, made / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, made / "model-00002-of-00002.safetensors")
    write_index(made, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    (made / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return made


def write_index(folder: Path, weight_map: Any) -> None:
    """The folder's index, with this map."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path) -> ModelError:
    """The error that checking this folder's weights raises."""
    with pytest.raises(ModelError) as caught:
        check_weights(FolderFiles(folder))
    return caught.value


def torch_pickle() -> bytes:
    """A file as `torch.save` writes it: a zip archive with a pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return made.getvalue()


def test_sound_folder_passes(folder: Path) -> None:
    """A sharded model passes both checks."""
    check_weights(FolderFiles(folder))
    check_model(FolderFiles(folder))


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/etc/passwd", "C:\\x", "\\\\host\\share", "a/../../x", "", ".", "x\0.safetensors"]
)
@pytest.mark.row(16)
def test_index_that_points_out(folder: Path, path: str) -> None:
    """A weight map with a path out of the folder, a drive or a UNC share is refused before that file is touched."""
    write_index(folder, {"a": path})
    assert refusal(folder).code == "unsafe_path"


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00003-of-00002.safetensors"}, "is missing"),
        ({"a": "model-00002-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}, "should be in"),
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}, "should be in"),
        ({"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}, "in no shard"),
        ({}, None),
    ],
)
@pytest.mark.row(17)
def test_index_that_disagrees_with_its_shards(folder: Path, weight_map: dict[str, str], said: str | None) -> None:
    """A missing shard, a tensor in another shard, or in none, is listed. An index of nothing names nothing wrong."""
    write_index(folder, weight_map)
    if said is None:
        check_weights(FolderFiles(folder))
        return
    error = refusal(folder)
    assert error.code == "incomplete_version"
    assert said in error.message
    assert error.details["differences"]


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, "x"])
def test_index_that_is_no_index(folder: Path, weight_map: Any) -> None:
    """A weight map that does not map names to names is `bad_index`."""
    write_index(folder, weight_map)
    assert refusal(folder).code == "bad_index"


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"[" * 100_000])
def test_json_that_is_none(folder: Path, text: bytes) -> None:
    """A config.json that is no JSON object, however broken, is `bad_json` and names the file."""
    (folder / "config.json").write_bytes(text)
    error = refusal(folder)
    assert error.code == "bad_json"
    assert "config.json" in error.message


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model-00001-of-00002.safetensors", "notes.txt", "tokenizer.model"]
)
@pytest.mark.parametrize("data", [torch_pickle(), pickle.dumps({"a": 1}), pickle.dumps({"a": [1, "x"]}, protocol=0)])
@pytest.mark.row(19, 20)
def test_pickle_is_found_by_content(folder: Path, name: str, data: bytes) -> None:
    """A pickle is refused under every name and in every protocol, with the command that converts it."""
    (folder / name).write_bytes(data)
    error = refusal(folder)
    assert isinstance(error, PickleError)
    assert str(error.hint).endswith(f"yard convert {folder} --to ./OUT")


@pytest.mark.parametrize("data", [b"cos\nsystem\n(S'true'\ntR.", b"cos\nsystem\n)R.", b"(S'true'\nios\nsystem\n."])
def test_shortest_attacks_are_pickles(data: bytes) -> None:
    """The few bytes that call a function when unpickled are recognised."""
    assert identify_bytes(data) == "pickle"


def test_pickled_numpy_array_is_a_pickle(tmp_path: Path) -> None:
    """A .npy of objects holds a pickle; one of numbers does not."""
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    assert identify(tmp_path / "objects.npy") == "pickle"
    assert identify(tmp_path / "numbers.npy") == "other"


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"a": [1, 2]}',
        b"# Title\n",
        b"(see the notes)",
        b"\n\x05\n\x01a",
        b"Internal notes.\nIn\n",
        b"c++ notes\n",
        b"]",
        b"})",
        b"(...)",
        b"cat\ncar\ncup\ncab\ncan\ncow\ncot\ncub\n" * 9,
    ],
)
def test_ordinary_text_is_no_pickle(text: bytes) -> None:
    """Text that begins with a byte which is also a pickle's opcode is not taken for one."""
    assert identify_bytes(text) == "other"


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "lfs_pointer"),
        ("config.json", b"<!DOCTYPE html>", "html_page"),
        ("data.zip", b"PK\x05\x06" + bytes(18), "archive"),
        ("model.tar.gz", b"\x1f\x8b\x08" + bytes(20), "archive"),
        ("pytorch_model.bin", b"something else", "unknown_format"),
        ("model-00001-of-00002.safetensors", b"", "header_too_small"),
    ],
)
@pytest.mark.row(19)
def test_what_is_no_model_file(folder: Path, name: str, data: bytes, code: str) -> None:
    """A git-lfs pointer, a web page, an archive and an unknown weights file are named as such."""
    (folder / name).write_bytes(data)
    error = refusal(folder)
    assert error.code == code
    assert name in error.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.ckpt"])
def test_safetensors_under_another_name(folder: Path, name: str) -> None:
    """Sound weights that no loader would look at under their name are refused, with the name they should have."""
    (folder / name).write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    error = refusal(folder)
    assert error.code == "wrong_name"
    assert str(error.hint).endswith(".safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling.X"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "other/repo--modeling.X"}}}),
        ("config.json", {"trust_remote_code": True}),
        ("config.json", {"_attn_implementation": "someone/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}),
        ("generation_config.json", {"custom_generate": "someone/loop"}),
        ("adapter_config.json", {"auto_mapping": {"parent_library": "evil", "base_model_class": "X"}}),
    ],
)
@pytest.mark.row(22)
def test_code_from_elsewhere_is_refused(folder: Path, name: str, value: dict[str, Any]) -> None:
    """A configuration that asks for code outside of transformers is refused, and the message names the key."""
    (folder / name).write_text(json.dumps(value))
    error = refusal(folder)
    assert error.code == "remote_code"
    assert name in error.message


@pytest.mark.parametrize("value", [{"auto_map": None}, {"_attn_implementation": "sdpa"}, {"trust_remote_code": False}])
def test_harmless_settings_pass(folder: Path, value: dict[str, Any]) -> None:
    """Empty values of the same keys, and implementations by name, are no code."""
    (folder / "config.json").write_text(json.dumps(value))
    check_weights(FolderFiles(folder))


@pytest.mark.parametrize(
    ("present", "missing"),
    [([], "no config.json and no weights"), (["config.json"], "no weights"), (["model.safetensors"], "no config.json")],
)
def test_what_a_model_lacks_is_named(tmp_path: Path, present: list[str], missing: str) -> None:
    """A folder that is no model is refused with what it lacks and what is there instead."""
    (tmp_path / "notes.md").write_text("x")
    for name in present:
        if name == "config.json":
            (tmp_path / name).write_text("{}")
        else:
            save_file({"a": np.zeros(1)}, tmp_path / name)
    with pytest.raises(ModelError) as caught:
        check_model(FolderFiles(tmp_path))
    assert caught.value.code == "not_a_model"
    assert missing in caught.value.message
    assert "notes.md" in caught.value.message


def test_folder_without_weights_passes_check_weights(tmp_path: Path) -> None:
    """`check_weights` has nothing to say about a folder that holds none."""
    (tmp_path / "notes.md").write_text("x")
    check_weights(FolderFiles(tmp_path))
