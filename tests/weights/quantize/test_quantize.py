"""Quantized folders: plain transformers loads them, their outputs are ours, what differs is measured, and nothing else is lost."""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from modelyard.errors import ConflictError, ModelError, RequestError
from modelyard.weights import certificate
from modelyard.weights.files import FolderFiles
from modelyard.weights.load import load
from modelyard.weights.loading import quantization
from modelyard.weights.quantize import METHODS, check_method, quantize, quantizing
from modelyard.weights.quantize.methods import REFUSED
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.weights.certificate import Certificate

pytestmark = [pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
CARRIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 Llama wide enough for groups, with all that a folder may hold."""
    model = make_llama(hidden_size=64, intermediate_size=128).to(torch.bfloat16)
    model.generation_config.repetition_penalty = 1.25
    folder = save_model(tmp_path_factory.mktemp("source"), model)
    (folder / "LICENSE").write_text("free")
    return folder


@pytest.fixture(scope="module", params=list(METHODS))
def made(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A method, the folder that it made, the certificate, and the progress that was reported."""
    out, seen = tmp_path_factory.mktemp("made") / "out", []
    found = quantize(source, out, request.param, tolerance=1.0, progress=lambda done, of: seen.append((done, of)))
    return request.param, out, found, seen


def logits(model: Any) -> torch.Tensor:
    """What a model says of `IDS`."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found.float()


def test_plain_transformers_loads_it_with_the_same_outputs(made: Any, source: Path) -> None:
    """`from_pretrained` without an option, our load and quantizing in memory give the same bits; the source's differ."""
    method, out, _, _ = made
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    ours = load(out)
    assert plain.dtype == ours.model.dtype == torch.bfloat16
    assert torch.equal(logits(plain), logits(ours.model))
    memory = load(source, quantization=method, dtype="bfloat16")
    assert torch.equal(logits(plain), logits(memory.model))
    whole = logits(load(source).model)
    assert 1e-3 < float((logits(plain) - whole).norm() / whole.norm()) < 0.8
    assert plain.config.quantization_config.quant_method in {"torchao", "bitsandbytes"}


def test_it_is_smaller_and_everything_else_comes_along(made: Any, source: Path) -> None:
    """Quantized numbers take the bits that the method says; tokenizer, template, defaults and licence are the same bytes."""
    method, out, _, _ = made
    for name in CARRIED:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    whole, packed = (sum(path.stat().st_size for path in each.glob("*.safetensors")) for each in (source, out))
    linear = sum(
        parameter.numel() for name, parameter in load(source).model.named_parameters() if "proj" in name
    )  # fmt: skip
    bits = 16 - 8 * (whole - packed) / linear
    assert METHODS[method].bits - 0.5 < bits < METHODS[method].bits + 4  # tiny matrices have large headers
    assert not (out / "progress.json").exists()
    assert len({path.stat().st_mode for path in out.iterdir() if path.name != certificate.FILE}) == 1


def test_the_certificate_holds_every_difference_and_what_stays(made: Any, source: Path) -> None:
    """Checks of single rows, the padded batch and greedy tokens with cache; digests; the matrices that no method takes."""
    method, out, found, _ = made
    assert certificate.read(FolderFiles(out)) == found
    assert (found.operation, found.method, found.exactness) == ("quantize", method, certificate.THIS_MACHINE)
    assert [check["name"] for check in found.checks if not check["tokens"]] == [
        f"{name}: logits" for name in ("length 4", "length 7", "length 12", "padded")
    ]
    assert [check["tokens"] for check in found.checks if "greedy" in check["name"]] == [16] * 4
    assert all(check["holds"] and check["max_difference"] > 0 for check in found.checks if not check["tokens"])
    assert set(found.outputs) == {path.name for path in out.iterdir()} - {certificate.FILE}
    assert set(found.inputs["source"]) == {path.name for path in source.iterdir()}
    assert found.matched["quantized"] == 14
    assert found.matched["bytes_in_memory"] == quantization.footprint(load(out).model)
    assert any("lm_head.weight, model.embed_tokens.weight" in each for each in found.warnings)
    assert found.machine is not None
    assert "torchao" in found.machine["libraries"]


def test_progress_goes_through_four_stages(made: Any) -> None:
    """The source is computed, quantized, written, and computed again."""
    assert made[3] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_out_of_tolerance_is_an_error_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """The message says what differs by how much, the hint what would let it pass."""
    with pytest.raises(ModelError, match=r"computes something else: .* is off by 0") as caught:
        quantize(source, tmp_path / "out", "bnb-4bit", tolerance=0.01, tokens=0)
    assert caught.value.code == "quantization_differs"
    assert "--tolerance" in str(caught.value.hint)
    assert caught.value.details["checks"]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_goes_on_with_what_was_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the comparison nothing is quantized again, and the result is the same."""
    real = quantizing._compare

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing, "_compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", "torchao-int8", tolerance=1.0, tokens=0)
    [left] = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    monkeypatch.setattr(quantizing, "_compare", real)
    monkeypatch.setattr(quantizing, "_save_quantized", interrupt)
    found = quantize(source, tmp_path / "out", "torchao-int8", tolerance=1.0, tokens=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert found.matched["quantized"] == 14
    assert torch.equal(logits(load(tmp_path / "out").model), logits(load(source, quantization="torchao-int8").model))


def test_fused_experts_that_stay_are_told(tmp_path: Path) -> None:
    """A mixture's experts are no linear layers: they are kept, and the certificate says so by name."""
    torch.manual_seed(0)
    config: Any = transformers.MixtralConfig(
        vocab_size=60, hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    make: Any = transformers.MixtralForCausalLM
    make(config).save_pretrained(tmp_path / "source")
    found: Certificate = quantize(tmp_path / "source", tmp_path / "out", "bnb-4bit", tolerance=2.0, tokens=0)
    [told] = [each for each in found.warnings if "experts" in each]
    assert "model.layers.0.mlp.experts.gate_up_proj" in told
    assert torch.equal(
        load(tmp_path / "out", allow="preprocessor").model.model.layers[0].mlp.experts.down_proj,
        load(tmp_path / "source", allow="preprocessor").model.model.layers[0].mlp.experts.down_proj,
    )


def test_other_tasks_are_quantized_and_compared_too(tmp_path: Path) -> None:
    """A classifier: its logits are compared, and its head keeps its dtype where a method leaves it out."""
    torch.manual_seed(0)
    shape: Any = transformers.BertConfig
    config = shape(vocab_size=60, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    make: Any = transformers.BertForSequenceClassification
    make(config).save_pretrained(tmp_path / "source")
    found = quantize(tmp_path / "source", tmp_path / "out", "torchao-int8")
    assert {check["name"] for check in found.checks} == {
        f"{name}: logits" for name in ("length 4", "length 7", "length 12", "padded")
    }
    plain: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(
        plain(input_ids=IDS).logits, load(tmp_path / "out", allow="preprocessor").model(input_ids=IDS).logits
    )


def test_without_a_check_the_certificate_says_so(source: Path, tmp_path: Path) -> None:
    """Nothing is measured, and nobody can believe that it was."""
    found = quantize(source, tmp_path / "out", "torchao-int8", check=False, dtype="float32")
    assert found.checks == []
    assert any("nothing was compared" in each for each in found.warnings)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_methods_that_are_not_offered_say_why(tmp_path: Path) -> None:
    """By name, before anything is read; what is quantized on loading only is told from what nobody knows."""
    assert set(METHODS) | set(REFUSED) >= set(quantization.METHODS)
    for name, (reason, instead) in REFUSED.items():
        with pytest.raises(RequestError, match="makes no folder") as caught:
            quantize(tmp_path / "none", tmp_path / "out", name)
        assert reason in caught.value.message
        assert caught.value.hint == instead
        assert caught.value.code == "no_quantization"
    with pytest.raises(RequestError, match="no quantization `bnb-4bits`") as caught:
        check_method("bnb-4bits")
    assert caught.value.hint == "did you mean `bnb-4bit`?"


def test_quantized_weights_are_not_quantized_again(made: Any, tmp_path: Path) -> None:
    """The error names the method that they have."""
    with pytest.raises(ModelError, match=r"is quantized already, by (torchao|bitsandbytes)") as caught:
        quantize(made[1], tmp_path / "out", "torchao-int8")
    assert caught.value.code == "already_quantized"


def test_what_cannot_be_quantized_is_refused(source: Path, tmp_path: Path) -> None:
    """Adapters, no folder, a target that exists, a model without linear layers, a wrong tolerance."""
    adapter = save_adapter(tmp_path / "adapter", source)
    refused: list[tuple[Any, str, type[Exception], str]] = [
        (adapter, "out", ModelError, "is an adapter"),
        (tmp_path / "none", "out", ModelError, "does not exist"),
        (source, "adapter", ConflictError, "exists already"),
    ]
    for folder, out, kind, words in refused:
        with pytest.raises(kind, match=words):
            quantize(folder, tmp_path / out, "torchao-int8")
    with pytest.raises(RequestError, match="`tolerance` is 0"):
        quantize(source, tmp_path / "out", "torchao-int8", tolerance=0)
    torch.manual_seed(0)
    config: Any = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    make: Any = transformers.ResNetModel
    make(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ModelError, match="no linear layer") as caught:
        quantize(tmp_path / "resnet", tmp_path / "out", "bnb-4bit", check=False)
    assert caught.value.code == "nothing_quantized"
    assert not (tmp_path / "out").exists()


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint installs the extra."""

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ModelError, match="needs the package `torchao`") as caught:
        check_method("torchao-int8")
    assert caught.value.hint == "pip install 'modelyard[quantize]'"
