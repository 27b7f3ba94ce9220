"""A GGUF file is estimated as the model that loading makes of it, from its header alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelError
from modelyard.weights.convert.gguf import to_gguf
from modelyard.weights.estimate import Machine, estimate
from modelyard.weights.load import load
from tiny_models import make_llama, save_model
from weights.convert.gguf.gguf_forms import strip

GIVEN: dict[str, Any] = {"length": 32, "method": "meta", "machine": Machine("cpu", 1 << 40, 1 << 40)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, and beside it the file that is made of it."""
    folder = save_model(tmp_path_factory.mktemp("estimated") / "model", make_llama())
    to_gguf(folder, folder.parent / "gguf", type="Q8_0")
    to_gguf(folder, folder.parent / "half", type="F16")
    return folder


def test_a_file_takes_what_its_model_takes(model: Path) -> None:
    """Blocks are loaded as float32: parameters, weights and cache are those of the float32 folder, and of the loaded file."""
    file = model.parent / "gguf" / "model.gguf"
    found, folder = estimate(file, **GIVEN), estimate(model, **GIVEN)
    assert found.to_dict() == folder.to_dict()
    loaded = load(file).model
    assert found.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert estimate(model.parent / "gguf", **GIVEN).weights == found.weights


def test_half_precision_is_kept(model: Path) -> None:
    """A file of F16 is loaded as float16: half the weights."""
    found = estimate(model.parent / "half", **GIVEN)
    assert found.dtype == "float16"
    assert found.weights == estimate(model, dtype="float16", **GIVEN).weights


def test_another_converters_file_is_estimated_by_its_keys(model: Path, tmp_path: Path) -> None:
    """No configuration of ours in it: the header's hyperparameters say the same."""
    file = strip(model.parent / "gguf" / "model.gguf", tmp_path / "plain.gguf")
    found, folder = estimate(file, **GIVEN), estimate(model, **GIVEN)
    assert (found.parameters, found.peak, found.architecture) == (folder.parameters, folder.peak, "LlamaForCausalLM")


def test_several_files_and_none_that_is_known_are_refused(model: Path, tmp_path: Path) -> None:
    """Two files are not guessed between, and a header that is unsound is named."""
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(model.parent / "gguf" / "model.gguf", tmp_path / "two" / name)
    with pytest.raises(ModelError, match="holds 2 GGUF files") as caught:
        estimate(tmp_path / "two")
    assert caught.value.code == "no_config"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="not a sound GGUF file"):
        estimate(broken)


def test_estimating_reads_no_tensor(model: Path, tmp_path: Path) -> None:
    """The header is enough: what follows it may be a hole of the same size."""
    file = model.parent / "gguf" / "model.gguf"
    from modelyard.weights.gguf import read_gguf

    header = read_gguf(file)
    hole = tmp_path / "hole.gguf"
    hole.write_bytes(file.read_bytes()[: header.data_start])
    with hole.open("r+b") as stream:
        stream.truncate(file.stat().st_size)
    assert estimate(hole, **GIVEN).to_dict() == estimate(file, **GIVEN).to_dict()
