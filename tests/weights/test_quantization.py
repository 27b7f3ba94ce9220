"""Weights in fewer bits: every method loads and answers here, what it leaves alone is told, and bytes are counted right."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading import quantization
from modelyard.weights.loading.plan import plan_load
from tiny_models import make_llama, make_tokenizer, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

# PEFT 0.21 reads an attribute that transformers 5.23 renamed, when these tests make adapters.
pytestmark = [pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]

IDS = torch.tensor([[5, 6, 7, 8]])

# Relative error of the logits against float32 that each method stays below on the random weights of these tests, which
# exaggerate what few bits do; measured values are about half of these.
BOUNDS = {"bnb-8bit": 0.06, "bnb-4bit": 0.6, "torchao-int8": 0.06, "torchao-int4": 0.6, "int8-dynamic": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama wide enough for groups of 32."""
    return save_model(tmp_path_factory.mktemp("model"), make_llama(hidden_size=64, intermediate_size=128))


def logits(model: Any) -> torch.Tensor:
    """What a model says of `IDS`, in float32."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(quantization.METHODS))
def test_every_method_loads_and_answers_on_a_cpu(folder: Path, name: str, dtype: str) -> None:
    """The model generates, its logits are near those of float32 but not the same, and it takes less memory."""
    whole = load(folder).model
    model = load(folder, quantization=name, dtype=dtype)
    error = ((logits(model.model) - logits(whole)).norm() / logits(whole).norm()).item()
    assert 1e-4 < error < BOUNDS[name]
    assert len(model.complete(["my card"], max_new_tokens=4, temperature=0)[0].token_ids) >= 1
    assert quantization.footprint(model.model) < 0.85 * quantization.footprint(whole)
    assert model.plan.quantization == name
    assert not model.model.training


@pytest.mark.parametrize("name", ["torchao-int8", "torchao-int4"])
def test_the_footprint_is_what_is_stored(folder: Path, name: str) -> None:
    """Counted from the tensors inside the subclass; transformers' own count is the unquantized size."""
    model = load(folder, quantization=name).model
    linear = [parameter for parameter in model.parameters() if quantization._is_quantized(parameter)]
    numbers = sum(parameter.numel() for parameter in linear)
    rest = sum(
        parameter.numel() * 4 for parameter in model.parameters() if not quantization._is_quantized(parameter)
    ) + sum(buffer.numel() * 4 for buffer in model.buffers())
    bits = 8 * (quantization.footprint(model) - rest) / numbers
    assert (
        (8 <= bits < 10) if name == "torchao-int8" else (4 <= bits < 6.1)
    )  # half a byte, and in groups of 32 a scale and a zero point of four bytes
    assert model.get_memory_footprint() > 1.5 * quantization.footprint(model)


def test_the_footprint_of_packed_layers_is_counted(folder: Path) -> None:
    """`int8-dynamic` keeps its weights outside the parameters: one byte a number, with what was not quantized beside."""
    whole, model = load(folder).model, load(folder, quantization="int8-dynamic").model
    linear = sum(module.weight.numel() for module in whole.modules() if type(module) is torch.nn.Linear)
    rest = quantization.footprint(whole) - 4 * linear
    assert rest + linear <= quantization.footprint(model) < rest + 1.02 * linear + 200 * 15


def test_tied_and_meta_tensors_are_counted_as_memory() -> None:
    """A tied pair counts once, a model on the meta device takes nothing."""
    tied = make_llama(tie_word_embeddings=True)
    assert quantization.footprint(make_llama()) - quantization.footprint(tied) == tied.lm_head.weight.numel() * 4
    with torch.device("meta"):
        assert quantization.footprint(make_llama()) == 0


@pytest.mark.parametrize("name", list(quantization.METHODS))
def test_the_plan_knows_the_size_before_loading(folder: Path, name: str) -> None:
    """Planned bytes are within a tenth of what is there afterwards (scales and zero points are the difference)."""
    plan = plan_load(folder, quantization=name)
    held = quantization.footprint(load(folder, quantization=name).model)
    assert abs(plan.total - held) < 0.15 * held
    assert plan.quantized in {14, 15}


def test_a_config_object_is_taken(folder: Path) -> None:
    """A configuration of transformers does what it does there, with the same bits."""
    import transformers

    make: Any = transformers.BitsAndBytesConfig
    model = load(folder, quantization=make(load_in_4bit=True, bnb_4bit_quant_type="fp4"))
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=make(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    )
    assert torch.equal(logits(model.model), logits(theirs))
    assert model.plan.quantization == "bitsandbytes"


def test_what_cannot_be_done_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong name, a wrong object and a wrong device are errors even where there is no model at all."""
    with pytest.raises(RequestError, match="no quantization `bnb-8bits`") as caught:
        quantization.check("bnb-8bits")
    assert caught.value.hint == "did you mean `bnb-8bit`?"
    with pytest.raises(RequestError, match="is a dict"):
        quantization.check({"bits": 4})
    with pytest.raises(RequestError, match="does not run on mps") as caught:
        quantization.check("bnb-4bit", device="mps")
    assert caught.value.details["available"] == ["torchao-int8"]
    with pytest.raises(RequestError, match="does not run on cuda:0"):
        quantization.check("int8-dynamic", device="cuda:0")


def test_an_absent_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes or torchao the hint is this project's extra."""

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    for name, package in (("bnb-4bit", "bitsandbytes"), ("torchao-int8", "torchao")):
        with pytest.raises(ModelError, match=f"needs the package `{package}`") as caught:
            quantization.check(name)
        assert caught.value.code == "missing_package"
        assert caught.value.hint == "pip install 'modelyard[quantize]'"


def make_mixtral() -> Any:
    """A tiny mixture of four experts a layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    make: Any = MixtralForCausalLM
    config: Any = MixtralConfig
    return make(
        config(
            vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
            bos_token_id=None,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["bnb-8bit", "bnb-4bit", "torchao-int8", "int8-dynamic"])
def test_experts_that_no_method_reaches_are_told(tmp_path: Path, name: str) -> None:
    """Fused experts stay in full precision: the plan lists them, and they are what the model then has unquantized."""
    save_model(tmp_path, make_mixtral(), make_tokenizer())
    model = load(tmp_path, quantization=name)
    expected = {
        f"model.layers.{layer}.mlp.experts.{part}" for layer in range(2) for part in ("gate_up_proj", "down_proj")
    }
    assert set(model.plan.experts) == expected
    found = quantization.describe(model.model, name)
    assert set(found.experts) == expected
    assert all(found.kept[part] > 0 for part in expected)
    assert found.tensors > 0


def test_widths_that_fill_no_group_are_told(tmp_path: Path) -> None:
    """Torchao leaves such matrices alone and only logs it: the plan lists them, and they are what stays."""
    save_model(tmp_path, make_llama(hidden_size=48, intermediate_size=96))
    model = load(tmp_path, quantization="torchao-int4")
    found = quantization.describe(model.model, "torchao-int4")
    assert model.plan.quantized == found.tensors == 2
    assert set(model.plan.skipped) == set(found.kept) - {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(model.plan.skipped) == 12
    assert model.plan.skipped != plan_load(tmp_path, quantization="torchao-int8").skipped == ()


@pytest.mark.parametrize(
    "size", [{"hidden_size": 32, "intermediate_size": 64}, {"hidden_size": 48, "intermediate_size": 96}]
)
def test_4_bits_of_any_width_run(tmp_path: Path, size: dict[str, int]) -> None:
    """Bitsandbytes has a kernel for rows of whole groups only; a model of another width answers as its weights say."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    save_model(tmp_path, make_llama(**size))
    plain, packed = load(tmp_path).model, load(tmp_path, quantization="bnb-4bit").model
    for name, module in packed.named_modules():
        if isinstance(module, Linear4bit):
            weight = plain.get_submodule(name).weight
            held: Any = module.weight
            weight.data = dequantize_4bit(held.data, held.quant_state).to(weight.dtype)
    assert ((logits(packed) - logits(plain)).norm() / logits(plain).norm()).item() < 0.03


def test_a_dense_model_has_no_experts_to_tell_of(folder: Path) -> None:
    """What is kept of a dense model is its embeddings and its output layer."""
    found = quantization.describe(load(folder, quantization="torchao-int8").model, "torchao-int8")
    assert found.experts == ()
    assert set(found.kept) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert found.tensors == 14


def test_an_adapter_works_on_a_dynamically_quantized_base(folder: Path, tmp_path: Path) -> None:
    """The base's layers are quantized, the adapter's factors are not, and the adapter still changes the answer."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    plain = logits(load(adapter).model)
    model = load(adapter, quantization="int8-dynamic").model
    assert ((logits(model) - plain).norm() / plain.norm()).item() < 0.3
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_a_model_without_linear_layers_is_not_called_quantized() -> None:
    """`int8-dynamic` on a model that it could not change is an error."""
    with pytest.raises(ModelError, match="no linear layer"):
        quantization.apply_after(torch.nn.Sequential(torch.nn.LayerNorm(4)), "int8-dynamic")


def test_quantized_loading_is_silent(folder: Path) -> None:
    """In a fresh process neither stream has a byte: torchao, bitsandbytes and torch log at import and at every call."""
    code = (
        "import torch\n"
        "from modelyard.weights.load import load\n"
        "for name in ('torchao-int8', 'bnb-8bit'):\n"
        f"    load({str(folder)!r}, quantization=name).model(input_ids=torch.tensor([[5, 6]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_only_the_known_noise_is_kept_back(caplog: pytest.LogCaptureFixture) -> None:
    """Another record of the same logger passes, and asking twice adds one filter."""
    quantization.quiet_imports()
    count = len(logging.getLogger("torchao").filters)
    quantization.quiet_imports()
    assert len(logging.getLogger("torchao").filters) == count
    with caplog.at_level(logging.WARNING, logger="torchao"):
        logging.getLogger("torchao").warning("Failed to load %s", "x.so")
        logging.getLogger("torchao").warning("the kernel is wrong")
    assert caplog.messages == ["the kernel is wrong"]
