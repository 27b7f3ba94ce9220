"""Merges into quantized bases: judged by the quantizers' own libraries and by the adapter attached to the quantized base."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_kinds import KINDS
from modelyard.errors import ModelError, RequestError
from modelyard.weights import FolderFiles
from modelyard.weights.certificate import read
from modelyard.weights.loading.quantization import quiet_imports
from modelyard.weights.merge import merge
from modelyard.weights.merge.quantized import open_dequantized

if TYPE_CHECKING:
    from pathlib import Path

    from adapter_kinds import Made

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
METHODS = ["bnb-4bit", "bnb-8bit", "torchao"]


@pytest.fixture(scope="module", params=METHODS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A quantized base, the base it was quantized from, and an adapter of the quantized one."""
    quiet_imports()
    return KINDS[f"quantized-{request.param}"](tmp_path_factory.mktemp(request.param))


def dequantized_by_its_library(made: Made) -> dict[str, torch.Tensor]:
    """The quantized base's weights as transformers and the quantizer turn them back."""
    model = made.load()
    method = json.loads((made.base / "config.json").read_text("utf-8"))["quantization_config"]["quant_method"]
    state = model.state_dict() if method == "torchao" else model.dequantize().state_dict()
    return {
        name: (value.dequantize() if hasattr(value, "qdata") else value).to(torch.bfloat16)
        for name, value in state.items()
    }


def bits(base: Any, name: str) -> torch.Tensor:
    """A bfloat16 tensor of a `Checkpoint`."""
    return torch.from_numpy(base.read(name).view("<i2").copy()).view(torch.bfloat16)


def test_dequantized_tensors_are_the_library_s(made: Made) -> None:
    """Every tensor has the bits that the quantizer's own library gives, under the names of the base before quantization."""
    base, wanted = open_dequantized(FolderFiles(made.base)), dequantized_by_its_library(made)
    assert made.original is not None
    assert base.home.keys() == load_file(made.original / "model.safetensors").keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(bits(base, name), value), name


@pytest.mark.parametrize("mode", ["exact", "peft"])
def test_dequantized_merge_is_the_library_s_numbers_plus_the_adapter(tmp_path: Path, made: Made, mode: Any) -> None:
    """The merged folder is a plain model: the dequantized weights with the product added, and no trace of quantization."""
    certificate = merge(
        FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out", mode=mode, quantized="dequantized"
    )
    assert certificate.exactness == "this machine"
    found, base = load_file(tmp_path / "out" / "model.safetensors"), dequantized_by_its_library(made)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    factors = load_file(made.adapter / "adapter_model.safetensors")
    assert found.keys() == base.keys()
    for name, value in found.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = base[name].clone()
        if f"{module}.lora_A.weight" in factors:
            wanted += factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"] * (5 / 3)
        assert torch.allclose(value.float(), wanted.float(), rtol=2**-7, atol=1e-5), name
    answered = made.run(made.load(tmp_path / "out"))
    assert bool(answered.isfinite().all())


def test_both_differences_are_in_the_certificate(tmp_path: Path) -> None:
    """With the original weights at hand, both answers are measured against the adapter on the quantized base."""
    quiet_imports()
    made = KINDS["quantized-bnb-4bit"](tmp_path)
    assert made.original is not None
    merge(
        FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out", quantized="original",
        original=FolderFiles(made.original), check=True,
    )  # fmt: skip
    found = read(FolderFiles(tmp_path / "out"))
    assert found is not None
    assert found.exactness == "everywhere"
    worst: dict[str, float] = {}
    for check in found.checks:
        answer, _, what = check["name"].partition(": ")
        if "logits" in what:
            worst[answer] = max(worst.get(answer, 0.0), check["max_difference"] / check["scale"])
    assert worst.keys() == {"original", "dequantized"}
    assert worst["dequantized"] < 0.1 < worst["original"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_choice_is_asked_for(tmp_path: Path, made: Made) -> None:
    """Without a choice the error names both answers, and nothing is written."""
    with pytest.raises(ModelError) as caught:
        merge(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert caught.value.code == "quantized_base"
    assert "--quantized dequantized" in str(caught.value.hint)
    assert "--quantized original --original" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_choices_that_make_no_sense_are_refused(tmp_path: Path, made: Made) -> None:
    """`original` needs its weights, unquantized and of the same shapes; a plain base takes no choice."""
    base, adapter, original = FolderFiles(made.base), FolderFiles(made.adapter), FolderFiles(made.original or made.base)
    with pytest.raises(RequestError, match="not given"):
        merge(base, adapter, tmp_path / "out", quantized="original")
    with pytest.raises(RequestError, match="quantized too"):
        merge(base, adapter, tmp_path / "out", quantized="original", original=base)
    with pytest.raises(RequestError, match="is not quantized"):
        merge(original, adapter, tmp_path / "out", quantized="dequantized")
    other = KINDS["linear-bfloat16-float32"](tmp_path / "other")
    with pytest.raises(ModelError, match="is not what") as caught:
        merge(base, adapter, tmp_path / "out", quantized="original", original=FolderFiles(other.base))
    assert caught.value.code == "bad_shape"


def test_a_quantized_base_in_several_files(tmp_path: Path) -> None:
    """Parts of one tensor may lie in several files; the merged folder's index lists plain tensors and loads."""
    quiet_imports()
    made = KINDS["quantized-bnb-4bit"](tmp_path)
    split = tmp_path / "split"
    shutil.copytree(made.base, split)
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    homes = {name: f"model-0000{number % 3 + 1}-of-00003.safetensors" for number, name in enumerate(sorted(tensors))}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in homes if homes[name] == home}, split / home, {"format": "pt"})
    (split / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}), "utf-8")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    merge(FolderFiles(made.base), FolderFiles(made.adapter), whole, quantized="dequantized")
    merge(FolderFiles(split), FolderFiles(made.adapter), parted, quantized="dequantized")
    index = json.loads((parted / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    wanted = load_file(whole / "model.safetensors")
    assert index.keys() == wanted.keys()
    for name, shard in index.items():
        assert torch.equal(load_file(parted / shard)[name], wanted[name])
    assert torch.equal(made.run(made.load(parted)), made.run(made.load(whole)))


def test_a_form_that_is_not_known_names_the_other_answer(tmp_path: Path) -> None:
    """A base quantized by a method that is not turned back here can still be merged into its original."""
    made = KINDS["linear-bfloat16-float32"](tmp_path)
    path = made.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="gptq") as caught:
        merge(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out", quantized="dequantized")
    assert caught.value.code == "quantized_base"
    assert "--quantized original" in str(caught.value.hint)
