"""Pickles become safetensors in isolation, and weights another dtype; nothing is left behind when it fails."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelyard.derivations import apply_cast
from modelyard.errors import ConflictError, InputError, ModelError, PickleError
from modelyard.weights import FolderFiles, check_model
from modelyard.weights.convert import _pickle_worker, cast, convert_pickle

W = torch.arange(6, dtype=torch.float32).reshape(2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration and a tokenizer, waiting for weights."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}')
    (made / "tokenizer.json").write_text("{}")
    return made


def failure(folder: Path, **options: Any) -> ModelError:
    """The error of a conversion, after which nothing may be left beside the folder."""
    with pytest.raises(ModelError) as caught:
        convert_pickle(folder, folder.parent / "out", **options)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return caught.value


def test_converts_one_file(folder: Path, tmp_path: Path) -> None:
    """The tensors come out equal, configuration and tokenizer come along, and the result is a model."""
    torch.save({"w": W, "epoch": 3}, folder / "pytorch_model.bin")
    made = convert_pickle(folder, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], W)
    assert made.converted == {"pytorch_model.bin": "model.safetensors"}
    assert made.carried == ["config.json", "tokenizer.json"]
    assert made.dropped == ["epoch"]
    check_model(FolderFiles(tmp_path / "out"))


def test_reads_the_format_from_before_zip(tmp_path: Path) -> None:
    """Files of torch 1.5 and older, which are no archives and cannot be mapped, are read too."""
    torch.save({"w": W}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(_pickle_worker.read(str(tmp_path / "old.bin"))["w"], W)


def test_converts_shards_and_their_index(folder: Path, tmp_path: Path) -> None:
    """Shards convert one by one, and a new index names them."""
    torch.save({"a": W}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": W + 1}, folder / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    convert_pickle(folder, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert index["metadata"]["total_size"] == 48
    check_model(FolderFiles(tmp_path / "out"))


def test_missing_shard_is_named(folder: Path) -> None:
    """An index that names a shard which is not there is an error, and nothing is written."""
    torch.save({"a": W}, folder / "pytorch_model-00001-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert failure(folder).code == "incomplete_version"


def test_index_that_points_out(folder: Path, tmp_path: Path) -> None:
    """An index that names a file outside the folder is refused."""
    torch.save({"a": W}, tmp_path / "model" / "x.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    assert failure(folder).code == "unsafe_path"


def test_shared_memory_is_separated() -> None:
    """Tensors that share memory get their own, and views become contiguous."""
    owned, copied = _pickle_worker.separate({"a": W, "b": W, "c": W.t()})
    assert torch.equal(owned["b"], W)
    assert torch.equal(owned["c"], W.t())
    assert all(tensor.is_contiguous() for tensor in owned.values())
    assert len({tensor.data_ptr() for tensor in owned.values()}) == 3
    assert copied == ["b", "c"]


def test_tied_head_is_not_stored_twice() -> None:
    """An output layer that is the embedding's memory is found; equal values in other memory are not."""
    assert _pickle_worker.tied_heads({"model.embed_tokens.weight": W, "lm_head.weight": W}) == ["lm_head.weight"]
    assert _pickle_worker.tied_heads({"model.embed_tokens.weight": W, "lm_head.weight": W.clone()}) == []
    assert _pickle_worker.tied_heads({"a": W, "b": W}) == []


def test_adapter(folder: Path, tmp_path: Path) -> None:
    """An adapter's pickle becomes adapter_model.safetensors beside its configuration; a tied model's head is left out."""
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    (folder / "adapter_config.json").write_text("{}")
    torch.save({"m.lora_A.weight": W, "m.embed_tokens.weight": W, "lm_head.weight": W}, folder / "adapter_model.bin")
    made = convert_pickle(folder, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sorted(tensors) == ["m.embed_tokens.weight", "m.lora_A.weight"]
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert made.dropped == ["lm_head.weight"]


def test_safetensors_are_kept_and_pickles_left(folder: Path, tmp_path: Path) -> None:
    """Where safetensors are there already, they are copied, and no pickle is opened."""
    save_file({"w": W}, folder / "model.safetensors")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb("x")))
    made = convert_pickle(folder, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert made.left == ["training_args.bin"]


class Bomb:
    """A pickle that creates a file when it is loaded without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.row(20)
def test_code_in_a_pickle_does_not_run(folder: Path, tmp_path: Path) -> None:
    """A pickle that needs code is refused as such, and its code did not run."""
    torch.save({"w": W, "x": Bomb(str(folder / "ran"))}, folder / "pytorch_model.bin")
    error = failure(folder)
    assert isinstance(error, PickleError)
    assert error.code == "pickle_code"
    assert not (folder / "ran").exists()


@pytest.mark.row(20)
def test_compressed_archive_is_refused(folder: Path) -> None:
    """A zip that unpacks to more than it is, is refused before anything is unpickled."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    (folder / "pytorch_model.bin").write_bytes(made.getvalue())
    assert failure(folder).code == "pickle_bomb"


@pytest.mark.parametrize(
    ("value", "said"),
    [([1, 2], "list"), ({"w": W.to_sparse()}, "sparse")],
)
def test_what_is_no_state_dict(value: Any, said: str) -> None:
    """A pickle without tensors by name, or with sparse ones, is an error that says so."""
    with pytest.raises(TypeError, match=said):
        _pickle_worker.select(value)


def test_wrapped_state_dict_is_found() -> None:
    """A state dict inside a training checkpoint is taken, and only its tensors."""
    tensors, dropped = _pickle_worker.select({"epoch": 3, "state_dict": {"w": W, "step": 7}})
    assert (list(tensors), dropped) == (["w"], ["step"])


def test_pickle_without_tensors(folder: Path) -> None:
    """A pickle that holds no tensor is an error that names the file."""
    torch.save({"x": 1}, folder / "pytorch_model.bin")
    error = failure(folder)
    assert error.code == "conversion_failed"
    assert "pytorch_model.bin" in error.message
    assert "no tensors" in error.message


def test_memory_is_limited(folder: Path) -> None:
    """A process that may not have the memory ends in a typed error."""
    torch.save({"w": W}, folder / "pytorch_model.bin")
    assert failure(folder, memory=200 << 20).code == "conversion_failed"


def test_nothing_to_convert(folder: Path) -> None:
    """A folder without a pickle is an error."""
    assert failure(folder).code == "nothing_to_convert"


def test_existing_target_is_a_conflict(folder: Path, tmp_path: Path) -> None:
    """A target with something in it is never written into."""
    torch.save({"w": W}, folder / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConflictError):
        convert_pickle(folder, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


@pytest.mark.parametrize(("dtype", "code"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_cast(folder: Path, tmp_path: Path, dtype: str, code: str) -> None:
    """Floating-point tensors are cast by cast/1, others kept, and the configuration says the new dtype."""
    values = torch.linspace(-3, 3, 100_001)
    save_file({"w": values, "n": torch.arange(3)}, folder / "model.safetensors", {"format": "pt"})
    made = cast(FolderFiles(folder), tmp_path / "out", dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")
    wanted = apply_cast(values.numpy(), "F32", code)
    kept = torch.int32 if code == "F32" else torch.int16
    assert np.array_equal(found["w"].view(kept).numpy(), wanted.view(np.int32 if code == "F32" else np.int16))
    assert torch.equal(found["n"], torch.arange(3))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    assert (made.matched["cast"], made.matched["kept"]) == ((0, 2) if code == "F32" else (1, 1))
    check_model(FolderFiles(tmp_path / "out"))


def test_cast_of_shards(folder: Path, tmp_path: Path) -> None:
    """Shards keep their names, and the index its map, with the new size."""
    save_file({"a": W}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": W}, folder / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"x": 1}, "weight_map": weight_map}))
    seen: list[tuple[int, int]] = []
    cast(FolderFiles(folder), tmp_path / "out", "bfloat16", progress=lambda done, total: seen.append((done, total)))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"x": 1, "total_size": 24}, "weight_map": weight_map}
    assert seen == [(12, 24), (24, 24)]
    check_model(FolderFiles(tmp_path / "out"))


@pytest.mark.parametrize(
    ("tensor", "dtype", "code"),
    [
        (torch.tensor([float("nan")]), "bfloat16", "nan_result"),
        (torch.tensor([1e30]), "float16", "infinite_result"),
        (torch.zeros(1, dtype=torch.float64), "float32", "unsupported_dtype"),
    ],
)
def test_cast_refuses(folder: Path, tmp_path: Path, tensor: torch.Tensor, dtype: str, code: str) -> None:
    """A NaN, a number that does not fit and a format without an exact operation are errors that name the tensor."""
    save_file({"the.tensor": tensor}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"the\.tensor") as caught:
        cast(FolderFiles(folder), tmp_path / "out", dtype)
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_cast_to_an_unknown_dtype(folder: Path, tmp_path: Path) -> None:
    """An unknown dtype is an error with the one that was meant."""
    with pytest.raises(InputError) as caught:
        cast(FolderFiles(folder), tmp_path / "out", "bflot16")
    assert "bfloat16" in str(caught.value.hint)
