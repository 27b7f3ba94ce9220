"""Shards are planned and written as safetensors and the Hub's libraries read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from modelyard.digest import digest_bytes
from modelyard.errors import InputError, InternalError
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.files import FolderFiles
from modelyard.weights.shards import ShardWriter, TensorSpec, parse_size, plan_shards, write_index

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.derivations.numbers import Array


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5_000_000_000), ("500MiB", 500 << 20), ("1.5 kb", 1500), ("10", 10), (7, 7), ("2tib", 2 << 40)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    """Powers of 1000 and of 1024, in any case, with or without a space."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 parsecs", "-1GB", "0", "0.1B", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """With the text in the message."""
    with pytest.raises(InputError) as caught:
        parse_size(text)
    assert caught.value.code == "bad_size"
    assert text in caught.value.message


def test_tensors_keep_their_order_and_are_never_cut() -> None:
    """Each file holds at most `shard_size`, except for a tensor above it, which is alone."""
    sizes = [40, 40, 40, 500, 10, 10, 90, 1]
    specs = [TensorSpec(f"t{place}", "U8", (size,)) for place, size in enumerate(sizes)]
    plan = plan_shards(specs, 100)
    assert [spec for held in plan.values() for spec in held] == specs
    assert [[spec.size for spec in held] for held in plan.values()] == [[40, 40], [40], [500], [10, 10], [90, 1]]
    assert next(iter(plan)) == "model-00001-of-00005.safetensors"
    assert list(plan_shards(specs, None, "adapter_model")) == ["adapter_model.safetensors"]
    assert plan_shards([], 10) == {"model.safetensors": []}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """The safetensors library and our reader give the arrays that were written, scalars and empty ones among them; the digest is the file's."""
    made: dict[str, Array] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, np.int64),
        "c": np.zeros((0, 4), np.float16),
        "d": np.arange(5, dtype=np.uint8),
    }
    names = {"float32": "F32", "int64": "I64", "float16": "F16", "uint8": "U8"}
    specs = [TensorSpec(name, names[array.dtype.name], array.shape) for name, array in made.items()]
    plan = plan_shards(specs, 30)
    assert len(plan) == 2
    for file, held in plan.items():
        with ShardWriter(tmp_path / file, held) as writer:
            for spec in held:
                writer.write(made[spec.name].tobytes())
        assert writer.digest() == digest_bytes((tmp_path / file).read_bytes())
    assert write_index(tmp_path, plan, {"note": "kept"}) is not None
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"note": "kept", "total_size": 37}
    weights = open_checkpoint(FolderFiles(tmp_path))
    loaded = {name: array for file in plan for name, array in load_file(tmp_path / file).items()}
    assert weights.home == {spec.name: file for file, held in plan.items() for spec in held}
    assert {name: (array.dtype, array.shape) for name, array in loaded.items()} == {
        name: (array.dtype, array.shape) for name, array in made.items()
    }
    assert all(np.array_equal(loaded[name], array) for name, array in made.items())
    assert weights.shards["model-00001-of-00002.safetensors"].metadata == {"format": "pt"}


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    """Nothing is written for it."""
    assert write_index(tmp_path, plan_shards([TensorSpec("a", "U8", (1,))], None)) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [3, 5])
def test_wrong_number_of_bytes_is_our_fault(tmp_path: Path, count: int) -> None:
    """A file whose bytes are fewer or more than its header says is never called done."""
    with pytest.raises(InternalError), ShardWriter(tmp_path / "x", [TensorSpec("a", "U8", (4,))]) as writer:
        writer.write(bytes(count))
