"""A .gguf file is the model that it was written from, or an error that names what is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from gguf_llama import write_llama
from modelyard.errors import ModelError, RequestError
from modelyard.weights.files import FolderFiles
from modelyard.weights.load import load
from modelyard.weights.loading import gguf_model
from modelyard.weights.loading.plan import plan_load
from modelyard.weights.untrained import find_untrained
from tiny_models import TEMPLATE, make_llama, make_tokenizer
from weights.gguf_files import gguf as plain_gguf
from weights.gguf_files import text

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model: Any) -> torch.Tensor:
    """What a model says of `IDS`."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.fixture(scope="module")
def source() -> Any:
    """The model that the files are written from."""
    return make_llama()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, source: Any) -> Path:
    """The model as F32."""
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", source, "F32")


def test_a_float_file_is_the_model_bit_for_bit(file: Path, source: Any) -> None:
    """F32 loses nothing: every tensor and every logit is the source model's."""
    model = load(file)
    held = source.state_dict()
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, held[name]), name
    assert torch.equal(logits(model.model), logits(source))
    assert (model.task, type(model.model).__name__, model.model.training) == (
        "text-generation",
        "LlamaForCausalLM",
        False,
    )


def test_a_half_precision_file_is_the_model_rounded(tmp_path: Path, source: Any) -> None:
    """F16 is the source rounded to F16, computed in float32 on a CPU."""
    rounded = make_llama()
    rounded.load_state_dict(
        {name: tensor.half().float() if tensor.dim() > 1 else tensor for name, tensor in source.state_dict().items()}
    )
    model = load(write_llama(tmp_path / "half.gguf", source, "F16"))
    assert model.model.dtype == torch.float32
    assert torch.equal(logits(model.model), logits(rounded))


def test_a_quantized_file_is_close(tmp_path: Path, source: Any) -> None:
    """Q8_0 is dequantized when it is loaded: 8-bit blocks stay within a few percent of the source's logits."""
    model = load(write_llama(tmp_path / "q8.gguf", source, "Q8_0"))
    error = ((logits(model.model) - logits(source)).norm() / logits(source).norm()).item()
    assert 0 < error < 0.03


def test_a_task_adds_and_drops_a_head(file: Path, source: Any, tmp_path: Path) -> None:
    """A classifier of a file of a language model: its head is drawn from the seed, reported and marked; the body is the file's."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = load(file, task="text-classification", num_labels=3, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.load_report.added, model.load_report.dropped) == (("score.weight",), ("output.weight",))
    assert model.untrained is not None
    assert model.untrained.tensors == ("score.weight",)
    again = load(file, task="text-classification", num_labels=3, seed=2)
    assert torch.equal(model.model.score.weight, again.model.score.weight)
    assert torch.equal(model.model.model.norm.weight, source.model.norm.weight)
    found = find_untrained(FolderFiles(model.save(tmp_path / "saved")))
    assert found is not None
    assert found.tensors == ("score.weight",)
    assert load(file, task="feature-extraction").untrained is None


@pytest.mark.parametrize(
    ("task", "added", "dropped"),
    [
        ("text-generation", (), ()),
        ("text-classification", ("score.weight",), ("output.weight",)),
        ("feature-extraction", (), ("output.weight",)),
    ],
)
def test_the_plan_of_a_file_says_which_head_comes_and_goes(
    file: Path, task: str, added: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    """What loading would draw and leave out is told before, and is what loading then reports."""
    plan = plan_load(file, task=task)
    assert (plan.added, plan.dropped) == (added, dropped)
    report = load(file, task=task).load_report
    assert (report.added, report.dropped) == (added, dropped)


def test_options_that_a_file_cannot_be_loaded_with_are_refused(file: Path) -> None:
    """Labels for a model that does not label, and memory for a device map that there is none of, are not passed over."""
    for options in ({"num_labels": 3}, {"max_memory": {"cpu": "1GiB"}}):
        for call in (load, plan_load):
            with pytest.raises(RequestError):
                call(file, **options)


def test_loading_a_file_prints_nothing(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Transformers' older loader draws a progress bar whatever it is told; ours does not, and leaves its bar in place."""
    from transformers import modeling_gguf_pytorch_utils as legacy

    before = vars(legacy)["tqdm"]
    load(file)
    assert capfd.readouterr() == ("", "")
    assert vars(legacy)["tqdm"] is before


def test_the_tokenizer_is_the_files(file: Path) -> None:
    """Text becomes the ids of the tokenizer that was written, its chat template included, and the model generates."""
    model, tokenizer = load(file), make_tokenizer()
    for words in ("my card has not arrived", " two  spaces", "über"):
        assert model.processor(words).input_ids == tokenizer(words).input_ids
    assert model.processor.chat_template == TEMPLATE
    assert isinstance(model.generate("where is my card", max_new_tokens=3), str)


def test_a_dtype_is_obeyed_and_the_plan_tells_it(tmp_path: Path, source: Any) -> None:
    """The plan counts the casts from the header alone, and the load does what it says."""
    path = write_llama(tmp_path / "half.gguf", source, "F16")
    plan = plan_load(path, dtype="bfloat16")
    model = load(path, dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert plan.casts["float16 -> bfloat16"].tensors == 16
    assert plan.casts["float32 -> bfloat16"].tensors == 5
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    assert plan.bytes == {"cpu": held}
    assert (plan.model_class, plan.task, plan.dtype) == ("LlamaForCausalLM", "text-generation", "bfloat16")


def test_a_model_from_a_file_is_saved_as_safetensors(file: Path, source: Any, tmp_path: Path) -> None:
    """Saved and loaded again it is the same model: nothing of how the file was packed is left in its configuration."""
    load(file).save(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path / "saved").model), logits(source))


def test_a_tied_model_comes_back_tied(tmp_path: Path) -> None:
    """A file without an output matrix is a tied model."""
    tied = make_llama(tie_word_embeddings=True)
    model = load(write_llama(tmp_path / "tied.gguf", tied, "F32", drop="output.weight")).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(logits(model), logits(tied))


def test_missing_and_unused_tensors_are_refused(tmp_path: Path, source: Any) -> None:
    """Transformers draws what is missing at random and leaves out what it has no place for; both are errors by name."""
    with pytest.raises(ModelError, match=r"1 missing \(model.layers.1.mlp.up_proj.weight\)"):
        load(write_llama(tmp_path / "missing.gguf", source, "F32", drop="blk.1.ffn_up.weight"))
    path = write_llama(tmp_path / "extra.gguf", source, "F32", extra="rope_freqs.weight")
    with pytest.raises(ModelError, match=r"1 unexpected \(rope_freqs.weight\)"):
        load(path)
    assert torch.equal(logits(load(path, allow=("unexpected",)).model), logits(source))


def test_an_unsupported_architecture_lists_the_supported(tmp_path: Path) -> None:
    """The name is in the error, and every architecture that could be loaded."""
    key = text(b"general.architecture") + (8).to_bytes(4, "little") + text(b"dinosaur")
    (tmp_path / "x.gguf").write_bytes(plain_gguf({"w": (0, (8,))}, keys=(key,)))
    with pytest.raises(ModelError, match="architecture `dinosaur`") as caught:
        load(tmp_path / "x.gguf")
    assert caught.value.code == "unknown_architecture"
    assert {"llama", "qwen3moe", "gpt-oss", "lfm2"} <= set(caught.value.details["supported"])
    assert caught.value.details["supported"] == gguf_model.supported_architectures()


def test_a_broken_header_never_reaches_a_library(file: Path, tmp_path: Path) -> None:
    """A truncated file is refused by our reader."""
    (tmp_path / "short.gguf").write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "short.gguf")
    assert caught.value.code == "truncated"


@pytest.mark.parametrize(
    "options",
    [{"device_map": "auto"}, {"quantization": "bnb-8bit"}, {"random": True}],
    ids=lambda item: next(iter(item)),
)
def test_options_that_a_file_cannot_have_are_refused(file: Path, options: dict[str, Any]) -> None:
    """They are errors of their field, not ignored."""
    with pytest.raises(RequestError) as caught:
        load(file, **options)
    assert caught.value.details["field"] in options
